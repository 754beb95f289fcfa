"""How the cost benches read time: a process's own CPU clock, percentiles, rounds, and machines that are busy or not."""

from __future__ import annotations

import ctypes
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None)


def measure_cpu_s(pid: int) -> float:
    """Seconds of CPU that a process of ours has used so far, all its threads included, to the nanosecond."""
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(pid)
    return time.clock_gettime(clock.value)


def measure_busy_cores(seconds: float) -> float:
    """How many cores others keep busy while we wait."""
    before_s, began_s = _read_busy_s(), time.perf_counter()
    time.sleep(seconds)
    return round((_read_busy_s() - before_s) / (time.perf_counter() - began_s), 2)


def _read_busy_s() -> float:
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return sum(map(int, fields[1:4])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def load_all_cores() -> Iterator[None]:
    """As many busy processes as there are cores."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def summarise_ms(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Percentiles of milliseconds, each the median of the rounds'; the largest and the mean of all."""
    everything = [value for values in rounds for value in values]
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: statistics.median(find_quantile(values, q) for values in rounds) for name, q in quantiles.items()}
    found |= {"max": max(everything), "mean": statistics.mean(everything)}
    return {name: round(value, 3) for name, value in found.items()} | {"n": len(everything), "rounds": len(rounds)}


def find_quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that is no less than that share of all."""
    return sorted(values)[max(0, math.ceil(len(values) * q) - 1)]


def compare_ms(captured: Sequence[float], bare: Sequence[float]) -> dict[str, float]:
    """Medians of runs that took turns, and by how much the one is slower."""
    with_ms, without_ms = statistics.median(captured), statistics.median(bare)
    percent = (with_ms / without_ms - 1) * 100
    return {"captured_ms": round(with_ms, 1), "bare_ms": round(without_ms, 1), "slower_percent": round(percent, 1)}
