"""How long a backup and its restore take, and how large the file is, for a ledger of many events.

    python bench/backup.py [--rows 1000000]

Both commands as an operator runs them, on data directories with the embedded servers (`nbpulse backup` starts and stops
them). A tenth of the events are errors with a sealed message; every event has its dedup row and its point.
Writes bench/results/backup.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from report import describe_machine

from nbpulse.crypto import EncryptedField
from nbpulse.embedded import EmbeddedPostgres, EmbeddedValkey
from nbpulse.migrations import migrate
from nbpulse.settings import Settings

RESULT = Path(__file__).parent / "results" / "backup.json"
STUDENTS = 200
SHARD = "(('x' || substr(md5(k.id::text), 1, 8))::bit(32)::bigint % 64)::smallint"
# One event every second in all, so that a million spans twelve days.
MOMENT = "date_trunc('milliseconds', now() - n * interval '1 second')"
EVENTS = f"""
INSERT INTO events (user_id, shard, event_id, occurred_at, received_at, ordinal, course_id, event_type, notebook_id,
    learning_session_id, cell_id, cell_index, cell_type, sequence, error_fingerprint, error_message, data)
SELECT k.id, {SHARD}, gen_random_uuid(), {MOMENT}, {MOMENT} + interval '80 ms', n / {STUDENTS}, $3,
    'cell_execution', $4, md5(k.id::text || n / 20000)::uuid, 'cell-' || n % 30, n % 30, 'code', n,
    CASE WHEN n % 10 = 0 THEN 'a1b2c3d4e5f60718' END, CASE WHEN n % 10 = 0 THEN $5 END,
    jsonb_build_object('status', CASE WHEN n % 10 = 0 THEN 'error' ELSE 'ok' END, 'has_error', n % 10 = 0,
        'execution_count', n % 97, 'execution_duration_ms', round((random() * 900)::numeric, 3))
FROM generate_series(1, $1::int) n, LATERAL (SELECT ($2::uuid[])[1 + n % {STUDENTS}] AS id) k
"""
IDS = """
INSERT INTO event_ids SELECT user_id, shard, event_id, ordinal, occurred_at, received_at FROM events
"""
POINTS = """
INSERT INTO timeseries.cell_executions SELECT user_id,
    (extract(epoch FROM occurred_at) * 1000)::bigint * 1000000 + ordinal % 1000000, 'week1.ipynb', cell_index,
    event_type, (data ->> 'execution_duration_ms')::float8, error_message IS NOT NULL,
    CASE WHEN error_message IS NOT NULL THEN 'NameError: name <name> is not defined' END,
    (data ->> 'execution_count')::int
FROM events
"""


async def fill(database_url: str, settings: Settings, rows: int) -> None:
    await migrate(database_url, {"nbpulse_api": "bench"})
    people, course, notebook = [uuid4() for _ in range(STUDENTS)], uuid4(), uuid4()
    seal = EncryptedField(settings.read_encryption_keys())
    message = seal.seal("name 'df' is not defined", table="events", column="error_message", user_id=people[0])
    owner = await asyncpg.connect(database_url)
    try:
        await owner.execute("INSERT INTO courses (id, title, short_name) VALUES ($1, 'x', 'x')", course)
        await owner.execute(
            "INSERT INTO notebooks (id, course_id, path) VALUES ($1, $2, 'week1.ipynb')", notebook, course
        )
        await owner.executemany("INSERT INTO users (id, username) VALUES ($1, $2)", [(one, one.hex) for one in people])
        await owner.execute(EVENTS, rows, people, course, notebook, message, timeout=1200)
        for statement in (IDS, POINTS):
            await owner.execute(statement, timeout=1200)
    finally:
        await owner.close()


def run(*arguments: str | Path) -> dict[str, Any]:
    """What the command answers, with the time its process took."""
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "nbpulse", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"process_s": round(time.perf_counter() - began_s, 1)}


def measure(directory: Path, rows: int) -> dict[str, Any]:
    old, new, file = directory / "old", directory / "new", directory / "b.zip"
    postgres, valkey = EmbeddedPostgres(old), EmbeddedValkey(old)
    postgres.start()
    valkey.start()
    try:
        asyncio.run(fill(postgres.url, Settings(data_dir=old), rows))
    finally:
        valkey.stop()
        postgres.stop()
    stored_bytes = sum(path.stat().st_size for path in (old / "postgresql" / "data" / "base").rglob("*"))
    written = run("backup", file, "--data", old, "--with-keys")
    restored = run("restore", file, "--data", new)
    assert written["events"] == restored["events"] == rows
    assert written["rows"] == restored["rows"]
    return {
        "events": rows,
        "rows_in_all_tables": written["rows"],
        "database_mb": round(stored_bytes / 1e6, 1),
        "file_mb": round(written["size_bytes"] / 1e6, 1),
        "backup_s": written["duration_s"],
        "backup_rows_per_s": round(written["rows"] / written["duration_s"]),
        "restore_s": restored["duration_s"],
        "restore_rows_per_s": round(restored["rows"] / restored["duration_s"]),
        "backup_process_s": written["process_s"],
        "restore_process_s": restored["process_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="events in the ledger (default 1,000,000)")
    rows = parser.parse_args().rows
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="nbpulse-bench-") as name:
        Path(name).chmod(0o711)
        figures = measure(Path(name), rows)
    result = {
        "command": f"bench/backup.py --rows {rows}",
        "machine": describe_machine(),
        "load_average_before": round(load_average, 1),
        "figures": figures,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
