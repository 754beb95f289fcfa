"""The capacity model: lines found through points, sizes that follow from them, tables that show measured points."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servers import ROOT


@pytest.fixture
def sizing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import sizing

    return sizing


def make_point(primaries: int, workers: int, api_us: float, rows: int = 30_000) -> dict[str, Any]:
    """A point of the grid: 1.0 kB of WAL per event with one primary, with several 2.0 at the directory too."""
    names = ["a", "b", "c", "d"][:primaries] if primaries > 1 else []
    main = {"wal_bytes": (2 if names else 1) * 1_000 * rows, "rows": 0 if names else rows}
    shards = {name: {"wal_bytes": 1_000 * rows // primaries, "rows": rows // primaries} for name in names}
    databases = {
        name: one | {"disk": {"rows": one["rows"], "ledger_bytes": 1_000_000 + 900 * one["rows"]}}
        for name, one in ({"main": main} | shards).items()
    }
    times = {"postgresql-main": 30.0} | {f"postgresql-{name}": 60.0 / primaries for name in names}
    cpu = {"api": api_us, "worker": 40.0 * (1.5 if names else 1), "valkey": 10.0}
    return {
        "primaries": primaries,
        "workers": workers,
        "apis": 1,
        "events_per_s": 300,
        "stored_per_s": 5_000,
        "cores_busy_elsewhere": 0.5,
        "cpu_us_per_event": cpu | (times if names else {"postgresql": 45.0}),
        "databases": databases,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Made-up results whose lines are known."""
    sizes = {"api": 60.0, "worker": 50.0, "postgresql": 150.0, "valkey": 5.0}
    rates = [
        {
            "events_per_s": rate,
            "cores": {
                # Idle it costs less than the line's base, which is that of a part that works.
                "api": 0.01 + rate * 0.0001 if rate else 0.002,
                "worker": 0.02 + rate * 0.0002,
                "postgresql": 0.03 + rate * 0.0003,
                "valkey": 0.01,
            },
            "pss_mb": sizes,
            "cores_busy_elsewhere": 0.2,
        }
        for rate in (0, 100, 500, 1_000)
    ]
    boards = [
        {
            "boards": count,
            "events_per_s": 100,
            "cores": {"api": (0.05 if count else 0.02) + count * 0.001},
            "pss_mb": sizes | {"api": 60 + 0.5 * count},
            "frames_per_s": count * 4.0,
            "cores_busy_elsewhere": 0.2,
        }
        for count in (0, 1, 100)
    ]
    backlog = [{"events": n, "memory_bytes": 1e6 + 500 * n, "log_bytes": 700 * n, "pss_mb": 9.0} for n in (0, 10_000)]
    grid = [make_point(1, 1, 20), make_point(1, 2, 21, rows=60_000), make_point(2, 1, 20), make_point(4, 1, 20)]
    machine = {"cpu": "X", "cores": 2, "memory_gb": 8, "postgresql": "18", "valkey": "9"}
    head = {"measured_at": "2026-11-26T15:00:00+00:00", "command": "bench/capacity.py", "machine": machine}
    schools = {
        "alone": {"known_students": 200, "pss_mb": sizes, "other_bytes": 1_000_000},
        "beside": {"known_students": 100_200, "pss_mb": sizes | {"api": 70.0}, "other_bytes": 501_000_000},
    }
    series = [{"points": n, "stores": {"PostgreSQL": {"disk_mb": n * 500 / 1e6}}} for n in (1_000_000, 10_000_000)]
    found = {
        "capacity": head | {"rates": rates, "boards": boards, "backlog": backlog, "grid": grid},
        "timeseries": {"sizes": series},
        "known_students": {"schools": schools},
    }
    for name, one in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    return tmp_path


def fit(sizing: ModuleType, results: Path) -> Any:
    names = ("capacity", "timeseries", "known_students")
    return sizing.fit_model(*(json.loads((results / f"{name}.json").read_text()) for name in names))


def test_a_line_goes_through_its_points_and_says_how_far_it_misses_the_worst(sizing: ModuleType) -> None:
    assert sizing.fit_line([(0, 1), (10, 21), (20, 41)]) == pytest.approx((1, 2, 0, 20))
    bent = sizing.fit_line([(0, 0), (1, 3), (2, 0)])
    assert (bent.base, bent.slope, bent.residual_max) == pytest.approx((1, 0, 2))
    assert bent.at(10) == pytest.approx(1)
    with pytest.raises(statistics.StatisticsError):
        sizing.fit_line([(1, 2), (1, 3)])


def test_coefficients_are_found_again(sizing: ModuleType, results: Path) -> None:
    model = fit(sizing, results)
    assert model.cores["api"][:2] == pytest.approx((0.01, 0.0001))
    assert model.cores["postgresql"][:2] == pytest.approx((0.03, 0.0003))
    assert model.watched_class_cores == pytest.approx(0.031)
    assert model.board_cores.slope == pytest.approx(0.001)
    assert model.backlog_bytes.slope == pytest.approx(500)
    assert model.ledger_bytes[:2] == pytest.approx((1_000_000, 900))
    assert model.wal_bytes == 1_000
    assert model.several == pytest.approx((1.5, 2, 1 / 3, 2_000, 1_000))
    assert model.student_mb * 100_000 == pytest.approx(10)
    assert model.notebook_bytes == pytest.approx(5_000)


def test_sizes_follow_from_the_formula(sizing: ModuleType, results: Path) -> None:
    model = fit(sizing, results)
    one = sizing.plan_site(model, 200, 200)
    assert (one.peak_per_s, one.primaries, one.apis, one.workers) == (600, 1, 1, 1)
    assert one.cores["worker"] == pytest.approx((0.02 + 0.0002 * 600) / 0.6)
    assert one.cores["api"] == pytest.approx((0.01 + 0.0001 * 600 + 0.031 + 4 * 0.001) / 0.6)
    events = 200 * 54_000 * 180 / 365
    assert one.disk_gb == pytest.approx((events * (900 + 250) + 200 * 30 * 5_000) / 1e9)
    assert one.directory_wal_mb_per_s == pytest.approx(0.6)
    assert one.beyond == pytest.approx(0.6)
    large = sizing.plan_site(model, 100_000, 20_000)
    assert (large.peak_per_s, large.primaries) == (10_500, 4)
    assert large.workers == 6  # 10,500 x 0.0002 x 1.5 of 0.6 each
    assert large.cores["postgresql"] == pytest.approx((5 * 0.03 + 0.0006 * 10_500) / 0.6)
    assert large.directory_wal_mb_per_s == pytest.approx(21)
    assert large.beyond == pytest.approx(10.5)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_tables_show_each_point_beside_the_model_and_say_what_is_missing(
    sizing: ModuleType, results: Path, language: str
) -> None:
    import capacity_tables  # type: ignore[import-not-found]

    points = capacity_tables.compose_points(results, language)
    assert "| 0 | 0.002 (0.010) | 0.020 (0.020) |" in points
    assert "| 100 | 0.020 (0.020) | 0.040 (0.040) | 0.060 (0.060) | 0.010 (0.010) | 0.2 |" in points
    assert "| 100 | 0.150 (0.150) | 110.0 (110.0) | 400 |" in points
    assert "| 4 | 1 | 1 | 5,000 | 0.020 | 0.060 | 0.030 | 0.060 | 0.010 | 2.00 | 1.00 | 7,500 / 7,500 |" in points
    model = capacity_tables.compose_model(results, language)
    for students, active in sizing.ACTIVE.items():
        assert f"| {students:,} | {active:,} |" in model
    found = json.loads((results / "capacity.json").read_text())
    (results / "capacity.json").write_text(json.dumps({name: found[name] for name in found if name != "grid"}))
    assert "bench/capacity.py" in capacity_tables.compose_points(results, language)
    (results / "known_students.json").unlink()
    assert "bench/known_students.py" in capacity_tables.compose_points(results, language)
    assert capacity_tables.compose_points(results, language) == capacity_tables.compose_model(results, language)
