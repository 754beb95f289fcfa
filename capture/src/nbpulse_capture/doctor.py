"""`nbpulse-capture doctor`: is everything there that a student's runs need on their way, and what to do where not.

Each check stands alone, is made on the real thing (the configuration Jupyter would read, the address, the
certificate), and is told as ok, wrong (with the exact fix) or unknown. Nothing is changed.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from nbpulse_capture import __version__
from nbpulse_capture.membership import (
    Membership,
    MembershipFile,
    get_config_dir,
    get_data_dir,
    read_hub_membership,
)
from nbpulse_capture.messages import get_text

TIMEOUT_S = 5.0
CLOCK_TOLERANCE_S = 30.0
KERNEL_EXTENSION = "nbpulse_capture.kernel"
SERVER_EXTENSION = "nbpulse_capture"
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `text` names what was found (else `doctor_<check>`), `fix` what to do (an error's code)."""

    check: str
    state: str
    facts: dict[str, object] = field(default_factory=dict)
    fix: str = ""
    text: str = ""

    def describe(self) -> dict[str, object]:
        """As `--json` shows it."""
        told: dict[str, object] = {"check": self.check, "state": self.state}
        told["found"] = get_text(self.text or f"doctor_{self.check}", **self.facts)
        return told | ({"code": self.fix, "fix": get_text(self.fix, **self.facts)} if self.fix else {})


def examine() -> list[Finding]:
    """Every check, in the order in which an event takes its way."""
    membership = MembershipFile().read()
    found = [check_installation(), check_server_extension(), check_kernel_extension(), check_folder()]
    found += check_privacy()
    found.append(check_membership(membership))
    if membership is not None:
        found += check_way(membership)
    return found


def check_installation() -> Finding:
    """Which version, in which Python."""
    return Finding("installed", "ok", {"version": __version__, "python": sys.executable})


def check_server_extension() -> Finding:
    """Whether a Jupyter server of this Python would load us."""
    if find_spec("jupyter_server") is None:
        return Finding("server_extension", "unknown", {"where": sys.prefix}, text="doctor_no_jupyter_server")
    from jupyter_core.paths import jupyter_config_path
    from jupyter_server.extension.config import ExtensionConfigManager

    config: Any = ExtensionConfigManager(read_config_path=jupyter_config_path())
    enabled = config.get_jpserver_extensions().get(SERVER_EXTENSION)
    facts: dict[str, object] = {"reason": "on" if enabled else "off", "where": sys.prefix}
    return Finding("server_extension", "ok" if enabled else "wrong", facts, "" if enabled else "NB-7020")


def check_kernel_extension() -> Finding:
    """Whether a kernel of this Python would load us: another package may have replaced the one file there is."""
    from IPython.paths import get_ipython_dir
    from traitlets.config.loader import JSONFileConfigLoader

    name = "ipython_kernel_config.json"
    folders = [Path(sys.prefix) / "etc" / "ipython", Path(get_ipython_dir()) / "profile_default"]
    for folder in folders:
        if not (folder / name).is_file():
            continue
        config = JSONFileConfigLoader(name, str(folder)).load_config()
        if KERNEL_EXTENSION in (config.get("IPKernelApp", {}).get("extra_extensions") or []):
            return Finding("kernel_extension", "ok", {"reason": "on", "where": folder / name})
    return Finding("kernel_extension", "wrong", {"reason": "off", "where": folders[0] / name}, "NB-7021")


def check_folder() -> Finding:
    """Whether events can be kept here."""
    folder = get_data_dir()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    facts: dict[str, object] = {"folder": folder}
    is_usable = nearest.is_dir() and os.access(nearest, os.W_OK)
    return Finding("folder", "ok", facts) if is_usable else Finding("folder", "wrong", facts, "NB-7022")


def check_privacy() -> Iterator[Finding]:
    """Where a file system keeps no modes (Windows, FAT, some shares), only the folder keeps the token from others."""
    file = get_config_dir() / "membership.json"
    if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Finding("privacy", "unknown", {"file": file})


def check_membership(membership: Membership | None) -> Finding:
    """Whether somebody has joined."""
    if membership is None:
        hub = read_hub_membership()
        facts: dict[str, object] = {"course": "-", "url": "-", "name": hub.hub_user if hub else "-"}
        return Finding("joined", "wrong", facts, "NB-7062" if hub else "NB-7001")
    course = membership.course_title or membership.course_id or "-"
    facts = {"course": course, "url": membership.url, "name": membership.display_name}
    return Finding("joined", "ok", facts, text="doctor_through_hub" if membership.hub_user else "")


def check_way(membership: Membership) -> Iterator[Finding]:
    """Name, port, certificate, server, clock, token: each only where the one before it holds."""
    parts = urlsplit(membership.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    facts: dict[str, object] = {"host": host, "port": port, "url": membership.url, "proxy": _find_proxy() or "-"}
    if _find_proxy():
        yield Finding("proxy", "unknown", facts)
    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("name", "NB-7023", lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)),
        ("port", "NB-7025" if _find_proxy() else "NB-7024", lambda: _open_port(host, port)),
    ]
    if parts.scheme == "https":
        steps.append(("certificate", "NB-7026", lambda: _shake_hands(host, port)))
    for check, fix, step in steps:
        try:
            step()
        except OSError as error:
            yield Finding(check, "wrong", facts | {"reason": _describe(error)}, fix)
            return
        yield Finding(check, "ok", facts | {"reason": "-"})
    yield from check_server(membership, facts)


def check_server(membership: Membership, facts: dict[str, object]) -> Iterator[Finding]:
    """Whether it is our server that answers, takes the token, and has the same time."""
    asked_at = datetime.now(UTC)
    try:
        status, date, content = _ask(membership)
    except (HTTPException, OSError) as error:
        yield Finding("server", "wrong", facts | {"reason": _describe(error)}, "NB-7005")
        return
    if not (isinstance(content, dict) and {"code", "user_id", "after"} & set(content)):
        yield Finding("server", "wrong", facts | {"reason": f"HTTP {status}"}, "NB-7005")
        return
    yield Finding("server", "ok", facts | {"reason": f"HTTP {status}"})
    if status in {401, 403}:
        told = f"HTTP {status} {content.get('code', '')}: {content.get('title', '')}"
        yield Finding("token", "wrong", facts | {"reason": told}, "NB-7061" if membership.hub_user else "NB-7011")
    else:
        yield Finding("token", "ok" if status == 200 else "unknown", facts | {"reason": f"HTTP {status}"})
    yield check_clock(date, asked_at)


def check_clock(date: str | None, now: datetime) -> Finding:
    """This computer's time against the server's `Date`, which says whole seconds."""
    try:
        server_time = parsedate_to_datetime(date) if date else None
    except ValueError:
        server_time = None
    if server_time is None:
        return Finding("clock", "unknown", text="doctor_clock_untold")
    off_s = round((now - server_time.astimezone(UTC)).total_seconds())
    is_right = abs(off_s) <= CLOCK_TOLERANCE_S
    return (
        Finding("clock", "ok", {"off_s": off_s}) if is_right else Finding("clock", "wrong", {"off_s": off_s}, "NB-7027")
    )


def format_findings(findings: list[Finding]) -> str:
    """For people: one line each, the fix below what is wrong."""
    marks = {"ok": "✓", "wrong": "✗", "unknown": "?"}
    lines = []
    for finding in findings:
        told = finding.describe()
        lines.append(f"{marks[finding.state]} {told['found']}")
        if "fix" in told:
            lines.append(f"    {told['fix']}")
    return "\n".join(lines)


def _ask(membership: Membership) -> tuple[int, str | None, Any]:
    """
    Status, Date and content of the answer to "who am I".

    Under a JupyterHub it is asked what only a student of one course may: that says whether scopes and groups fit.
    """
    parts = urlsplit(membership.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        headers = {"Authorization": f"Bearer {membership.token}", "Accept": "application/json"}
        path = "/api/v1/me"
        if membership.hub_user:
            path, headers["Nbpulse-Course"] = "/api/v1/me/inbox?wait_s=0", quote(membership.course_id)
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        response = connection.getresponse()
        try:
            content: Any = json.loads(response.read(100_000))
        except ValueError:
            content = None
        return response.status, response.getheader("Date"), content
    finally:
        connection.close()


def _open_port(host: str, port: int) -> None:
    socket.create_connection((host, port), TIMEOUT_S).close()


def _shake_hands(host: str, port: int) -> None:
    with socket.create_connection((host, port), TIMEOUT_S) as plain:
        ssl.create_default_context().wrap_socket(plain, server_hostname=host).close()


def _find_proxy() -> str | None:
    """A proxy that programs here are told to use; ours goes straight to the class's server."""
    return next((value for name in PROXY_VARIABLES if (value := os.environ.get(name))), None)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
