"""The primary is killed under load and its replica promoted, again and again: is anything lost that was acknowledged?

    PYTHONPATH=server/tests python bench/replica_promotion.py [--rounds 20] [--controls 3]

Each round has two new embedded servers. Four workers' connections write batches of 20 events for 5 to 6.2 s; in the
last second the replica's receiver stands still (SIGSTOP); then kill -9 of both, a new start and promotion of the
replica, and all is delivered again.
A control is the same without `synchronous_standby_names`: it must lose some, else the rounds would prove nothing.
Writes bench/results/replica_promotion.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from documents import write_documents
from report import RESULTS, describe_machine, write_results

from failovers import run_failover
from servers import make_data_dir


def run_rounds(count: int, *, is_synchronous: bool) -> dict[str, Any]:
    """The sums over `count` rounds."""
    found = []
    for number in range(count):
        with make_data_dir() as directory:
            found.append(run_failover(directory, is_synchronous=is_synchronous, load_s=5 + number % 10 * 0.13))
        print(number + 1, "synchronous" if is_synchronous else "control", found[-1], flush=True)
    return {
        "rounds": count,
        "acknowledged": sum(one.acknowledged for one in found),
        "lost": sum(one.lost for one in found),
        "wrong": sum(one.wrong for one in found),
        "promotion_s": round(statistics.median(one.promotion_s for one in found), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--controls", type=int, default=3)
    arguments = parser.parse_args()
    found = {
        "synchronous": run_rounds(arguments.rounds, is_synchronous=True),
        "control": run_rounds(arguments.controls, is_synchronous=False),
    }
    command = " ".join(["bench/replica_promotion.py", *sys.argv[1:]])
    write_results({"replica_promotion": found}, describe_machine(), RESULTS, command)
    write_documents()


if __name__ == "__main__":
    main()
