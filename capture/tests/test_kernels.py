"""What a listener makes of a kernel's messages, on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session
from zmq.eventloop.zmqstream import ZMQStream

from nbpulse_capture.execution import name_told
from nbpulse_capture.kernels import AT_ONCE, KernelListener

from .conftest import wait_until

WITHIN_S = 5.0


class Kernel:
    """The IOPub side of a kernel, and the part of a kernel manager that leads to it."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self.ports = [self._socket.bind_to_random_port("tcp://127.0.0.1")]
        self.session = Session()

    def connect_iopub(self) -> ZMQStream:
        socket = self._context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{self.ports[0]}")
        return ZMQStream(socket)

    def wait_for_subscriber(self) -> None:
        assert self._socket.poll(WITHIN_S * 1000)
        assert self._socket.recv() == b"\x01"
        self.subscribed = [b""]

    def take_subscriptions(self) -> None:
        """What subscribers have asked for until now; they are given a moment to ask."""
        while self._socket.poll(100):
            asked = self._socket.recv()
            (self.subscribed.append if asked[0] else self.subscribed.remove)(asked[1:])

    def say(self, msg_type: str, msg_id: str | None, content: dict[str, Any]) -> None:
        parent = {"header": {"msg_type": "execute_request"} | ({"msg_id": msg_id} if msg_id else {})}
        topic = b"stream.stdout" if msg_type == "stream" else f"kernel.x.{msg_type}".encode()
        self.session.send(self._socket, msg_type, content, parent=parent, ident=topic)

    def run(self, msg_id: str) -> None:
        self.say("status", msg_id, {"execution_state": "busy"})
        self.say("execute_input", msg_id, {"code": "1", "execution_count": 1})
        self.say("stream", msg_id, {"name": "stdout", "text": "1"})
        self.say("status", msg_id, {"execution_state": "idle"})

    def close(self) -> None:
        self._context.destroy(linger=0)


class Heard:
    """Keeps what it is told; each start and end with the name of its run, and the turn of the loop in which it came."""

    def __init__(self) -> None:
        self.words: list[tuple[str, str]] = []
        self.told: dict[str, Any] = {}
        self.ended_at: list[datetime] = []
        self.output_bytes: list[int] = []
        self.turns: set[int] = set()
        self.turn = 0
        self.is_output_collected = False

    def hear_start(self, msg_id: str, at: datetime, content: dict[str, Any]) -> bool:
        self._note("start", msg_id)
        return False

    def hear_error(self, msg_id: str, content: dict[str, Any]) -> None:
        self._note("error", msg_id)

    def hear_told(self, msg_id: str, content: dict[str, Any]) -> None:
        self._note("told", msg_id)
        self.told[msg_id] = content

    def hear_end(self, msg_id: str, at: datetime, output_bytes: int, shown: str) -> None:
        self._note("end", msg_id)
        self.ended_at.append(at)
        self.output_bytes.append(output_bytes)

    def wants_output(self) -> bool:
        return self.is_output_collected

    def _note(self, what: str, msg_id: str) -> None:
        self.words.append((what, msg_id))
        self.turns.add(self.turn)


async def turn_until(heard: Heard, count: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while len(heard.words) < count:
            heard.turn += 1
            await asyncio.sleep(0.001)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def faults() -> list[BaseException]:
    return []


@pytest.fixture
async def listener(kernel: Kernel, heard: Heard, faults: list[BaseException]) -> Any:
    found = KernelListener(kernel, heard, faults.append)
    found.open()
    kernel.wait_for_subscriber()
    yield found
    found.close()
    assert faults == []


async def test_runs_are_told_in_order_with_what_they_showed(
    kernel: Kernel, heard: Heard, listener: KernelListener
) -> None:
    for n in range(3):
        kernel.run(f"m{n}")
        await turn_until(heard, 2 * (n + 1))
    assert heard.words == [(what, f"m{n}") for n in range(3) for what in ("start", "end")]
    assert min(heard.output_bytes) > 1
    assert all(abs((datetime.now(UTC) - at).total_seconds()) < WITHIN_S for at in heard.ended_at)


async def test_what_the_kernels_extension_says_comes_with_its_own_runs_idle_and_before_the_end(
    kernel: Kernel, heard: Heard, listener: KernelListener
) -> None:
    told = {"run": {"execution_duration_ms": 1.5}}
    kernel.session.metadata = {name_told("m1"): told, name_told("m2"): ["nonsense"]}
    for msg_id in ("m0", "m1", "m2"):
        kernel.run(msg_id)
    await turn_until(heard, 7)
    assert heard.told == {"m1": told}
    assert [what for what, msg_id in heard.words if msg_id == "m1"] == ["start", "told", "end"]


async def test_a_flood_is_read_to_its_end_and_leaves_turns_to_others(
    kernel: Kernel, heard: Heard, listener: KernelListener
) -> None:
    kernel.say("execute_input", "m1", {"code": "1"})
    for n in range(3 * AT_ONCE):
        kernel.say("stream", "m1", {"name": "stdout", "text": "x" * 10})
        if n % 100 == 0:
            await asyncio.sleep(0)
    kernel.say("status", "m1", {"execution_state": "idle"})
    await turn_until(heard, 2)
    size = len(json.dumps({"name": "stdout", "text": "x" * 10}, separators=(",", ":")))
    assert heard.output_bytes[0] >= 3 * AT_ONCE * size
    assert len(heard.turns) == 2


async def test_output_that_the_kernel_counts_itself_does_not_come_here_unless_it_is_collected(
    kernel: Kernel, heard: Heard, listener: KernelListener
) -> None:
    def count_itself(*msg_ids: str) -> None:
        kernel.session.metadata = {name_told(msg_id): {"run": {}, "output_bytes": 7} for msg_id in msg_ids}

    async def run(msg_id: str) -> int:
        await asyncio.to_thread(kernel.take_subscriptions)
        kernel.run(msg_id)
        await turn_until(heard, len(heard.words) + (3 if name_told(msg_id) in kernel.session.metadata else 2))
        return heard.output_bytes[-1]

    count_itself("m1", "m2", "m4", "m5")
    assert [await run("m1"), await run("m2")] == [7, 7]
    assert kernel.subscribed == [b"kernel."]
    assert await run("m3") == 0, "it has ceased to count: this once nobody knows"
    assert kernel.subscribed == [b"kernel."]
    measured = await run("m6")
    assert (measured > 7, kernel.subscribed) == (True, [b""]), "from then on it is measured here"
    heard.is_output_collected = True
    assert [await run("m4"), await run("m5")] == [7, 7]
    assert kernel.subscribed == [b""]


async def test_what_has_come_can_be_read_at_once(kernel: Kernel, heard: Heard, listener: KernelListener) -> None:
    """As when the kernel is about to be told dead: its last words come first."""
    kernel.run("m1")
    wait_until(lambda: listener.read() and len(heard.words) == 2)  # the loop has no turn to read by itself
    assert heard.words == [("start", "m1"), ("end", "m1")]
    kernel.run("m2")
    await turn_until(heard, 4)
    assert heard.words[2:] == [("start", "m2"), ("end", "m2")]


async def test_a_message_that_breaks_us_is_told_as_a_fault_and_those_behind_it_are_heard(
    kernel: Kernel, heard: Heard, listener: KernelListener, faults: list[BaseException]
) -> None:
    kernel.say("execute_input", None, {"code": "1"})
    kernel.run("m2")
    await turn_until(heard, 2)
    assert heard.words == [("start", "m2"), ("end", "m2")]
    assert [type(fault) for fault in faults] == [KeyError]
    faults.clear()
