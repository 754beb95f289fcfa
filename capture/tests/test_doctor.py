from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nbpulse_capture.cli import main
from nbpulse_capture.doctor import check_clock, check_kernel_extension, check_server_extension, examine
from nbpulse_capture.membership import Membership, write_membership

from .conftest import FakeApi, reply


def join(url: str, token: str = "tok-1") -> None:
    write_membership(Membership(url=url, token=token, course_title="情報基礎"))


def find_states() -> dict[str, str]:
    return {finding.check: finding.state for finding in examine()}


def find_fixes() -> dict[str, str]:
    return {finding.check: finding.fix for finding in examine() if finding.state == "wrong"}


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[int]:
    """A server with a certificate that nobody here trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_a_good_installation_is_told_as_such(student: Path, api: FakeApi, installed_python: Path) -> None:
    join(api.url)
    program = "import sys; from nbpulse_capture.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([str(installed_python), "-c", program], check=False, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (0, True), told
    assert [finding["check"] for finding in told["findings"]] == [
        *("installed", "server_extension", "kernel_extension", "folder", "joined", "name", "port", "server", "token"),
        "clock",
    ]
    assert {finding["state"] for finding in told["findings"]} == {"ok"}
    assert "tok-1" not in done.stdout


def test_each_fault_is_named_with_its_fix_and_what_lies_behind_it_is_not_guessed(
    student: Path, api: FakeApi, certified: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    assert find_fixes()["joined"] == "NB-7001"
    way: list[tuple[str, str, str]] = [
        ("http://no-such-host.invalid:1", "name", "NB-7023"),
        ("http://127.0.0.1:9", "port", "NB-7024"),
        (f"https://localhost:{certified}", "certificate", "NB-7026"),
    ]
    for url, check, code in way:
        join(url)
        assert find_fixes()[check] == code
        assert not {"server", "token", "clock"} & set(find_states())
    join(api.url, "revoked")
    assert find_fixes()["token"] == "NB-7011"
    api.clock_off_s = 3600
    join(api.url)
    assert find_fixes()["clock"] == "NB-7027"


def test_a_proxy_that_is_not_used_is_named_where_the_way_is_closed(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    join("http://127.0.0.1:9")
    assert find_states()["proxy"] == "unknown"
    assert find_fixes()["port"] == "NB-7025"


def test_another_server_is_not_taken_for_ours(student: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    join(api.url)
    monkeypatch.setattr(api, "tells_who", False)
    assert find_fixes()["token"] == "NB-7011"
    monkeypatch.setattr(sys.modules[reply.__module__], "reply", lambda request, *_: reply(request, 200, "<html>"))
    assert find_fixes()["server"] == "NB-7005"


def test_extensions_that_are_not_enabled_are_wrong(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(student / "another-prefix"))
    monkeypatch.setenv("IPYTHONDIR", str(student / "nothing"))
    monkeypatch.setattr("jupyter_core.paths.jupyter_config_path", lambda: [str(student / "nothing")])
    assert check_kernel_extension().fix == "NB-7021"
    assert check_server_extension().fix == "NB-7020"


def test_a_folder_that_is_a_file_is_wrong(student: Path) -> None:
    (student / "data").write_text("")
    assert find_fixes()["folder"] == "NB-7022"


def test_a_server_without_a_date_leaves_the_clock_unknown() -> None:
    now = datetime(2026, 11, 25, 1, 0, 0, tzinfo=UTC)
    assert check_clock(None, now).state == "unknown"
    assert check_clock("no date", now).state == "unknown"
    assert check_clock("Wed, 25 Nov 2026 01:00:10 GMT", now).state == "ok"
    assert check_clock("Wed, 25 Nov 2026 01:05:00 GMT", now).fix == "NB-7027"


@pytest.mark.parametrize(("language", "word"), [("en_US.UTF-8", "Ask your teacher"), ("ja_JP.UTF-8", "先生に")])
def test_the_doctor_speaks_the_students_language(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], language: str, word: str
) -> None:
    monkeypatch.setenv("LANG", language)
    assert main(["doctor"]) == 1
    assert word in capsys.readouterr().out
