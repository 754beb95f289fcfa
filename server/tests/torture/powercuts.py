"""Cutting the power of a Valkey: kill -9, then every file loses what was never synced.

A preloaded shim (fsync_shim.c) notes how long each file was at each real fsync; after the kill each is cut to that.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from nbpulse.embedded import EmbeddedValkey
from nbpulse.embedded.valkey import Promise

SHIM_SOURCE = Path(__file__).with_name("fsync_shim.c")
ROOT = Path(__file__).resolve().parents[3]


def build_shim(directory: Path) -> Path | None:
    """The shim as a shared object, None where there is no C compiler and none can be unpacked from Debian either."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    command = [compiler] if compiler else unpack_compiler()
    if command is None:
        return None
    target = directory / "fsync_shim.so"
    # Its few symbols are in the server that loads it.
    options = ["-nostdlib", "-shared", "-fPIC", "-o", str(target), str(SHIM_SOURCE)]
    subprocess.run([*command, *options], check=True, timeout=60)
    target.chmod(0o755)
    return target


def unpack_compiler() -> list[str] | None:
    """A small C compiler with the headers it needs, unpacked without root; None where that is not possible."""
    tree = ROOT / ".cache" / "debian" / "compiler"
    packages = ["tcc", "libc6-dev", "linux-libc-dev"]
    done = subprocess.run(
        [str(ROOT / "ops" / "debian.sh"), str(tree), *packages], stdin=subprocess.DEVNULL, timeout=240, check=False
    )
    if done.returncode:
        return None
    headers = [tree / "usr" / "include", *tree.glob("usr/include/*-linux-gnu*"), *tree.glob("usr/lib/*/tcc/include")]
    return [str(tree / "usr" / "bin" / "tcc"), "-nostdinc", *(f"-I{path}" for path in headers)]


class CutValkey(EmbeddedValkey):
    """A Valkey whose power can be cut."""

    def __init__(self, data_dir: Path, shim: Path | None, *, promise: Promise = "power") -> None:
        super().__init__(data_dir, promise=promise)
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.notes = data_dir / "synced"
        self.notes.touch()
        self.notes.chmod(0o666)
        self.shim = shim

    def _process_options(self) -> dict[str, Any]:
        options = super()._process_options()
        if self.shim is None:
            return options
        preload = {"LD_PRELOAD": str(self.shim), "NBPULSE_FSYNC_NOTES": str(self.notes)}
        return options | {"env": options["env"] | preload}

    async def await_unsynced(self, age_s: float) -> None:
        """Until the last sync is that long ago."""
        for _ in range(3_000):
            if time.time() - self.notes.stat().st_mtime >= age_s:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it syncs all the time")

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.005)

    async def start_again(self) -> None:
        """Start without holding up the loop."""
        self.launch()
        while not self._is_ready():
            assert self.poll() is None, self.log_path.read_text()[-2_000:]
            await asyncio.sleep(0.02)

    def cut_power(self) -> int:
        """kill -9, then cut every file to what was synced of it; the bytes that were lost."""
        self.kill()
        synced: dict[int, int] = {}
        for line in self.notes.read_text().splitlines():
            inode, length = line.split(" ")
            synced[int(inode)] = int(length)
        lost_bytes = 0
        for path in sorted((self.directory / "data").rglob("*")):
            if path.is_file():
                facts = path.stat()
                kept_bytes = min(facts.st_size, synced.get(facts.st_ino, 0))
                lost_bytes += facts.st_size - kept_bytes
                os.truncate(path, kept_bytes)
        return lost_bytes
