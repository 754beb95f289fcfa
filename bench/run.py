"""`make bench`: measures nbpulse against the specification's own flow, in turn, in one run.

Writes bench/results/*.json, one file per measure, and the table of docs/PERFORMANCE.md (and its Japanese twin) from all
of them; progress goes to stderr. `--only` measures some anew; `--quick` takes a fifth of the time and writes to
.cache/bench/ alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop
from documents import write_documents
from measures import BATCH_EVENTS, Figures, measure_ack, measure_frames, measure_start, measure_throughput
from report import (
    RESULTS,
    ROOT,
    compose_table,
    describe_machine,
    measure_sync_ms,
    read_results,
    write_results,
)
from systems import Nbpulse, Neighbours, SpecificationFlow, System, measure_busy_cores

# From light to heavy: what a heavy load leaves to do (checkpoints, vacuum) is not charged to a light one.
MEASURES = ("ack_500", "frames", "ack_2000", "throughput_single", "throughput_batch", "start")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _measure(name: str, system: System, scale: float) -> Figures:
    if name == "throughput_single":
        return await measure_throughput(system, 1, 30 * scale)
    if name == "throughput_batch":
        # The specification knows no batches: its own way of taking the same events is one by one.
        return await measure_throughput(system, BATCH_EVENTS if isinstance(system, Nbpulse) else 1, 30 * scale)
    if name == "ack_500":
        return await measure_ack(system, 500, 30 * scale)
    if name == "ack_2000":
        return await measure_ack(system, 2_000, 20 * scale)
    return await measure_frames(system, 500, 60 * scale)


async def _measure_running(systems: list[System], names: list[str], scale: float) -> dict[str, dict[str, Any]]:
    for system in systems:
        await system.connect()
    gc.collect()
    gc.freeze()
    gc.disable()  # the client's own pauses are no latency of the server's; it lives for minutes
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = {}
        for system in systems:
            if name == "throughput_batch" and system.name == "specification" and "throughput_single" in results:
                results[name][system.name] = results["throughput_single"][system.name]
                continue
            _say(f"{name}: {system.name} ...")
            around = {"fdatasync_ms": measure_sync_ms()}
            neighbours = Neighbours(systems)
            found = await _measure(name, system, scale)
            results[name][system.name] = found | around | {"cores_busy_elsewhere": neighbours.measure_cores()}
            _say(f"{name}: {system.name} {json.dumps(found)}")
            gc.collect()
    for system in systems:
        await system.pool.close()
    return results


def _run_systems(kinds: list[Callable[[], System]], names: list[str], scale: float) -> dict[str, dict[str, Any]]:
    systems: list[System] = []
    try:
        for kind in kinds:
            systems.append(kind())
            _say(f"{systems[-1].name}: ready in {systems[-1].start():.2f} s")
        return uvloop.run(_measure_running(systems, names, scale))
    finally:
        for system in systems:
            system.stop()
            system.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure nbpulse against the specification's own flow.")
    parser.add_argument("--quick", action="store_true", help="short runs, nothing but .cache/bench/ written")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="these measures alone")
    parser.add_argument("--system", choices=("nbpulse", "specification"), help="one system alone, for profiling")
    arguments = parser.parse_args()
    scale = 0.2 if arguments.quick else 1.0
    all_kinds: list[type[System]] = [Nbpulse, SpecificationFlow]
    kinds: list[type[System]] = [kind for kind in all_kinds if arguments.system in (None, kind.name)]
    machine = describe_machine()
    results: dict[str, dict[str, Any]] = {}
    running = [name for name in arguments.only if name != "start"]
    if running:
        results |= _run_systems(list(kinds), running, scale)
    if "start" in arguments.only:
        results["start"] = {}
        for kind in kinds:
            around = {"fdatasync_ms": measure_sync_ms(), "cores_busy_elsewhere": measure_busy_cores(5)}
            found = measure_start(kind, 1 if arguments.quick else 3)
            results["start"][kind.name] = found | around
            _say(f"start: {kind.name} {json.dumps(results['start'][kind.name])}")
    if arguments.system:
        return
    command = " ".join(["make bench" if len(sys.argv) == 1 else "bench/run.py", *sys.argv[1:]])
    directory = ROOT / ".cache" / "bench" if arguments.quick else RESULTS
    write_results(results, machine, directory, command)
    table = compose_table(read_results(directory))
    if not arguments.quick:
        write_documents()
    print(table)


if __name__ == "__main__":
    main()
