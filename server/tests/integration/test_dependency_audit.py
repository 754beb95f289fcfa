"""The audit of the dependencies says what it found and never more than it knows, on an advisory source of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNREACHED = "not audited: no advisory source could be reached"


def make_weakness(name: str, fixed: str) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": f"TEST-{name}", "aliases": ["CVE-0000-1"], "summary": "a weakness", "affected": affected}


class Source(ThreadingHTTPServer):
    """Answers as OSV does, from what it has been given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/query"
        self.answers: dict[str, object] = {"pip 19.0": {"vulns": [make_weakness("pip", "19.2")]}}
        self.asked: list[str] = []


class Asked(BaseHTTPRequestHandler):
    server: Source

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        about = f"{query['package']['name']} {query['version']}"
        self.server.asked.append(about)
        answer = self.server.answers.get(about, {})
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Test output is for failures."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    hashes = f" \\\n    --hash=sha256:{'0' * 64}\n"
    path.write_text(f"sound==1.0{hashes}weak==2.0{hashes}elsewhere==3.0 ; sys_platform == 'win32'{hashes}")
    return path


def audit(url: str, *arguments: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "ops" / "audit_dependencies.py"), *arguments],
        env={**os.environ, "NBPULSE_ADVISORY_URL": url, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_every_pin_of_ours_is_asked_about(source: Source) -> None:
    status, said = audit(source.url)
    assert status == 0, said
    assert said.startswith("audited: ")
    assert int(said.split()[1]) == len(set(source.asked)) - 1  # the question about pip 19.0
    assert any(about.startswith("fastapi ") for about in source.asked)


def test_a_known_weakness_fails_and_names_what_mends_it(source: Source, lock: Path) -> None:
    source.answers["weak 2.0"] = {"vulns": [make_weakness("weak", "2.1")]}
    assert audit(source.url, str(lock)) == (1, "weak 2.0: CVE-0000-1, TEST-weak; mended in 2.1\n")
    source.answers["weak 2.0"] = {}
    said = "audited: 2 packages, no known weakness; pins for other systems: 1\n"
    assert audit(source.url, str(lock)) == (0, said)


def test_a_package_that_could_not_be_audited_fails(source: Source, lock: Path) -> None:
    source.answers["sound 1.0"] = 503
    status, said = audit(source.url, str(lock))
    assert (status, said.startswith("the audit broke off: ")) == (1, True)
    lock.write_text("sound==1.0\nfar @ https://example.org/far-1.0.tar.gz\n")
    source.answers.pop("sound 1.0")
    status, said = audit(source.url, str(lock))
    assert (status, "far could not be audited: " in said) == (1, True)


@pytest.mark.parametrize("answer", [404, 500, {}, {"vulns": []}, []])
def test_a_source_that_does_not_know_what_everybody_knows_is_none(source: Source, lock: Path, answer: object) -> None:
    source.answers["pip 19.0"] = answer
    status, said = audit(source.url, str(lock))
    assert (status, said.startswith(UNREACHED)) == (0, True)
    assert source.asked == ["pip 19.0"]


def test_without_a_source_it_claims_nothing_and_fails_only_where_an_audit_is_demanded(lock: Path) -> None:
    nobody = "http://127.0.0.1:9/v1/query"
    status, said = audit(nobody, str(lock), NBPULSE_REQUIRE_AUDIT="0")
    assert (status, said.startswith(UNREACHED), "audited: " in said.removeprefix("not audited: ")) == (0, True, False)
    status, said = audit(nobody, str(lock), NBPULSE_REQUIRE_AUDIT="1")
    assert (status, said.startswith(UNREACHED)) == (1, True)
