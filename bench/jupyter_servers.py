"""Two real Jupyter servers, with capture and without, given the same runs in turns by a websocket client.

What is read: the server process's own CPU time, how late its event loop wakes, the client's round trip, and the kernel
callbacks' time where a server observes. Other load on the machine falls on both alike, since they take turns.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from clocks import compare_ms, load_all_cores, measure_cpu_s, summarise_ms
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from student_jupyter import TOKEN, pack_frame, unpack_frame

ROUNDS = 5
SETTLE_S = 1.0
FLOOD_TURNS = 100  # one flood takes 250 to 650 ms, with capture or without
FLOOD = "for n in range(10_000): print(n, flush=n % 10 == 0)"
# Wakes every 20 ms and notes how late it is; written when the server ends, so that the noting costs it nothing.
LAG_PROBE = """
import asyncio, atexit, json, os, time
_late = []
def _write():
    with open(os.environ["BENCH_LAG_FILE"], "w") as file: json.dump(_late, file)
async def _watch():
    while True:
        due = time.perf_counter() + 0.02
        await asyncio.sleep(0.02)
        _late.append(time.perf_counter() - due)
def _load_jupyter_server_extension(app):
    atexit.register(_write)
    app.io_loop.add_callback(lambda: asyncio.create_task(_watch()))
"""


def write_profile(place: Path, *, captured: bool) -> Path:
    """An IPython directory that says whether to load the extension; this Python's own configuration always does."""
    profile = place / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    config = {"IPKernelApp": {"extra_extensions": ["nbpulse_capture.kernel"] if captured else []}}
    (profile / "ipython_kernel_config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


class Server:
    """A plain Jupyter server with one notebook open in it."""

    def __init__(self, directory: Path, url: str, *, captured: bool) -> None:
        self._lag_file = directory / "lag.json"
        (directory / "root").mkdir(parents=True)
        (directory / "root" / "week1.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4}')
        (directory / "lag_probe.py").write_text(LAG_PROBE, encoding="utf-8")
        write_profile(directory / "ipython", captured=captured)
        env = os.environ | {"NBPULSE_CAPTURE_URL": url, "NBPULSE_CAPTURE_TOKEN": "bench"}
        env |= {"NBPULSE_CAPTURE_DIR": str(directory / "data"), "IPYTHONDIR": str(directory / "ipython")}
        env |= {f"JUPYTER_{n}_DIR": str(directory / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
        env |= {"PYTHONPATH": str(directory), "BENCH_LAG_FILE": str(self._lag_file)}
        loaded = {"lag_probe": True, "nbpulse_capture": captured, "jupyterlab": False}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ServerApp.port=0"),
                *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={directory / 'root'}"),
                f"--ServerApp.jpserver_extensions={loaded}",
            ],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        described = directory / "runtime" / f"jpserver-{self._process.pid}.json"
        while not described.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        self._url = json.loads(described.read_text())["url"].rstrip("/")
        self._socket = self._open_notebook()

    def _open_notebook(self) -> ClientConnection:
        from urllib.request import Request, urlopen

        asked = {"path": "week1.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}}
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        request = Request(f"{self._url}/api/sessions", json.dumps(asked).encode(), headers)
        with urlopen(request, timeout=60) as answer:
            kernel_id = json.load(answer)["kernel"]["id"]
        channel = connect(
            f"{self._url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels",
            additional_headers={"Authorization": f"token {TOKEN}"},
            subprotocols=[Subprotocol("v1.kernel.websocket.jupyter.org")],
            max_size=None,
        )
        self._socket = channel
        time.sleep(1)
        self.run("1")
        return channel

    def run(self, code: str) -> float:
        """Run a cell; the milliseconds until both its reply and its idle message are here."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "bench"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        metadata = {"trusted": True, "deletedCells": [], "recordTiming": False, "cellId": "c1"}
        parts = [json.dumps(part).encode() for part in (header | {"version": "5.4", "date": ""}, {}, metadata, content)]
        began_s = time.perf_counter()
        self._acknowledge_at_once()
        self._socket.send(pack_frame("shell", parts))
        wanted = {"execute_reply", "idle"}
        while wanted:
            raw = self._socket.recv(timeout=60)
            self._acknowledge_at_once()
            assert isinstance(raw, bytes)
            message = unpack_frame(raw)
            if message["parent_header"].get("msg_id") == header["msg_id"]:
                wanted -= {message["msg_type"], message["content"].get("execution_state")}
        return (time.perf_counter() - began_s) * 1000

    def _acknowledge_at_once(self) -> None:
        """Else a server that sends in small pieces is now and then kept waiting for 40 ms, by chance."""
        self._socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def evaluate(self, expression: str, file: Path) -> Any:
        """The value of an expression in the kernel, through JSON."""
        self.run(f"import json as _j; _j.dump({expression}, open({str(file)!r}, 'w'))")
        return json.loads(file.read_text())

    def measure_cpu_s(self) -> float:
        """CPU time of the server's process so far, its threads included, its kernels not."""
        return measure_cpu_s(self._process.pid)

    def read_lags_ms(self) -> list[float]:
        """How late the event loop woke, in all; of a server that has ended."""
        return [late_s * 1000 for late_s in json.loads(self._lag_file.read_text())]

    def stop(self) -> None:
        """End the server and its kernel."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)


def measure_servers(directory: Path, url: str, run_count: int, probe: str) -> dict[str, Any]:
    """The cost of a run to the server, of a flood of prints to both, of the callbacks to an observed kernel."""
    captured, bare = (Server(directory / name, url, captured=name == "captured") for name in ("captured", "bare"))
    try:
        captured.run(probe)
        for name, server in (("captured", captured), ("bare", bare)):
            loaded = "'nbpulse_capture.kernel' in __import__('sys').modules"
            announced = "bool(__import__('os').environ.get('NBPULSE_CAPTURE_SERVER'))"
            if server.evaluate(f"[{loaded}, {announced}]", directory / "is.json") != [name == "captured"] * 2:
                raise RuntimeError(f"the {name} server is not what it should be")
        found = _measure_turns(captured, bare, run_count, directory / "costs.json")
        found |= {"print_flood_10000_lines": _measure_flood(captured, bare)}
        with load_all_cores():
            found |= {"with_all_cores_busy": _measure_turns(captured, bare, run_count // 4, directory / "costs.json")}
    finally:
        captured.stop()
        bare.stop()
    lags = {"captured": captured.read_lags_ms(), "bare": bare.read_lags_ms()}
    return found | {"event_loop_late_ms": {name: summarise_ms([values]) for name, values in lags.items()}}


def _measure_turns(captured: Server, bare: Server, run_count: int, costs_file: Path) -> dict[str, Any]:
    """
    Both servers run the same cells in turns, in rounds; after each round its events are let arrive.

    A server's CPU is its own, whoever's turn it is, so that what it does between runs is counted too.
    """
    for server in (captured, bare) * 20:
        server.run("1")
    captured.run("_costs.clear()")
    cpu_ms: dict[str, list[float]] = {"captured": [], "bare": []}
    round_trips_ms: dict[str, list[list[float]]] = {"captured": [], "bare": []}
    per_round = run_count // ROUNDS
    for _ in range(ROUNDS):
        before_s = [server.measure_cpu_s() for server in (captured, bare)]
        pairs = [(captured.run(f"x = {n}"), bare.run(f"x = {n}")) for n in range(per_round)]
        time.sleep(SETTLE_S)
        for name, server, cpu_s, trips in zip(
            cpu_ms, (captured, bare), before_s, zip(*pairs, strict=True), strict=True
        ):
            cpu_ms[name].append((server.measure_cpu_s() - cpu_s) * 1000 / per_round)
            round_trips_ms[name].append(list(trips))
    costs = captured.evaluate(f"_costs[-{per_round * ROUNDS}:]", costs_file)
    rounds = [costs[n : n + per_round] for n in range(0, len(costs), per_round)]
    mean = {name: statistics.mean(values) for name, values in cpu_ms.items()}
    added = [with_ms - without_ms for with_ms, without_ms in zip(cpu_ms["captured"], cpu_ms["bare"], strict=True)]
    return {
        "runs": per_round * ROUNDS,
        "server_cpu_per_run_ms": {name: round(value, 3) for name, value in mean.items()}
        | {"added": round(statistics.mean(added), 3), "added_each_round": [round(value, 3) for value in added]},
        "round_trip_ms": {name: summarise_ms(values) for name, values in round_trips_ms.items()},
        "observed_kernel_both_callbacks_ms": summarise_ms([[wall * 1000 for wall, _ in one] for one in rounds]),
        "observed_kernel_both_callbacks_cpu_ms": summarise_ms([[cpu * 1000 for _, cpu in one] for one in rounds]),
    }


def _measure_flood(captured: Server, bare: Server) -> dict[str, Any]:
    """Ten thousand lines in a thousand messages, 25 times each in turns."""
    took_ms: dict[str, list[float]] = {"captured": [], "bare": []}
    cpu_s = {"captured": 0.0, "bare": 0.0}
    for turn in range(FLOOD_TURNS):
        turns = [("captured", captured), ("bare", bare)]
        for name, server in turns if turn % 2 else reversed(turns):
            before_s = server.measure_cpu_s()
            took_ms[name].append(server.run(FLOOD))
            cpu_s[name] += server.measure_cpu_s() - before_s
    return compare_ms(took_ms["captured"], took_ms["bare"]) | {
        "server_cpu_ms": {name: round(value * 1000 / FLOOD_TURNS, 1) for name, value in cpu_s.items()},
    }
