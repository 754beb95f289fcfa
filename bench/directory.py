"""What the write-ahead log of a directory and its shard databases consists of, as a class goes on.

    PYTHONPATH=server/tests .venv/bin/python bench/directory.py [--primaries 4] [--rate 300] [--seconds 40]
        [--wal-compression pglz]

A class of 200 sends single posts at a constant rate; a run ends after as long as it may take (lognormal, 0.12 s in the
median). First everybody has run every cell once: a learner's new cell is written once in a term. Then a checkpoint each
20 s, for the full-page images that follow it: at 300 events/s each student sends within 20 s what one of a day sends
between two checkpoints (5 minutes at 0.1 a second). The log is read with `pg_walinspect`. Writes
bench/results/directory.json; with compression a result of its own.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import uvloop
from capacity import Shape, Site, ask, drain
from load import CELLS, Load, Post, Student, make_run
from measures import Figures
from report import RESULTS, describe_machine, write_results
from systems import STUDENTS, Neighbours, measure_cpu_s

RUN_S = 0.12
CHECKPOINT_S = 20
_LSN = "SELECT pg_current_wal_insert_lsn() AS lsn"
_KINDS = """
SELECT sum(record_size)::bigint AS records, sum(fpi_size)::bigint AS page_images FROM pg_get_wal_stats($1, $2, FALSE)
"""
# A record counts for the first page it names.
_TABLES = """
SELECT pg_filenode_relation(0, relfilenode)::regclass::text AS name, sum(page_images)::bigint AS page_images,
    sum(records)::bigint AS records
FROM (
    SELECT relfilenode, block_fpi_length AS page_images,
        CASE WHEN row_number() OVER (PARTITION BY start_lsn ORDER BY block_id) = 1
            THEN record_length - sum(block_fpi_length) OVER (PARTITION BY start_lsn) ELSE 0 END AS records
    FROM pg_get_wal_block_info($1, $2, FALSE)
    WHERE reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
) pages GROUP BY 1 ORDER BY sum(page_images + records) DESC LIMIT 12
"""


def make_paired_posts(students: Sequence[Student], rate: float) -> Iterator[Post]:
    """Endless posts of one event each, at `rate` a second: the start of a run, and its end when that is due."""
    draw, ending, turns = random.Random(7), list[tuple[int, int]](), itertools.cycle(range(len(students)))
    for number in itertools.count():
        if ending and ending[0][0] <= number:
            student = students[heapq.heappop(ending)[1]]
        else:
            place = next(one for one in turns if students[one].sequence % 2 == 0)  # whose last run has ended
            student = students[place]
            heapq.heappush(ending, (number + max(1, round(draw.lognormvariate(math.log(RUN_S), 0.8) * rate)), place))
        body, event_id, cell_id = make_run(student)
        yield Post(body, student, 1, event_id, cell_id)


async def _read_lsns(site: Site) -> dict[str, int]:
    return {name: (await ask(url, _LSN))[0]["lsn"] for name, url in site.urls.items()}


async def measure(site: Site, rate: int, seconds: float, wal_compression: str) -> Figures:
    await site.connect()
    for url in site.urls.values():
        await ask(url, f"ALTER SYSTEM SET wal_compression = {wal_compression}")
        await ask(url, "SELECT pg_reload_conf()")
        await ask(url, "CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        await ask(url, "SELECT pg_create_physical_replication_slot('bench', TRUE)")  # keeps the log past a checkpoint
    async with Load(site.port, 100, make_paired_posts(site.students, rate), other_ports=site.other_ports) as load:
        load.may_reopen = True
        await load.run_open(rate, 1.1 * 2 * CELLS * STUDENTS / rate)
        await load.settle()
        await drain(site, load)
        neighbours, cpu_s, accepted = Neighbours([site]), measure_cpu_s(site.list_pids()), load.tally.accepted
        before = await _read_lsns(site)
        for _ in range(round(seconds / CHECKPOINT_S)):
            for url in site.urls.values():
                await ask(url, "CHECKPOINT")
            await load.run_open(rate, CHECKPOINT_S)
        await load.settle()
        await drain(site, load)
        after, events = await _read_lsns(site), load.tally.accepted - accepted
        used_s = {name: one - cpu_s[name] for name, one in measure_cpu_s(site.list_pids()).items()}
    kinds: Counter[str] = Counter()
    tables: dict[str, Counter[str]] = {"directory": Counter(), "shards": Counter()}
    for name, url in site.urls.items():
        part, span = "directory" if name == "main" else "shards", (before[name], after[name])
        for kind, size in (await ask(url, _KINDS, *span))[0].items():
            kinds[f"{part}_{kind}"] += size
        for row in await ask(url, _TABLES, *span):
            tables[part][row["name"]] += row["page_images"] + row["records"]
    await site.pool.close()
    total = {part: kinds[f"{part}_records"] + kinds[f"{part}_page_images"] for part in tables}
    return {
        "events": events,
        "cores_busy_elsewhere": neighbours.measure_cores(),
        "cpu_us_per_event": {name: round(1e6 * one / events, 1) for name, one in used_s.items()},
        "directory_of_shards": round(total["directory"] / total["shards"], 3),
        "wal_bytes_per_event": {name: round(size / events) for name, size in kinds.items()},
        "wal_bytes_per_event_by_table": {
            part: {name: round(size / events, 1) for name, size in counts.most_common(16)}
            for part, counts in tables.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--primaries", type=int, default=4, choices=(2, 4))
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--wal-compression", default="off", choices=("off", "pglz", "lz4", "zstd"))
    options = parser.parse_args()
    method = options.wal_compression
    site = Site(Shape(options.primaries, 1, 1))
    try:
        site.start()
        gc.collect()
        found = uvloop.run(measure(site, options.rate, options.seconds, method))
    finally:
        site.stop()
        site.remove()
    command = f"bench/directory.py --primaries {options.primaries} --rate {options.rate} --seconds {options.seconds:g}"
    command += f" --wal-compression {method}" * (method != "off")
    write_results({"directory" + f"_{method}" * (method != "off"): found}, describe_machine(), RESULTS, command)


if __name__ == "__main__":
    main()
