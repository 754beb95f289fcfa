"""The live path: snapshot, frames, resync, two API processes, and who may watch."""

import asyncio
import json
import random
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from boards import Board, follow, read, settle
from nbpulse.embedded import EmbeddedValkey
from nbpulse.errors import Unavailable
from nbpulse.hub import view
from nbpulse.identity import asking_as
from nbpulse.stream import LANES
from stage import Stage, make_run, open_stage, serve_api
from stores import CITUS_URL


async def make_class(stage: Stage, students: int) -> list[str]:
    """A class whose notebook is known: everybody has run its first cell. Their tokens."""
    tokens = [(await stage.join(f"student {number}"))["token"] for number in range(students)]
    for token in tokens:
        await stage.post(token, make_run(0))
    await stage.work()
    return tokens


async def test_a_run_changes_its_square_on_the_board_within_a_second(stage: Stage) -> None:
    (token,) = await make_class(stage, 1)
    board = Board(first := await stage.snapshot())
    async with stage.watch(first) as socket:
        for cell, status, square in ((1, "ok", "1"), (2, "error", "3"), (2, "ok", "1")):
            await stage.post(token, make_run(cell, status))
            started = time.monotonic()
            await stage.work()
            await follow(
                socket,
                board,
                lambda b, c=cell, s=square: len(b.cells) > c and b.students[0]["s"][c] == s,  # type: ignore[misc]
            )
            assert time.monotonic() - started < 1.5


async def test_snapshot_and_frames_show_what_a_later_snapshot_shows(stage: Stage) -> None:
    """The contract of `seq`: whenever a board starts, it ends where the others are."""
    chance = random.Random(7)
    tokens = await make_class(stage, 12)
    boards: list[tuple[Board, ClientConnection]] = []
    async with asyncio.timeout(60), asyncio.TaskGroup():
        sockets = []
        for _ in range(6):
            for token in chance.sample(tokens, 8):
                runs = [make_run(chance.randrange(8), chance.choice(["ok", "ok", "error"])) for _ in range(4)]
                if chance.random() < 0.3:
                    kind = chance.choice(["help_request", "help_cancel"])
                    runs.append(make_run(event_type=kind, notebook_path=None, data={}))
                await stage.post(token, runs)
            await stage.work()
            await asyncio.sleep(chance.random() / 3)
            snapshot = await stage.snapshot()
            watcher = stage.watch(snapshot)
            boards.append((Board(snapshot), await watcher.__aenter__()))
            sockets.append(watcher)
        tokens.append((await stage.join("late comer"))["token"])
        await stage.post(tokens[-1], make_run(3))
        await stage.work()
        await asyncio.sleep(2.5)  # the next look at PostgreSQL
        await asyncio.gather(*(settle(socket, board) for board, socket in boards))
        last = Board(await stage.snapshot())
        for board, _ in boards:
            assert board.seq == last.seq
            assert board.show() == last.show()
        for watcher in sockets:
            await watcher.__aexit__(None, None, None)
    assert len(last.students) == 13


@pytest.mark.parametrize("seed", range(2))
async def test_viewers_that_hang_up_at_random_and_come_back_end_where_the_class_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Some come back within what the ring keeps, others read a snapshot; none is left behind."""
    monkeypatch.setattr(view, "RING_S", 0.6)
    chance = random.Random(seed)
    tokens = await make_class(stage, 8)
    boards = [Board(await stage.snapshot()) for _ in range(5)]
    resumed = resyncs = 0

    async def come_back(place: int, *, stays: bool) -> None:
        """Go on from what is known; read anew where the frames between are no longer there; hang up again."""
        nonlocal resumed, resyncs
        board = boards[place]
        async with stage.watch({"epoch": board.epoch, "seq": board.seq}) as socket:
            resumed += 1
            while stays or chance.random() < 0.7:
                try:
                    message = json.loads(await asyncio.wait_for(socket.recv(), 0.5))
                except TimeoutError:
                    return
                if message["t"] == "resync":
                    resyncs += 1
                    board = boards[place] = Board(await stage.snapshot())
                    await socket.send(json.dumps({"t": "resume", "epoch": board.epoch, "after_seq": board.seq}))
                elif message["t"] == "d":
                    board.apply(message)

    for _ in range(6):
        for token in chance.sample(tokens, 5):
            runs = [make_run(chance.randrange(6), chance.choice(["ok", "error", "error"])) for _ in range(3)]
            await stage.post(token, runs)
        await stage.work()
        await asyncio.gather(*(come_back(place, stays=False) for place in chance.sample(range(5), 3)))
    async with asyncio.timeout(60):
        while True:  # something may move by itself meanwhile, as the charts do each half minute
            await asyncio.gather(*(come_back(place, stays=True) for place in range(5)))
            last = Board(await stage.snapshot())
            if all(board.seq == last.seq for board in boards):
                break
    for board in boards:
        assert board.show() == last.show()
    assert resumed > resyncs > 0


async def test_two_apis_show_the_same_class(stage: Stage, stage_database: str, embedded_valkey: str) -> None:
    tokens = await make_class(stage, 5)
    async with open_stage(stage_database, embedded_valkey) as other:
        other.course, other.teacher_token = stage.course, stage.teacher_token
        boards = [Board(await one.snapshot()) for one in (stage, other)]
        assert boards[0].epoch != boards[1].epoch
        async with (
            stage.watch({"epoch": boards[0].epoch, "seq": boards[0].seq}) as first,
            other.watch({"epoch": boards[1].epoch, "seq": boards[1].seq}) as second,
        ):
            for number, token in enumerate(tokens):
                await (stage if number % 2 else other).post(token, [make_run(1, "error"), make_run(2)])
            await stage.work()
            await asyncio.gather(settle(first, boards[0], 2.5), settle(second, boards[1], 2.5))
    shown = [board.show() for board in boards]
    assert shown[0] == shown[1]
    assert shown[0]["students"][0]["s"] == "131"


async def test_a_lost_publish_is_healed_from_the_database(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (token,) = await make_class(stage, 1)
    first = await stage.snapshot()
    board = Board(first)

    async def lose(events: Any, states: Any) -> None:
        return None

    async with stage.watch(first) as socket:
        monkeypatch.setattr(stage._publisher, "publish", lose)
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "3")


async def test_a_skipped_revision_brings_the_skipped_square(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (token,) = await make_class(stage, 1)
    await stage.post(token, make_run(1))
    await stage.work()
    await stage.snapshot()
    await asyncio.sleep(0.6)
    first = await stage.snapshot()
    board = Board(first)
    publish = stage._publisher.publish

    async def lose(events: Any, states: Any) -> None:
        return None

    async with stage.watch(first) as socket:
        monkeypatch.setattr(stage._publisher, "publish", lose)
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        monkeypatch.setattr(stage._publisher, "publish", publish)
        await stage.post(token, make_run(1, "error"))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "33")


async def test_a_viewer_resumes_from_the_ring_and_resyncs_beyond_it(stage: Stage) -> None:
    (token,) = await make_class(stage, 1)
    first = await stage.snapshot()
    board = Board(first)
    async with stage.watch(first) as socket:
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "3")
    await stage.post(token, make_run(0))
    await stage.work()
    await asyncio.sleep(0.6)
    async with stage.watch({"epoch": board.epoch, "seq": board.seq}) as socket:
        await follow(socket, board, lambda b: b.students[0]["s"] == "1")
        await socket.send(json.dumps({"t": "resume", "epoch": board.epoch, "after_seq": board.seq + 1000}))
        while (message := await read(socket))["t"] != "resync":
            assert message["t"] == "d"
    async with stage.watch({"epoch": "0" * 16, "seq": 5}) as socket:
        hello = await read(socket)
        assert hello["epoch"] == board.epoch
        assert hello["t"] == "hello"


async def test_a_snapshot_of_another_process_is_answered_with_ones_own_on_the_same_line(stage: Stage) -> None:
    """Behind a proxy a second question may end at the other process every time."""
    (token,) = await make_class(stage, 1)
    async with stage.watch(await stage.snapshot()) as socket:
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        await socket.send(json.dumps({"t": "resume", "epoch": "0" * 16, "after_seq": 900}))
        while (message := await read(socket))["t"] != "snapshot":
            assert message["t"] in ("hello", "d")
        board = Board(message["snapshot"])
        await follow(socket, board, lambda b: b.students[0]["s"] == "3")
        await stage.post(token, make_run(0))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "1")
        await settle(socket, board)
        assert board.show() == Board(await stage.snapshot()).show()


async def test_at_most_four_frames_a_second_however_much_happens(stage: Stage) -> None:
    tokens = await make_class(stage, 3)
    first = await stage.snapshot()
    async with stage.watch(first) as socket:
        await read(socket)
        frames = []

        async def collect() -> None:
            while True:
                message = json.loads(await socket.recv())
                frames.append(message) if message["t"] == "d" else None

        collector = asyncio.create_task(collect())
        started = time.monotonic()
        while time.monotonic() - started < 2:
            for token in tokens:
                await stage.post(token, make_run(random.randrange(5), random.choice(["ok", "error"])))
            await stage.work()
        collector.cancel()
        await asyncio.gather(collector, return_exceptions=True)
    assert 2 <= len(frames) <= 10


async def test_a_help_request_is_an_alert_with_its_words_and_goes_with_the_cancel(stage: Stage) -> None:
    (token,) = await make_class(stage, 1)
    first = await stage.snapshot()
    board = Board(first)
    async with stage.watch(first) as socket:
        request = make_run(event_type="help_request", notebook_path=None, data={"message": "助けて"})
        await stage.post(token, request)
        await stage.work()
        await follow(socket, board, lambda b: any(alert["kind"] == "help" for alert in b.alerts.values()))
        assert [alert["text"] for alert in board.alerts.values()] == ["助けて"]
        inbox = await stage.http.get("/api/v1/me/inbox?wait_s=5", headers={"Authorization": f"Bearer {token}"})
        assert inbox.json()["help"]["open"] is True
        waiting = asyncio.create_task(
            stage.http.get(
                f"/api/v1/me/inbox?wait_s=9&after={inbox.json()['after']}",
                headers={"Authorization": f"Bearer {token}"},
            )
        )
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await stage.post(token, make_run(event_type="help_cancel", notebook_path=None, data={}, sequence=2))
        await stage.work()
        started = time.monotonic()
        assert (await waiting).json()["help"]["open"] is False
        assert time.monotonic() - started < 2
        await follow(socket, board, lambda b: not b.alerts)


async def test_presence_makes_somebody_connected(stage: Stage) -> None:
    await make_class(stage, 1)
    second = await stage.join("second")
    first = await stage.snapshot()
    board = Board(first)

    def find_status(board: Board) -> str:
        return next((one["st"] for one in board.students.values() if one["id"] == second["user_id"]), "unknown")

    async with stage.watch(first) as socket:
        await follow(socket, board, lambda b: len(b.students) == 2)
        assert find_status(board) == "offline"
        now = make_run()["occurred_at"]
        await stage.post(second["token"], {"event_type": "presence", "occurred_at": now, "data": {"state": "idle"}})
        await follow(socket, board, lambda b: find_status(b) == "ok")


async def test_the_view_goes_on_while_the_database_is_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (token,) = await make_class(stage, 1)
    first = await stage.snapshot()
    board = Board(first)

    async def away(*_: Any) -> None:
        raise Unavailable("NB-2003")

    async with stage.watch(first) as socket:
        for name in ("load_class", "load_pulse", "load_states", "load_roster"):
            monkeypatch.setattr(stage.parts.classes, name, away)
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "3")
        await asyncio.sleep(2.5)
        assert (await stage.snapshot())["students"][0]["s"] == "3"


@pytest.mark.skipif(CITUS_URL is not None, reason="no moment is the same on all nodes: docs/operations.md, Citus")
async def test_a_run_stored_while_a_class_is_loaded_is_counted_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (token,) = await make_class(stage, 1)
    read_states = stage.parts.classes._read_states

    async def read_then_store(*arguments: Any) -> Any:
        states = await read_states(*arguments)
        await stage.post(token, make_run(1, "error"))
        await stage.work()
        return states

    monkeypatch.setattr(stage.parts.classes, "_read_states", read_then_store)
    with asking_as(stage.teacher_id):
        loaded = await stage.parts.classes.load_class(stage.course.id, None)
    assert [len(state.cells) for state in loaded.states] == [1]
    assert [runs for *_, runs, _ in loaded.runs] == [1]


async def test_a_board_that_waits_for_the_class_is_taken_to_its_first_notebook(stage: Stage) -> None:
    token = (await stage.join())["token"]
    first = await stage.snapshot()
    assert first["notebook"] is None
    async with stage.watch(first) as socket:
        assert (await read(socket))["t"] == "hello"
        await stage.post(token, make_run(0))
        await stage.work()
        while (await read(socket))["t"] != "resync":
            pass
        second = await stage.snapshot()
        assert second["notebook"]["path"] == "week1.ipynb"
        await socket.send(json.dumps({"t": "resume", "epoch": second["epoch"], "after_seq": second["seq"]}))
        board = Board(second)
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        await follow(socket, board, lambda b: b.students[0]["s"] == "3")


async def test_another_notebook_is_a_view_of_its_own(stage: Stage) -> None:
    (token,) = await make_class(stage, 1)
    await stage.post(token, [make_run(number, "error", notebook_path="week2.ipynb") for number in range(3)])
    await stage.work()
    week1 = next(one for one in (await stage.snapshot())["notebooks"] if one["path"] == "week1.ipynb")
    board = await stage.snapshot(notebook=week1["id"])
    assert (board["notebook"]["path"], board["students"][0]["s"]) == ("week1.ipynb", "1")
    week2 = next(one for one in board["notebooks"] if one["path"] == "week2.ipynb")
    async with stage.watch(board, notebook=week1["id"]) as socket:
        await read(socket)
        await socket.send(json.dumps({"t": "notebook", "id": week2["id"]}))
        while (await read(socket))["t"] != "resync":
            pass
        other = await stage.snapshot(notebook=week2["id"])
        assert (other["students"][0]["s"], other["epoch"] != board["epoch"]) == ("333", True)
        await socket.send(json.dumps({"t": "resume", "epoch": other["epoch"], "after_seq": other["seq"]}))
        shown = Board(other)
        await stage.post(token, make_run(1, notebook_path="week2.ipynb"))
        await stage.work()
        await follow(socket, shown, lambda b: b.students[0]["s"] == "313")


async def test_boards_go_on_after_the_wire_was_cut(stage_database: str, data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        async with open_stage(stage_database, server.url) as stage:
            (token,) = await make_class(stage, 1)
            first = await stage.snapshot()
            board = Board(first)
            async with stage.watch(first) as socket:
                server.stop()
                await asyncio.sleep(0.5)
                assert (await stage.snapshot())["students"][0]["s"] == "1"
                server.start()
                deadline = time.monotonic() + 10
                while (await stage.post(token, make_run(0, "error"))).status_code != 202:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
                while not await work_patiently(stage):
                    assert time.monotonic() < deadline
                await follow(socket, board, lambda b: b.students[0]["s"] == "3")
    finally:
        server.stop()


async def work_patiently(stage: Stage) -> int:
    """The worker's part while its connections come back."""
    try:
        return await stage.work()
    except Unavailable:
        for lane in LANES:
            stage._worker.replay_pending(lane)
        await asyncio.sleep(0.1)
        return 0


async def test_a_stopping_api_tells_its_boards_to_come_back(
    stage: Stage, stage_database: str, embedded_valkey: str
) -> None:
    async with AsyncExitStack() as stack:
        url, _ = await stack.enter_async_context(serve_api(stage_database, embedded_valkey))
        async with connect(f"{url.replace('http', 'ws')}/api/v1/courses/{stage.course.id}/ws") as socket:
            await socket.send(json.dumps({"t": "hello", "token": stage.teacher_token}))
            assert (await read(socket))["t"] == "hello"
            await stack.aclose()
            await expect_close(socket, 1012)


# --- who may watch ----------------------------------------------------------------------------------------------------


async def expect_close(socket: ClientConnection, code: int) -> None:
    async def read_on() -> None:
        while True:
            await socket.recv()

    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(read_on(), 8)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


def url_of(stage: Stage) -> str:
    return f"{stage.url.replace('http', 'ws')}/api/v1/courses/{stage.course.id}/ws"


async def test_a_ticket_opens_one_socket(stage: Stage) -> None:
    answer = await stage.http.post(f"/api/v1/courses/{stage.course.id}/tickets", headers=stage.staff)
    assert answer.json()["expires_in_s"] == 30
    hello = json.dumps({"t": "hello", "ticket": answer.json()["ticket"]})
    async with connect(url_of(stage)) as first, connect(url_of(stage)) as second:
        await first.send(hello)
        assert (await read(first))["t"] == "hello"
        await second.send(hello)
        await expect_close(second, 4401)


async def test_a_ticket_is_for_its_course(stage: Stage) -> None:
    other = await stage.courses.ensure_course("Another", f"o{uuid4().hex[:8]}")
    await stage.courses.ensure_teacher(other.id)
    answer = await stage.http.post(f"/api/v1/courses/{other.id}/tickets", headers=stage.staff)
    if answer.status_code == 404:  # the token's cached yes is older than the course
        pytest.fail(answer.text)
    async with connect(url_of(stage)) as socket:
        await socket.send(json.dumps({"t": "hello", "ticket": answer.json()["ticket"]}))
        await expect_close(socket, 4401)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"t": "hello"}', 4401),
        ('{"t": "hello", "token": "nbp_staff_x_y"}', 4401),
        ('{"t": "hello", "ticket": "nothing"}', 4401),
        ('{"t": "resume"}', 4401),
        ("no json", 1003),
        (b"\x00\x01", 1003),
        (None, 4401),
    ],
)
async def test_who_proves_nothing_hears_nothing(
    stage: Stage, first: str | bytes | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.api.sockets.FIRST_MESSAGE_S", 0.5)
    async with connect(url_of(stage)) as socket:
        if first is not None:
            await socket.send(first)
        await expect_close(socket, code)


async def test_a_student_may_not_watch(stage: Stage) -> None:
    token = (await stage.join())["token"]
    async with connect(url_of(stage)) as socket:
        await socket.send(json.dumps({"t": "hello", "token": token}))
        await expect_close(socket, 4403)


async def test_a_page_of_another_site_is_not_let_in(stage: Stage) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url_of(stage), origin="https://elsewhere.example"):  # type: ignore[arg-type]
            pass
    assert refused.value.response.status_code == 403
    async with connect(url_of(stage), origin=stage.url) as socket:  # type: ignore[arg-type]
        await socket.send(json.dumps({"t": "hello", "token": stage.teacher_token}))
        assert (await read(socket))["t"] == "hello"


async def test_who_is_staff_no_more_is_sent_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbpulse.api.sockets.PING_S", 0.2)
    monkeypatch.setattr("nbpulse.api.sockets.RECHECK_S", 0.4)
    async with stage.watch() as socket:
        assert (await read(socket))["t"] == "hello"
        while (await read(socket))["t"] != "ping":
            pass  # frames: that they look is told to the boards
        connection = await asyncpg.connect(stage.database_url)
        try:
            await connection.execute("DELETE FROM enrolments WHERE course_id = $1", stage.course.id)
        finally:
            await connection.close()
        await expect_close(socket, 4403)


async def test_who_does_not_keep_up_is_closed_and_others_are_not(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbpulse.api.sockets.BEHIND_S", 0.5)
    await make_class(stage, 1)
    first = await stage.snapshot()
    view = stage.parts.hub.find_view(stage.course.id, first["epoch"])
    assert view is not None
    async with stage.watch(first) as slow, stage.watch(first) as quick:
        await read(slow)
        await read(quick)
        slow.transport.pause_reading()  # type: ignore[attr-defined]
        board = Board(first)
        ends = time.monotonic() + 20
        while len(view.viewers) > 1 and time.monotonic() < ends:
            # Frames large enough to fill what the network holds for somebody who does not read.
            view._extra["notebooks"] = [{"id": secrets.token_hex(100_000), "path": "", "title": "", "active": 0}]
            await settle(quick, board, 0.3)
        assert len(view.viewers) == 1
        assert board.seq > first["seq"] + 2
        slow.transport.resume_reading()  # type: ignore[attr-defined]
        await expect_close(slow, 1013)


async def test_open_boards_are_listed_as_specified(stage: Stage, embedded_valkey: str) -> None:
    async with Redis.from_url(embedded_valkey) as redis:
        await redis.delete("websocket_connections")
        async with stage.watch() as socket:
            assert (await read(socket))["t"] == "hello"
            await asyncio.sleep(0.3)
            entries = {name: json.loads(one) for name, one in (await redis.hgetall("websocket_connections")).items()}
            mine = [one for one in entries.values() if one["user_id"] == str(stage.teacher_id)]
            assert len(mine) == 1
            assert mine[0]["last_activity"] == pytest.approx(time.time(), abs=5)
        await asyncio.sleep(0.3)
        assert await redis.hlen("websocket_connections") == 0


async def test_staff_who_look_are_shown_and_with_whom_they_are_busy(stage: Stage) -> None:
    (token,) = await make_class(stage, 1)
    await stage.post(token, make_run(event_type="help_request", notebook_path=None, data={}))
    await stage.work()
    board = Board(first := await stage.snapshot())
    async with stage.watch(first) as socket:
        await follow(socket, board, lambda b: [one["here"] for one in b.staff] == [True] and bool(b.alerts))
        assert [one["id"] for one in board.staff] == [str(stage.teacher_id)]
        assert board.staff[0]["name"]
        assert board.staff[0]["with"] is None
        (alert,) = board.alerts.values()
        body = {"id": str(uuid4()), "user_id": board.students[alert["i"]]["id"]}
        path = f"/api/v1/courses/{stage.course.id}/alerts/{alert['id']}/claim"
        assert (await stage.http.post(path, json=body, headers=stage.staff)).status_code == 200
        await follow(socket, board, lambda b: [one["with"] for one in b.staff] == [alert["i"]])
    assert (await stage.snapshot())["staff"] == board.staff


async def test_a_frame_is_encoded_once_however_many_watch(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (token,) = await make_class(stage, 1)
    first = await stage.snapshot()
    boards = [Board(first) for _ in range(20)]
    encoded: list[int] = []
    encode = view._encode

    def count(whole: Any) -> bytes:
        if isinstance(whole, dict) and whole.get("t") == "d":
            encoded.append(whole["seq"])
        return encode(whole)

    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(stage.watch(first)) for _ in boards]
        monkeypatch.setattr(view, "_encode", count)
        await stage.post(token, make_run(0, "error"))
        await stage.work()
        for socket, board in zip(sockets, boards, strict=True):
            await follow(socket, board, lambda b: b.students[0]["s"] == "3")
    assert encoded
    assert len(encoded) == len(set(encoded))
