from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbpulse_capture import claims
from nbpulse_capture.claims import SERVER_VARIABLE, KernelClaim, ServerClaims, find_death, remove_dead_servers

KERNEL = "7d6a0a43-2b53-4d6f-9b9b-1c2d3e4f5a6b"
# A server of its own process that claims a kernel, and a kernel that asks.
SERVER = """
import sys, time
from nbpulse_capture.claims import ServerClaims
server = ServerClaims(); server.claim(sys.argv[1]); print(server.directory, flush=True); time.sleep(600)
"""


@pytest.fixture
def server(student: Path, monkeypatch: pytest.MonkeyPatch) -> ServerClaims:
    found = ServerClaims()
    monkeypatch.setenv(SERVER_VARIABLE, str(found.directory))
    return found


def test_a_claim_holds_from_its_making_to_its_release(server: ServerClaims) -> None:
    kernel = KernelClaim(KERNEL)
    assert not kernel.is_held(), "announced is not claimed"
    assert not server.directory.exists(), "nothing is written before the first claim"
    server.claim(KERNEL)
    assert kernel.is_held()
    assert not KernelClaim("another").is_held()
    server.release(KERNEL)
    assert not kernel.is_held()


def test_a_claim_that_is_not_renewed_ends(server: ServerClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    server.claim(KERNEL)
    kernel = KernelClaim(KERNEL)
    long_ago = time.time() - claims.STALE_AFTER_S - 1
    os.utime(server.directory / KERNEL, (long_ago, long_ago))
    assert not kernel.is_held(), "the server hangs"
    server.beat()
    assert kernel.is_held()


def test_a_kernel_whose_parent_has_gone_is_nobodys(server: ServerClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    server.claim(KERNEL)
    kernel = KernelClaim(KERNEL)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not kernel.is_held()


def test_without_the_variable_nobody_claims(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    assert not KernelClaim(KERNEL).is_held()


def test_a_server_is_dead_the_moment_it_is_killed_and_is_cleared_away(student: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVER, KERNEL], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert find_death(directory.name) is None
        remove_dead_servers()
        assert directory.exists()
    finally:
        process.kill()
        process.communicate()
    died_at = find_death(directory.name)
    assert died_at is not None
    assert died_at.endswith("Z")
    remove_dead_servers()
    assert not directory.exists()
    assert find_death(directory.name) is not None, "the name alone says when it began"


def test_a_server_does_not_take_itself_for_dead(server: ServerClaims) -> None:
    server.claim(KERNEL)
    for _ in range(2):  # asking must not take the lock away
        assert find_death(server.owner) is None
    remove_dead_servers()
    assert server.directory.exists()
    server.close()
    assert not server.directory.exists()
