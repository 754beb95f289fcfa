"""A student's Jupyter as it really is: nbpulse-capture's own outbox and sender, in a process made to be killed.

`python -m torture.capture_client DIRECTORY JOURNAL [--drain]`; the membership stands in NBPULSE_CAPTURE_CONFIG. An
event is noted as promised ("ok … spooled") once the outbox has it; with --drain it makes none and ends when
all are sent.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from nbpulse_capture.membership import MembershipFile
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.sender import Sender


def main() -> int:
    directory, journal_path, *rest = sys.argv[1:]
    membership_file = MembershipFile()
    membership = membership_file.read()
    assert membership is not None
    path = Path(directory) / "outbox.sqlite3"
    outbox = Outbox(path)
    sender = Sender(path, membership_file)
    sender.start()
    if rest:
        deadline_s = time.monotonic() + 60
        while waiting := outbox.count_events(membership.account)["waiting"]:
            assert time.monotonic() < deadline_s, f"{waiting} events still wait: {outbox.read_notes()}"
            sender.wake()
            time.sleep(0.1)
        sender.stop(2)
        return 0
    with Path(journal_path).open("ab", buffering=0) as journal:
        while True:
            event_id = str(uuid4())
            event = {
                "schema_version": 1,
                "event_id": event_id,
                "event_type": "cell_execution",
                "occurred_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "session_id": membership.course_id,
                "notebook_path": "torture.ipynb",
                "cell_id": "cell-capture",
                "cell_index": 21,
                "data": {"status": "ok", "execution_duration_ms": 1.0},
            }
            journal.write(f"new {event_id} {membership.user_id} cell_execution cell-capture ok\n".encode())
            outbox.put(event, membership.account)
            journal.write(f"ok {event_id} spooled\n".encode())
            os.fdatasync(journal.fileno())
            sender.wake()
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
