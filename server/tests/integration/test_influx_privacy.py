"""Taking out, retention and erasure of points in a real InfluxDB 1.x."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from nbpulse.pipeline import CellExecutionPoint
from nbpulse.timeseries import Erasure
from nbpulse.timeseries.influx import InfluxTimeSeries, open_influx

NOW = datetime.now(UTC).replace(microsecond=0)


def make_point(user_id: UUID, path: str, days: int) -> CellExecutionPoint:
    return CellExecutionPoint(
        user_id=user_id,
        time_ns=round((NOW - timedelta(days=days)).timestamp()) * 1_000_000_000,
        notebook_path=path,
        cell_index=1,
        event_type="cell_execution",
        execution_duration_ms=2.5,
        has_error=False,
        error_message=None,
        execution_count=1,
        course_id=uuid4(),
    )


async def list_points(series: InfluxTimeSeries, user_id: UUID) -> list[tuple[str, int]]:
    found = await series.read_points(user_id)
    return sorted((one["notebook_path"], round((NOW.timestamp() - one["time"] / 1e9) / 86_400)) for one in found)


async def test_points_are_taken_out_kept_for_their_time_and_erased(influxdb: str) -> None:
    one, other = uuid4(), uuid4()
    async with open_influx(f"{influxdb}/privacy_{one.hex[:8]}") as series:
        assert await series.erase_points(Erasure([one])), "there is no database yet"
        points = [
            make_point(user, path, days)
            for user in (one, other)
            for path in ("it's.ipynb", "b.ipynb")
            for days in (1, 200)
        ]
        assert await series.write_points(points) == []
        everything = [("b.ipynb", 1), ("b.ipynb", 200), ("it's.ipynb", 1), ("it's.ipynb", 200)]
        assert await list_points(series, one) == everything
        (measurement,) = {row["measurement"] for row in await series.read_points(one)}
        assert measurement == CellExecutionPoint.measurement

        assert await series.drop_before(NOW - timedelta(days=180), None)
        assert await list_points(series, one) == [("b.ipynb", 1), ("it's.ipynb", 1)]
        # A course's points go by its notebooks' paths; what the same people did elsewhere stays.
        assert await series.erase_points(Erasure([], uuid4(), [one, other], ["it's.ipynb"]))
        assert await list_points(series, one) == await list_points(series, other) == [("b.ipynb", 1)]
        assert await series.erase_points(Erasure([one]))
        assert await list_points(series, one) == []
        assert await list_points(series, other) == [("b.ipynb", 1)]
