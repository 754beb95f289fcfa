"""Two versions of nbpulse side by side, on one machine with one of each part: what an event costs in each.

    python bench/versions.py --other CHECKOUT [--rounds 6] [--seconds 10] [--first]

Both run as `nbpulse up` runs them, of this checkout and of another one's `server/src`, under one Python with one set of
libraries; each round measures both, the second time in the other order. The figures that other work on the machine
disturbs least are processor time per event and its ratio within a round. Writes bench/results/versions.json.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import uvloop
from documents import write_documents
from measures import BATCH_EVENTS, measure_throughput
from report import RESULTS, describe_machine, write_results
from systems import Nbpulse, Neighbours, go_first

KINDS = {"single": 1, "batch": BATCH_EVENTS}


async def _measure(systems: dict[str, Nbpulse], rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """By kind of posts, of each round what was found of each version."""
    for system in systems.values():
        await system.connect()
    gc.collect()
    gc.freeze()
    gc.disable()  # as run.py does
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind, batch in KINDS.items():
            neighbours, one = Neighbours(list(systems.values())), {}
            for name in list(systems)[:: -1 if number % 2 else 1]:
                figures = await measure_throughput(systems[name], batch, seconds)
                one[name] = {key: figures[key] for key in ("stored_per_s", "cpu_us_per_event", "unstored")}
            found[kind].append(one | {"cores_busy_elsewhere": neighbours.measure_cores()})
            print(f"round {number + 1}, {kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
            gc.collect()
    for system in systems.values():
        await system.pool.close()
    return found


def weigh(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """
    Of each part, of all together and of the rate: both medians, and median, least and largest of the rounds' ratios
    (this version : the other).
    """

    def list_figures(one: dict[str, Any]) -> dict[str, float]:
        parts = one["cpu_us_per_event"]
        return parts | {"all": sum(parts.values()), "stored_per_s": one["stored_per_s"]}

    weighed = {}
    figures = [(list_figures(one["this"]), list_figures(one["other"])) for one in rounds]
    for name in figures[0][0]:
        pairs = [(this[name], other[name]) for this, other in figures]
        if any(other <= 0 for _, other in pairs):
            continue  # the supervisor, in a short window
        ratios = [this / other for this, other in pairs]
        weighed[name] = {
            "this": statistics.median(this for this, _ in pairs),
            "other": statistics.median(other for _, other in pairs),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
        }
    return weighed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="another checkout of nbpulse")
    parser.add_argument("--name", default="the other version", help="what the other one is, for the table")
    parser.add_argument("--rounds", type=int, default=6, help="how often both are measured (6)")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (10)")
    parser.add_argument("--first", action="store_true", help="with the processor before all others (root, Linux)")
    arguments = parser.parse_args()
    if arguments.first:
        go_first()
    source = (arguments.other / "server" / "src").resolve(strict=True)
    systems = {"this": Nbpulse(), "other": Nbpulse(PYTHONPATH=str(source))}
    try:
        for system in systems.values():
            system.start()
        rounds = uvloop.run(_measure(systems, arguments.rounds, arguments.seconds))
    finally:
        for system in systems.values():
            system.stop()
            system.remove()
    weighed = {kind: weigh(found) for kind, found in rounds.items()}
    result = {"other": arguments.name, "weighed": weighed, "rounds": rounds, "load_average": os.getloadavg()}
    # A checkout lies anywhere; where it lay says nothing to anybody.
    command = f"bench/versions.py --other CHECKOUT --rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    command += " --first" if arguments.first else ""
    write_results({"versions": result}, describe_machine(), RESULTS, command)
    write_documents()
    for kind, found in weighed.items():
        for name, one in found.items():
            print(f"{kind:7} {name:14} {one['other']:10,.1f} {one['this']:10,.1f}  x {one['ratio']:.3f}")


if __name__ == "__main__":
    main()
