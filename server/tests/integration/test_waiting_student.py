"""A student who has to be let in first, by their own computer's real sender: told in words, and nothing lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nbpulse_capture import cli
from nbpulse_capture.desk import describe_membership
from nbpulse_capture.execution import describe_event
from nbpulse_capture.membership import MembershipFile, get_outbox_file
from nbpulse_capture.outbox import Outbox
from nbpulse_capture.sender import Sender
from stage import Stage


async def wait_until(is_so: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_what_a_student_runs_before_being_let_in_arrives_afterwards(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("CONFIG", "config"), ("DIR", "data")):
        monkeypatch.setenv(f"NBPULSE_CAPTURE_{name}", str(tmp_path / value))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    course = f"/api/v1/courses/{stage.course.id}"
    await stage.http.patch(f"{course}/entry", headers=stage.staff, json={"needs_approval": True})
    joining = ["join", stage.url, stage.course.join_code, "--name", "高橋 葵", "--yes"]
    assert await asyncio.to_thread(cli.main, joining) == 0
    assert "The teacher has to let you in first." in "".join(capsys.readouterr())
    membership = MembershipFile().read()
    assert membership is not None
    outbox, sender = Outbox(get_outbox_file()), Sender(get_outbox_file(), MembershipFile(), linger_s=0)
    sender.start()
    try:
        place = {"notebook_path": "week1.ipynb", "notebook_id": None, "cell_id": "c", "cell_index": 0, "sequence": 1}
        outbox.put(describe_event("cell_execution", place, {"status": "ok"}), membership.account)
        sender.wake()
        await wait_until(lambda: describe_membership(membership)["server"] == "approval", 30)
        assert await asyncio.to_thread(cli.main, ["status"]) == 0, "nobody has to do anything here"
        assert "The teacher has to let you in first." in "".join(capsys.readouterr())
        assert await stage.work() == 0
        approval = {"user_ids": [membership.user_id]}
        answer = await stage.http.post(f"{course}/people/approvals", headers=stage.staff, json=approval)
        assert answer.json() == {"approved": [membership.user_id]}
        await wait_until(lambda: outbox.count_events(membership.account)["waiting"] == 0, 60)
        assert describe_membership(membership)["server"] == "connected"
    finally:
        await asyncio.to_thread(sender.stop, 5)
        outbox.close()
    assert await stage.work() == 1
    assert [one["name"] for one in (await stage.snapshot())["students"]] == ["高橋 葵"]
