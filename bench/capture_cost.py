"""What capture costs a student: each run, the start of a kernel, a flood of prints; against no capture, in one run.

    PYTHONPATH=server/tests python bench/capture_cost.py [--runs 1000] [--starts 9] [--quick]

Real kernels with and without the extension take turns on the same machine, in rounds; the class's server is a played
one in a process of its own that accepts everything. The same for Jupyter servers: jupyter_servers.py. Writes
bench/results/capture_cost.json and its table in docs/PERFORMANCE.md. What is processor time holds beside others' work
on the machine; what is time by the wall needs a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clocks import compare_ms, load_all_cores, measure_busy_cores, summarise_ms
from documents import write_documents
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_servers import measure_servers, write_profile
from report import describe_machine
from tables import compose_capture_cost

RESULTS = Path(__file__).parent / "results" / "capture_cost.json"
ROUNDS = 5
FLOOD_TURNS = 25
PAUSE_S = 0.05

SERVER = """
import gzip, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class H(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, as of a real server
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") else body
        results = [{"event_id": e["event_id"], "status": "accepted"} for e in json.loads(body)]
        raw = json.dumps({"results": results}).encode()
        self.send_response(202); self.send_header("Content-Length", str(len(raw))); self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *a): pass
s = ThreadingHTTPServer(("127.0.0.1", 0), H); print(s.server_address[1], flush=True); s.serve_forever()
"""
# Times the two callbacks of each run where they are called, inside the kernel.
PROBE = """
import time as _time, nbpulse_capture.kernel as _kernel
_costs, _open = [], []  # (wall seconds, CPU seconds) of both callbacks of a run
_recorder, _events = _kernel.get_recorder(), get_ipython().events
def _timed(callback):
    def call(argument):
        began, cpu_began = _time.perf_counter(), _time.thread_time()
        callback(argument)
        _open.append((_time.perf_counter() - began, _time.thread_time() - cpu_began))
        if len(_open) == 2: _costs.append([sum(pair) for pair in zip(*_open)]); _open.clear()
    return call
for _name, _callback in (("pre_run_cell", _recorder.before_run), ("post_run_cell", _recorder.after_run)):
    _events.unregister(_name, _callback); _events.register(_name, _timed(_callback))
_open.append((0.0, 0.0))
"""


class Kernel:
    """One real kernel, with the extension or without, as a Jupyter server would start it for a notebook."""

    def __init__(self, directory: Path, url: str, *, captured: bool) -> None:
        self._manager = KernelManager(connection_file=str(directory / f"kernel-{uuid.uuid4()}.json"))
        env = os.environ | {"JPY_SESSION_NAME": str(directory / "week1.ipynb")}
        env |= {"NBPULSE_CAPTURE_URL": url, "NBPULSE_CAPTURE_TOKEN": "bench"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs; so do the kernels here, once
        env |= {"PYTHONPYCACHEPREFIX": str(directory / "pycache")}
        env |= {"NBPULSE_CAPTURE_DIR": str(directory / "data")}
        env |= {"IPYTHONDIR": str(write_profile(directory / f"ipython-{captured}", captured=captured))}
        began_s = time.perf_counter()
        self._manager.start_kernel(
            env=env,
            cwd=str(directory),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client: BlockingKernelClient = self._manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.start_ms = (time.perf_counter() - began_s) * 1000

    def run(self, code: str, cell_id: str = "c1") -> float:
        """Run a cell; the milliseconds until its idle message."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id})
        began_s = time.perf_counter()
        self.client.shell_channel.send(message)
        while True:
            answer = self.client.get_iopub_msg(timeout=60)
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            if answer["content"].get("execution_state") == "idle":
                break
        elapsed_ms = (time.perf_counter() - began_s) * 1000
        reply = self.client.get_shell_msg(timeout=60)
        while reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            reply = self.client.get_shell_msg(timeout=60)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"])
        return elapsed_ms

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the kernel, through JSON."""
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            self.run(f"import json as _j; _j.dump({expression}, open({file.name!r}, 'w'))")
            return json.load(file)

    def stop(self) -> None:
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@contextmanager
def play_server() -> Iterator[str]:
    """A server that accepts everything, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def measure_runs(kernel: Kernel, bare: Kernel, run_count: int, pause_s: float = 0.0) -> dict[str, Any]:
    """
    The callbacks' own time inside the kernel, and the client's view of both kernels run in turns.

    Without a pause a kernel runs a hundred cells a second, and its own sender is at work beside every fiftieth.
    """

    def run_both(n: int) -> tuple[float, float]:
        took_ms = kernel.run(f"x = {n}"), bare.run(f"x = {n}")
        time.sleep(pause_s)
        return took_ms

    for _ in range(20):
        kernel.run("1")
        bare.run("1")
    kernel.run("_costs.clear()")
    per_round = run_count // ROUNDS
    rounds = [[run_both(n) for n in range(per_round)] for _ in range(ROUNDS)]
    costs = kernel.evaluate(f"_costs[-{per_round * ROUNDS}:]")
    cost_rounds = [costs[n : n + per_round] for n in range(0, len(costs), per_round)]
    return {
        "both_callbacks_ms": summarise_ms([[wall * 1000 for wall, _ in one] for one in cost_rounds]),
        "both_callbacks_cpu_ms": summarise_ms([[cpu * 1000 for _, cpu in one] for one in cost_rounds]),
        "client_round_trip_captured_ms": summarise_ms([[took_ms for took_ms, _ in one] for one in rounds]),
        "client_round_trip_bare_ms": summarise_ms([[took_ms for _, took_ms in one] for one in rounds]),
    }


def measure_flood(kernel: Kernel, bare: Kernel) -> dict[str, float]:
    """10,000 lines printed, 25 times each in turns, each the first as often as the other."""
    flood = "for n in range(10_000): print(n)"
    took_ms: dict[Kernel, list[float]] = {kernel: [], bare: []}
    for turn in range(FLOOD_TURNS):
        for one in (kernel, bare) if turn % 2 else (bare, kernel):
            took_ms[one].append(one.run(flood))
    return compare_ms(took_ms[kernel], took_ms[bare])


def measure_starts(directory: Path, url: str, count: int) -> dict[str, Any]:
    """Time from starting the process to the first answer, in turns; and what loading costs inside the kernel."""
    for captured in (True, False):
        Kernel(directory, url, captured=captured).stop()  # fills the caches
    times: dict[bool, list[float]] = {True: [], False: []}
    for n in range(count * 2):
        kernel = Kernel(directory, url, captured=n % 2 == 0)
        times[n % 2 == 0].append(kernel.start_ms)
        kernel.stop()
    program = (
        "import time, json, sqlite3, IPython, ipykernel.kernelapp, IPython.core.history; a = time.perf_counter();"
        "import nbpulse_capture.kernel; print((time.perf_counter() - a) * 1000)"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(directory / "pycache")}
    imports_ms = [
        float(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env).stdout
        )
        for _ in range(5)
    ]
    captured, bare = statistics.median(times[True]), statistics.median(times[False])
    return {
        "captured_ms": round(captured, 1),
        "bare_ms": round(bare, 1),
        "added_ms": round(captured - bare, 1),
        "import_ms": round(statistics.median(imports_ms), 1),
        "n": count,
    }


def list_measures(result: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """Each figure that has an aim: what is measured, its unit, the figure, the aim (to be less than)."""
    alone, alone_busy, servers = result["runs"], result["runs_with_all_cores_busy"], result["jupyter_servers"]
    apart = result["runs_with_pauses"]
    seen_busy = servers["with_all_cores_busy"]
    return [
        ("kernel by itself, both callbacks of a run, p99", "ms", apart["both_callbacks_ms"]["p99"], 1.0),
        ("the same, runs without a pause between", "ms", alone["both_callbacks_ms"]["p99"], 1.0),
        ("the same, all cores busy", "ms", alone_busy["both_callbacks_ms"]["p99"], 5.0),
        ("kernel that a server observes, p99", "ms", servers["observed_kernel_both_callbacks_ms"]["p99"], 1.0),
        ("the same, all cores busy", "ms", seen_busy["observed_kernel_both_callbacks_ms"]["p99"], 5.0),
        ("server's CPU per run, mean", "ms", servers["server_cpu_per_run_ms"]["added"], 1.0),
        ("start of a kernel", "ms", result["kernel_start"]["added_ms"], 30.0),
        ("10,000 printed lines, kernel by itself", "%", result["print_flood_10000_lines"]["slower_percent"], 5.0),
        ("the same through a server", "%", servers["print_flood_10000_lines"]["slower_percent"], 5.0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a fifth of all, and nothing written")
    arguments = parser.parse_args()
    scale = 5 if arguments.quick else 1
    run_count, start_count = arguments.runs // scale, max(1, arguments.starts // scale)
    busy_cores = measure_busy_cores(3)
    with tempfile.TemporaryDirectory() as place, play_server() as url:
        directory = Path(place)
        kernel, bare = Kernel(directory, url, captured=True), Kernel(directory, url, captured=False)
        kernel.run(PROBE)
        bare.run("import sys; assert 'nbpulse_capture.kernel' not in sys.modules")
        runs = measure_runs(kernel, bare, run_count)
        apart = measure_runs(kernel, bare, run_count // 2, PAUSE_S)
        flood = measure_flood(kernel, bare)
        with load_all_cores():
            loaded = measure_runs(kernel, bare, run_count // 4)
        kernel.stop()
        bare.stop()
        starts = measure_starts(directory, url, start_count)
        servers = measure_servers(directory / "servers", url, run_count, PROBE)
    result: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["bench/capture_cost.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "cores_busy_elsewhere": busy_cores,
        "runs": runs,
        "runs_with_pauses": apart,
        "runs_with_all_cores_busy": loaded,
        "kernel_start": starts,
        "print_flood_10000_lines": flood,
        "jupyter_servers": servers,
    }
    result["measures"] = [
        {"what": what, "unit": unit, "figure": figure, "aim": aim, "met": figure < aim}
        for what, unit, figure, aim in list_measures(result)
    ]
    if not arguments.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_documents()
    print(compose_capture_cost(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
