"""Events on disk, from the moment they happen until the server has said what became of them.

Kernels that tell of themselves keep what happens in journals of their own first, for moments (journal.py). One SQLite
file (WAL) per user of a machine, shared by all kernels, because `sequence` is then one gapless
count per installation, and whichever kernel lives sends what a dead one left behind. Rows are leased to one
sender at a time; a Jupyter server's are its own from the first moment. A lease ends after 30 s (so long does what a
killed process held wait for another); a second sending is harmless by the event ids.
An event that is here already is not stored again: a server and a kernel that both saw a run agree on its id, and
the first of them is enough.

Promises: an event is on disk before it is sent and stays until it is accepted, set aside with the server's
reason (`status` shows it) or, beyond the size cap, dropped oldest first and counted. Whatever kills the
process, committed rows survive. `synchronous=NORMAL`: a power cut may take the last moments before it,
since an fsync per run (5-50 ms on a laptop's disk) would be felt in the notebook. Checkpoints, which do
fsync, run in the sender's thread only.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nbpulse_capture.membership import make_private_dir, make_private_file
from nbpulse_capture.rows import Leased, Row, Verdict

SIZE_CAP_BYTES = 50_000_000
LEASE_S = 30.0
KEPT_SENT_COUNT, SWEPT_EVERY = 100, 25  # each sweep is a write of its own
WAITING, SENT, SET_ASIDE = 0, 1, 2

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  sequence INTEGER PRIMARY KEY,
  event_id TEXT NOT NULL,
  account TEXT NOT NULL,
  state INTEGER NOT NULL DEFAULT 0,
  leased_until REAL NOT NULL DEFAULT 0,
  notebook_file TEXT,
  payload TEXT NOT NULL,
  reason TEXT
);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# Version 2: one event once; and the runs that a Jupyter server has seen begin, each with the event that will end it
# should that server never tell.
SCHEMA_2 = """
DELETE FROM events WHERE event_id <> '' AND sequence NOT IN (SELECT min(sequence) FROM events GROUP BY event_id);
CREATE UNIQUE INDEX IF NOT EXISTS one_event_once ON events (event_id) WHERE event_id <> '';
CREATE TABLE IF NOT EXISTS open_runs (
  end_id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  account TEXT NOT NULL,
  notebook_file TEXT,
  payload TEXT NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS run_ends AFTER INSERT ON events BEGIN
  DELETE FROM open_runs WHERE end_id = NEW.event_id;
END;
PRAGMA user_version = 2;
"""


class Outbox:
    """One connection to the outbox; safe to share between threads of one process."""

    def __init__(self, path: Path, *, busy_wait_s: float = 5.0, size_cap_bytes: int = SIZE_CAP_BYTES) -> None:
        self._path = path
        self._size_cap_bytes = size_cap_bytes
        self._lock = threading.RLock()
        self._swept_to = 0
        self._last: list[Callable[[], object]] = []
        self._just_put: set[str] = set()
        make_private_dir(path.parent)
        make_private_file(path)  # -wal and -shm take its mode
        try:
            self._db = self._open(busy_wait_s)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # not a database any more: keep the bytes, begin a new one
            path.replace(path.with_name(f"{path.name}.damaged-{int(time.time())}"))
            make_private_file(path)
            self._db = self._open(busy_wait_s)
            self.add_to_count("damaged_files", 1)

    def _open(self, busy_wait_s: float) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=busy_wait_s, isolation_level=None, check_same_thread=False)
        try:
            if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {self._size_cap_bytes * 13 // 10 // page_bytes}")
            if db.execute("PRAGMA user_version").fetchone()[0] < 2:
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {SCHEMA_2} COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the connection; rows stay."""
        with self._lock:
            self._db.close()

    def put(
        self, event: Mapping[str, Any], account: str, notebook_file: str | None = None, *, held_until: float = 0.0
    ) -> int | None:
        """
        Write one event to disk; its sequence, None where it is there already.

        take_batch() does not give it before `held_until` (or its amend()).
        """
        payload = to_json(event)
        with self._lock:
            if self._db.in_transaction:
                self._just_put.add(str(event["event_id"]))
            written = self._db.execute(
                "INSERT INTO events (event_id, account, notebook_file, payload, leased_until) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (event["event_id"], account, notebook_file, payload, held_until),
            )
            return written.lastrowid if written.rowcount else None

    def put_leased(self, event: dict[str, Any], account: str, notebook_file: str | None = None) -> Leased | None:
        """The same for a sender that is handed it at once: nobody else gets it, as if it came from take_batch()."""
        leased_until = time.time() + LEASE_S
        sequence = self.put(event, account, notebook_file, held_until=leased_until)
        if sequence is None:
            return None
        return Leased(account, leased_until, sequence, event, notebook_file)

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """One statement, alone in its transaction; for the other tables' own files."""
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def has_just_put(self, event_id: str) -> bool:
        """Whether that event was put in this very transaction."""
        return event_id in self._just_put

    def do_last(self, work: Callable[[], object]) -> None:
        """To be done when all else of this transaction is; at once where there is none."""
        with self._lock:
            if self._db.in_transaction:
                self._last.append(work)
            else:
                work()

    def take_batch(self, account: str, limit: int, *, now: float | None = None) -> list[Row]:
        """Lease up to `limit` waiting events of this account, oldest first; nobody else gets them."""
        now = time.time() if now is None else now
        free = "FROM events WHERE account = ? AND state = 0 AND leased_until < ? ORDER BY sequence LIMIT ?"
        with self._lock:
            if self._db.execute(f"SELECT 1 {free}", (account, now, 1)).fetchone() is None:
                return []  # no write, so no lock taken, while there is nothing to do
            rows = self._db.execute(
                f"UPDATE events SET leased_until = ? WHERE sequence IN (SELECT sequence {free})"  # noqa: S608
                " RETURNING sequence, payload, notebook_file",
                (now + LEASE_S, account, now, limit),
            ).fetchall()
        return [
            Row(sequence, json.loads(payload) | {"sequence": sequence}, notebook_file)
            for sequence, payload, notebook_file in sorted(rows)
        ]

    def release(self, rows: Iterable[Row], **notes: object) -> None:
        """Give leased rows back as they were sent, so that a repeat says the same; keep `notes` for `status`."""
        changes: list[list[Any]] = [
            [row.sequence, WAITING, None, row.get_new_words(), row.notebook_file] for row in rows
        ]
        with self._lock:
            self._change(changes)
            self._write_notes(notes)

    def settle(self, rows: Iterable[Row], verdicts: Iterable[Verdict], **notes: object) -> list[Row]:
        """
        Act on the server's word for the rows that were sent: accepted and duplicate are done, rejected is set aside.

        The rows are kept in the very words in which they were sent, for `what-is-recorded`. Gives the rows without a
        verdict.
        """
        verdict_of = {verdict.event_id: verdict for verdict in verdicts}
        changes: list[list[Any]] = []
        forgotten: list[Row] = []
        for row in rows:
            if (verdict := verdict_of.get(row.event["event_id"])) is None:
                forgotten.append(row)
                continue
            state = SET_ASIDE if verdict.status == "rejected" else SENT
            changes.append([row.sequence, state, verdict.reason or None, row.get_new_words(), None])
        newest = max((change[0] for change in changes), default=0)
        with self._lock:
            self._change(changes)
            if newest >= self._swept_to + SWEPT_EVERY:
                self._db.execute("DELETE FROM events WHERE state = 1 AND sequence <= ?", (newest - KEPT_SENT_COUNT,))
                self._swept_to = newest
            self._write_notes(notes)
        return forgotten

    def _change(self, changes: list[list[Any]]) -> None:
        """
        Rewrite rows from [sequence, state, reason, event or None for the same, notebook_file], in ONE statement.

        Between two statements of a transaction this thread may wait for the interpreter's lock, which a student's loop
        holds for 5 ms at a time; a run that ends meanwhile would wait for the file's lock all that while.
        """
        self._db.execute(
            "UPDATE events SET leased_until = 0, state = json_extract(value, '$[1]'),"
            " reason = json_extract(value, '$[2]'), payload = coalesce(json_extract(value, '$[3]'), payload),"
            " notebook_file = json_extract(value, '$[4]')"
            " FROM json_each(?) WHERE events.sequence = json_extract(value, '$[0]')",
            (to_json(changes),),
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside is written at once, or not at all."""
        with self._lock, self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            for work in self._last:
                work()
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        finally:
            self._last.clear()
            self._just_put.clear()

    def trim(self) -> int:
        """Drop the oldest events beyond the size cap, count them, and say how many went."""
        dropped_count = 0
        with self._lock:
            while self._get_size_bytes() > self._size_cap_bytes:
                found = self._db.execute(
                    "DELETE FROM events WHERE sequence IN"
                    " (SELECT sequence FROM events ORDER BY sequence LIMIT 500) RETURNING state"
                ).fetchall()
                if not found:
                    break
                dropped_count += sum(state != SENT for (state,) in found)
        if dropped_count:
            self.add_to_count("dropped", dropped_count)
        return dropped_count

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file when it has grown; the sender's thread pays the fsync."""
        wal = self._path.with_name(self._path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 4_000_000:
            with self._lock:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def erase(self, gone: Iterable[Row], cut: Iterable[Row] = ()) -> None:
        """`gone` may not be kept, of `cut` only what these rows hold: nothing else stays, not even in free pages."""
        with self._lock:
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute(
                "DELETE FROM events WHERE sequence IN (SELECT value FROM json_each(?))",
                (to_json([row.sequence for row in gone]),),
            )
            self._db.execute(
                "UPDATE events SET payload = json_extract(value, '$[1]') FROM json_each(?)"
                " WHERE events.sequence = json_extract(value, '$[0]')",
                (to_json([[row.sequence, row.event] for row in cut]),),
            )
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def erase_account(self, account: str) -> int:
        """Erase all events of an account that has left; says how many were still waiting."""
        with self._lock, self._transaction():
            (waiting_count,) = self._db.execute(
                "SELECT count(*) FROM events WHERE account = ? AND state = 0", (account,)
            ).fetchone()
            self._db.execute(
                "DELETE FROM events WHERE account = ? AND sequence <> (SELECT max(sequence) FROM events)", (account,)
            )
            self._db.execute("DELETE FROM open_runs WHERE account = ?", (account,))
            self._db.execute(  # one empty row stays, so that the sequence goes on from there
                "UPDATE events SET account = '', event_id = '', payload = '{}', notebook_file = NULL,"
                " reason = NULL, state = 1 WHERE account = ?",
                (account,),
            )
        with self._lock, suppress(sqlite3.OperationalError):  # somebody reads just now: the next checkpoint does it
            self._db.execute("VACUUM")  # what was deleted before leaves its traces in pages that are free
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return int(waiting_count)

    def count_events(self, account: str) -> dict[str, int]:
        """How many events wait and how many the server has refused."""
        with self._lock:
            found = dict(
                self._db.execute(
                    "SELECT state, count(*) FROM events WHERE account = ? GROUP BY state", (account,)
                ).fetchall()
            )
        return {"waiting": found.get(WAITING, 0), "set_aside": found.get(SET_ASIDE, 0)}

    def read_last_events(self, limit: int) -> list[tuple[str, dict[str, Any], str | None]]:
        """The newest events as (waiting | sent | set_aside, event, the server's reason), oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT state, sequence, payload, reason FROM events WHERE account <> ''"
                " ORDER BY sequence DESC LIMIT ?",
                (limit,),
            ).fetchall()
        names = {WAITING: "waiting", SENT: "sent", SET_ASIDE: "set_aside"}
        return [
            (names[state], json.loads(payload) | {"sequence": sequence}, reason)
            for state, sequence, payload, reason in reversed(rows)
        ]

    def write_notes(self, **notes: object) -> None:
        """Keep small facts for `status`."""
        with self._lock:
            self._write_notes(notes)

    def _write_notes(self, notes: Mapping[str, object]) -> None:
        """Small facts for `status` (last success, last error), of all kernels of this user."""
        if notes:
            self._db.execute(
                "REPLACE INTO notes (name, value) SELECT key, value FROM json_each(?)",
                (to_json({name: json.dumps(value) for name, value in notes.items()}),),
            )

    def read_notes(self) -> dict[str, Any]:
        """All facts by name."""
        with self._lock:
            return {n: json.loads(v) for n, v in self._db.execute("SELECT name, value FROM notes").fetchall()}

    def add_to_count(self, name: str, by: int) -> None:
        """Add to a counter among the notes."""
        with self._lock:
            self._db.execute(
                "INSERT INTO notes (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
                (name, str(by), by),
            )

    def count_untold_losses(self) -> int:
        """How many dropped events no event tells of yet."""
        found = dict(self.execute("SELECT name, CAST(value AS INTEGER) FROM notes WHERE name LIKE 'dropped%'"))
        return int(found.get("dropped", 0) - found.get("dropped_told", 0))

    def _get_size_bytes(self) -> int:
        pages, free, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)


to_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps() would make a new encoder each time
