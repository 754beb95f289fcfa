"""The runs that have begun and not ended, on disk: a Jupyter server that is killed leaves no run open for ever.

With each start a server also keeps the event that would end the run as `unknown`. Any end of the run removes it (a
trigger of the outbox's), whoever tells it. What is left of a server that lives no more is put into the outbox by
the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nbpulse_capture.outbox import Outbox


def keep_open(outbox: Outbox, end: Mapping[str, Any], account: str, notebook_file: str | None, owner: str) -> None:
    """
    The run has begun: `end` is told of it should `owner` never do.

    Of a run that begins and ends in one transaction nothing is kept.
    """

    def keep() -> None:
        if not outbox.has_just_put(end["event_id"]):
            outbox.execute(
                "INSERT OR REPLACE INTO open_runs (end_id, owner, account, notebook_file, payload)"
                " SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM events WHERE event_id = ?)",
                (end["event_id"], owner, account, notebook_file, json.dumps(end), end["event_id"]),
            )

    outbox.do_last(keep)


def amend(outbox: Outbox, event_id: str, end_id: str, changes: Mapping[str, Any], notebook_file: str | None) -> None:
    """What was not known yet when the event was put: now it is, and the event may go."""
    patch = json.dumps(changes)
    outbox.execute(
        "UPDATE events SET payload = json_patch(payload, ?), notebook_file = ?, leased_until = 0"
        " WHERE event_id = ? AND state = 0",
        (patch, notebook_file, event_id),
    )
    change = "UPDATE open_runs SET payload = json_patch(payload, ?), notebook_file = ? WHERE end_id = ?"
    outbox.do_last(lambda: outbox.execute(change, (patch, notebook_file, end_id)))


def end_forgotten_runs(outbox: Outbox, find_end: Callable[[str], str | None]) -> int:
    """
    Put the ends of all runs whose owner is gone; says how many.

    `find_end` gives the time at which an owner was last known to live, None while it does.
    """
    rows = outbox.execute("SELECT end_id, owner, account, notebook_file, payload FROM open_runs")
    ended_count = 0
    for _, owner, account, notebook_file, payload in rows:
        if (ended_at := find_end(owner)) is None:
            continue
        end: dict[str, Any] = json.loads(payload)
        end["occurred_at"] = max(end["occurred_at"], ended_at)  # both in UTC, written alike
        outbox.put(end, account, notebook_file)
        ended_count += 1
    return ended_count
