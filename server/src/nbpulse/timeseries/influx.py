"""The time series on InfluxDB: line protocol in, InfluxQL out, as 1.x, 2.x (DBRP mapping) and 3.x understand them.

Promises: a write is acknowledged only after the server's 204; the same point again overwrites itself; a point the
server refuses is named with its reason and never fails its neighbours; what does not answer is Unavailable (NB-2005).
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from uuid import UUID

import httpx2
import structlog

from nbpulse.errors import StartupError, Unavailable
from nbpulse.metrics import (
    InfluxQuery,
    PoolFigures,
    SeriesQuery,
    database_query_duration,
    pools,
    series_rejected_points,
)
from nbpulse.pipeline import CellExecutionPoint, LearningProgressPoint, PerformancePoint, RejectedPoint, SeriesPoint
from nbpulse.timeseries import Activity, ClassScope, Erasure, ErrorRate, Percentiles, Performance, Progress, Window
from nbpulse.timeseries.lines import ErrorText, TagSet, clean_tag, describe_point, quote_name, quote_text

_WRITE_DEADLINE_S: Final = 10.0
_CONNECTIONS_MAX: Final = 8
_WRITE_POINTS_MAX: Final = 5_000
_log = structlog.get_logger(__name__)


class InfluxAddress(NamedTuple):
    """What `NBPULSE_INFLUX_URL` says."""

    base_url: str
    database: str
    user: str | None
    password: str | None


def read_address(url: str) -> InfluxAddress:
    """`http[s]://[user:password@]host:port[/database]`, database `nbpulse` where none is named. Raises StartupError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartupError("NB-3080", setting="NBPULSE_INFLUX_URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    user, password = (unquote(one) if one else None for one in (parts.username, parts.password))
    return InfluxAddress(f"{parts.scheme}://{host}{port}", unquote(parts.path.strip("/")) or "nbpulse", user, password)


@asynccontextmanager
async def open_influx(
    url: str, *, token: str | None = None, tags: TagSet = "specified", error_text: ErrorText = "normalised"
) -> AsyncIterator[InfluxTimeSeries]:
    """One store with a pool of connections of its own. Nothing is asked of the server yet: it may be away."""
    address = read_address(url)
    auth = httpx2.BasicAuth(address.user, address.password or "") if address.user else None
    transport = _CountedTransport(limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX), trust_env=False)
    headers = {"Authorization": f"Token {token}"} if token else {}
    async with httpx2.AsyncClient(
        base_url=address.base_url,
        auth=auth,
        headers=headers,
        transport=transport,
        timeout=_WRITE_DEADLINE_S,
        trust_env=False,
    ) as client:
        with pools.watch("influxdb", transport.measure):
            yield InfluxTimeSeries(client, address.database, tags=tags, error_text=error_text)


class _CountedTransport(httpx2.AsyncHTTPTransport):
    """HTTP that tells its connections."""

    def measure(self) -> PoolFigures:
        """Its connections now."""
        found = [connection for connection in self._pool.connections if not connection.is_closed()]
        return PoolFigures(len(found), sum(connection.is_idle() for connection in found), _CONNECTIONS_MAX)


class InfluxTimeSeries:
    """`timeseries.TimeSeriesStore` on InfluxDB."""

    has_server = True

    def __init__(
        self,
        client: httpx2.AsyncClient,
        database: str,
        *,
        tags: TagSet = "specified",
        error_text: ErrorText = "normalised",
    ) -> None:
        self._client = client
        self._database = database
        self._tags: TagSet = tags
        self._error_text: ErrorText = error_text
        self._is_known = False

    # --- writing --------------------------------------------------------------------------------------------------

    async def write_points(self, points: Sequence[SeriesPoint]) -> list[RejectedPoint]:
        """Write points; those the server will never take, with its reason. Raises Unavailable (NB-2005)."""
        rejected: list[RejectedPoint] = []
        for start in range(0, len(points), _WRITE_POINTS_MAX):
            rejected += await self._write(points[start : start + _WRITE_POINTS_MAX])
        return rejected

    async def _write(self, points: Sequence[SeriesPoint]) -> list[RejectedPoint]:
        """What the server takes of these is written; halved until each point it refuses stands alone."""
        lines = "\n".join(describe_point(point, tags=self._tags, error_text=self._error_text) for point in points)
        reason = await self._send(lines)
        if reason is None:
            return []
        if is_series_limit(reason):
            # Every new series is refused until the operator acts: looking for them one by one would only cost time.
            _log.error("influx.series_limit", reason=reason[:200], points=len(points))
        elif len(points) > 1:
            middle = len(points) // 2
            return await self._write(points[:middle]) + await self._write(points[middle:])
        series_rejected_points.labels(reason="series_limit" if is_series_limit(reason) else "refused").inc(len(points))
        return [RejectedPoint(point.user_id, point.time_ns, reason[:500], point.measurement) for point in points]

    async def _send(self, lines: str) -> str | None:
        """None when all was taken, else why something was not. Raises Unavailable: nothing may have been."""
        if not self._is_known:
            await self._ensure_database()
        body = gzip.compress(lines.encode(), compresslevel=1)
        headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-8"}
        query = {"db": self._database, "precision": "ns"}
        answer = await self._ask("write_points", "POST", "/write", params=query, content=body, headers=headers)
        if answer.status_code == 204:
            return None
        if answer.status_code == 404:  # dropped since
            self._is_known = False
        if answer.status_code not in (400, 413, 422):
            raise self._refuse(answer)
        return read_error(answer)

    async def _ensure_database(self) -> None:
        """1.x makes it here; 2.x and 3.x refuse the statement, and have it from their operator."""
        statement = f"CREATE DATABASE {quote_name(self._database)}"
        answer = await self._ask("create_database", "POST", "/query", data={"q": statement})
        if answer.status_code in (401, 403) or answer.status_code >= 500:
            raise self._refuse(answer)
        self._is_known = True

    async def refresh_rollups(self, settle_s: float = 5) -> int:  # noqa: ARG002 - the contract's
        """InfluxDB keeps no rollups of ours."""
        return 0

    async def erase_points(self, erasure: Erasure) -> bool:
        """
        Drop the people's series: 1.x also from its index, 2.x their points alone, 3.x has no way to and answers False.
        """
        for where in _list_erased(erasure):
            if not await self._delete(f"DROP SERIES WHERE {where}") and not await self._delete(f"DELETE WHERE {where}"):
                return False
        return True

    async def drop_before(self, raw: datetime | None, derived: datetime | None) -> bool:
        """Delete points of before; 3.x has no way to and answers False. Raises Unavailable (NB-2005)."""
        limits = {
            CellExecutionPoint.measurement: raw,
            LearningProgressPoint.measurement: derived,
            PerformancePoint.measurement: derived,
        }
        return all(
            [
                await self._delete(f"DELETE FROM {quote_name(name)} WHERE time < {_to_ns(limit)}")  # noqa: S608 - ours
                for name, limit in limits.items()
                if limit is not None
            ]
        )

    async def read_points(self, user_id: UUID) -> list[dict[str, Any]]:
        """Every point of a person, with its measurement. Raises Unavailable (NB-2005)."""
        statement = f"SELECT * FROM /.*/ WHERE user_id = {quote_text(str(user_id))}"  # noqa: S608 - a UUID
        form = {"db": self._database, "epoch": "ns", "q": statement}
        answer = await self._ask("read_points", "POST", "/query", data=form)
        if answer.status_code != 200:
            raise self._refuse(answer)
        found = answer.json()["results"][0].get("series", ())
        return [
            {"measurement": one["name"], **dict(zip(one["columns"], row, strict=True))}
            for one in found
            for row in one["values"]
        ]

    async def _delete(self, statement: str) -> bool:
        """Whether the server has done it, or had nothing to do; False where it does not know how."""
        answer = await self._ask("erase_points", "POST", "/query", data={"db": self._database, "q": statement})
        reason = read_error(answer) if answer.status_code >= 400 or "error" in answer.text else ""
        if not reason or "database not found" in reason:
            return True
        if answer.status_code in (401, 403) or answer.status_code >= 500:
            raise self._refuse(answer)
        _log.warning("influx.not_deleted", reason=reason[:300])
        return False

    # --- asking ---------------------------------------------------------------------------------------------------

    async def query_activity(self, window: Window, scope: ClassScope | None = None) -> list[Activity]:
        """Mean and count of the duration per bucket and user. Raises Unavailable (NB-2005)."""
        rows = await self._select(
            "query_activity",
            'mean("execution_duration_ms") AS "mean", count("execution_duration_ms") AS "count"',
            window,
            scope,
            by=("user_id",),
        )
        found = [Activity(at, UUID(tags["user_id"]), mean, count) for tags, at, (mean, count) in rows]
        return sorted(found, key=lambda one: (one.at, one.user_id))

    async def query_error_rate(self, window: Window, scope: ClassScope | None = None) -> list[ErrorRate]:
        """Errors and executions per bucket and notebook. Raises Unavailable (NB-2005)."""
        rows = await self._select(
            "query_error_rate",
            'sum("error_count") AS "errors", count("error_count") AS "total"',
            window,
            scope,
            by=("notebook_path",),
        )
        found = [ErrorRate(at, tags["notebook_path"], int(errors), total) for tags, at, (errors, total) in rows]
        return sorted(found, key=lambda one: (one.at, one.notebook_path))

    async def query_percentiles(self, window: Window, scope: ClassScope | None = None) -> list[Percentiles]:
        """p50 and p95 of the duration per bucket, by nearest rank. Raises Unavailable (NB-2005)."""
        rows = await self._select(
            "query_percentiles",
            'percentile("execution_duration_ms", 50) AS "p50", percentile("execution_duration_ms", 95) AS "p95",'
            ' count("execution_duration_ms") AS "count"',
            window,
            scope,
        )
        return [Percentiles(at, p50, p95, count) for _, at, (p50, p95, count) in rows]

    async def query_progress(self, window: Window, scope: ClassScope | None = None) -> list[Progress]:
        """The last standing per bucket, student and notebook. Raises Unavailable (NB-2005)."""
        names = ("completed_cells", "total_cells", "progress_percentage", "session_duration_ms")
        rows = await self._select(
            "query_progress",
            ", ".join(f'last("{name}") AS "last_{name}"' for name in names),
            window,
            scope,
            by=("user_id", "notebook_path"),
            measurement=LearningProgressPoint.measurement,
        )
        found = [Progress(at, UUID(tags["user_id"]), tags["notebook_path"], *values) for tags, at, values in rows]
        return sorted(found, key=lambda one: (one.at, one.user_id, one.notebook_path))

    async def query_performance(self, window: Window, scope: ClassScope | None = None) -> list[Performance]:
        """Times and error rates per bucket, notebook and cell type. Raises Unavailable (NB-2005)."""
        rows = await self._select(
            "query_performance",
            'mean("avg_execution_time") AS "avg", max("max_execution_time") AS "max", mean("error_rate") AS "rate"',
            window,
            scope,
            by=("notebook_path", "cell_type"),
            measurement=PerformancePoint.measurement,
        )
        found = [Performance(at, tags["notebook_path"], tags["cell_type"], *values) for tags, at, values in rows]
        return sorted(found, key=lambda one: (one.at, one.notebook_path, one.cell_type))

    async def check(self) -> None:
        """One round trip. Raises Unavailable (NB-2005)."""
        answer = await self._ask("check", "GET", "/ping")
        if answer.status_code >= 300:
            raise self._refuse(answer)

    async def _select(
        self,
        name: SeriesQuery,
        what: str,
        window: Window,
        scope: ClassScope | None,
        *,
        by: Sequence[str] = (),
        measurement: str = CellExecutionPoint.measurement,
    ) -> list[tuple[Mapping[str, str], datetime, list[Any]]]:
        """(tags, start of the bucket, values) of every bucket that holds something."""
        if scope is not None and not (scope.user_ids and scope.notebook_paths):
            return []
        bucket = f"time({window.bucket // timedelta(microseconds=1)}u)"
        group = ", ".join([bucket, *map(quote_name, by)])
        # Only numbers, names of ours and quoted texts are in it.
        statement = (
            f"SELECT {what} FROM {quote_name(measurement)} WHERE {_narrow(window, scope)} GROUP BY {group} fill(none)"  # noqa: S608
        )
        form = {"db": self._database, "epoch": "ns", "q": statement}
        answer = await self._ask(name, "POST", "/query", data=form)
        if answer.status_code != 200:
            raise self._refuse(answer)
        result = answer.json()["results"][0]
        if "error" in result:
            if "database not found" in result["error"]:
                return []  # nothing was ever written
            raise self._refuse(answer)
        return [
            (series.get("tags", {}), datetime.fromtimestamp(row[0] // 1_000_000_000, UTC), row[1:])
            for series in result.get("series", ())
            for row in series["values"]
            if any(value is not None for value in row[1:])
        ]

    async def _ask(self, name: InfluxQuery, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            with database_query_duration.labels("influxdb", name).time():
                return await self._client.request(method, path, **request)
        except (httpx2.TransportError, OSError) as error:
            raise Unavailable("NB-2005") from error

    def _refuse(self, answer: httpx2.Response) -> Unavailable:
        """What the server says goes to the log, for the operator; it names no person."""
        _log.warning("influx.refused", status=answer.status_code, reason=read_error(answer)[:300])
        return Unavailable("NB-2005")


def _narrow(window: Window, scope: ClassScope | None) -> str:
    """The condition of a statement: the window, and the people and notebooks of the class."""
    where = f"time >= {_to_ns(window.start)} AND time < {_to_ns(window.end)}"
    if scope is None:
        return where
    tags = {
        "user_id": {str(UUID(str(one))) for one in scope.user_ids},
        "notebook_path": {clean_tag(one) for one in scope.notebook_paths},
    }
    for tag, values in tags.items():
        where += " AND (" + " OR ".join(f"{quote_name(tag)} = {quote_text(one)}" for one in sorted(values)) + ")"
    return where


def _list_erased(erasure: Erasure) -> list[str]:
    """A condition for each hundred series' tags: a statement has its limits."""
    people = [f"user_id = {quote_text(str(one))}" for one in erasure.user_ids]
    paths = [f"notebook_path = {quote_text(clean_tag(one))}" for one in erasure.paths]
    members = [f"user_id = {quote_text(str(one))}" for one in erasure.member_ids] if paths else []
    found = [" OR ".join(people[start : start + 100]) for start in range(0, len(people), 100)]
    for start in range(0, len(members), 100):
        found += [
            f"({' OR '.join(members[start : start + 100])}) AND ({' OR '.join(paths[at : at + 100])})"
            for at in range(0, len(paths), 100)
        ]
    return found


def read_error(answer: httpx2.Response) -> str:
    """The server's own words, from whichever of its answers carries them."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text
    if isinstance(body, dict):
        results: Iterable[Any] = body.get("results") or ()
        found = [body.get("error"), body.get("message"), *(one.get("error") for one in results)]
        return str(next((one for one in found if one), answer.text))
    return answer.text


def is_series_limit(reason: str) -> bool:
    """True when the database holds as many series, or a tag as many values, as its operator allows."""
    return "max-series-per-database" in reason or "max-values-per-tag" in reason


def _to_ns(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
