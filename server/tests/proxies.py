"""The proxies of ops/proxies in front of real APIs: Debian's nginx and HAProxy, each with the file as it is shipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servers import ROOT, find_libraries, get_debian_programs
from torture.systems import find_free_port

Kind = Literal["nginx", "haproxy"]
_PACKAGES = {
    "nginx": ["nginx"],
    "haproxy": ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0"],
}
_NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/nbpulse.conf;
}}
"""


def make_certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nbpulse test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(key.private_bytes(*form))
    return paths


def adapt(text: str, changes: dict[str, str]) -> str:
    """`text` with what only the operator knows put in; each of it must be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the example"
        text = text.replace(old, new)
    return text


def write_config(kind: Kind, directory: Path, api_urls: Sequence[str], port: int, plain_port: int) -> list[str]:
    """The example with these APIs, ports and a certificate made for the moment; the command that runs it."""
    programs = get_debian_programs(kind, "usr/sbin", _PACKAGES[kind])
    certificate, key = make_certificate(directory)
    first, second = (url.removeprefix("http://") for url in api_urls)
    changes = {"127.0.0.1:8643": first, "127.0.0.1:8644": second}
    program = programs.root / programs.bin_dir / kind
    if kind == "nginx":
        changes |= {"listen 80;": f"listen 127.0.0.1:{plain_port};", "listen 443 ": f"listen 127.0.0.1:{port} "}
        changes |= {"/etc/nginx/nbpulse.pem": str(certificate), "/etc/nginx/nbpulse.key": str(key)}
        example = (ROOT / "ops/proxies/nginx.conf").read_text(encoding="utf-8")
        (directory / "nbpulse.conf").write_text(adapt(example, changes), encoding="utf-8")
        (directory / "main.conf").write_text(_NGINX.format(directory=directory), encoding="utf-8")
        return [str(program), "-p", str(directory), "-e", "stderr", "-c", str(directory / "main.conf")]
    both = directory / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    changes |= {"bind :80": f"bind 127.0.0.1:{plain_port}", "bind :443 ": f"bind 127.0.0.1:{port} "}
    changes |= {"/etc/haproxy/nbpulse.pem": str(both), "log /dev/log local0": "log stderr format raw local0"}
    example = (ROOT / "ops/proxies/haproxy.cfg").read_text(encoding="utf-8")
    (directory / "haproxy.cfg").write_text(adapt(example, changes), encoding="utf-8")
    return [str(program), "-db", "-f", str(directory / "haproxy.cfg")]


def make_proxy_environment(kind: Kind) -> dict[str, str]:
    """Where its libraries are."""
    programs = get_debian_programs(kind, "usr/sbin", _PACKAGES[kind])
    bin_dir = programs.root / programs.bin_dir
    return {"PATH": os.defpath, "LD_LIBRARY_PATH": find_libraries(programs, bin_dir)}


@contextmanager
def run_proxy(kind: Kind, directory: Path, api_urls: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The proxy in front of these two APIs: its https and its http address."""
    port, plain_port = find_free_port(), find_free_port()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    command = write_config(kind, directory, api_urls, port, plain_port)
    with (directory / "said.txt").open("ab") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=make_proxy_environment(kind)
        )
    try:
        deadline_s = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (directory / "said.txt").read_text()
            assert time.monotonic() < deadline_s, f"{kind} did not answer within 20 s"
            time.sleep(0.02)
        yield f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain_port}"
    finally:
        process.terminate()
        process.wait(10)
