"""Addresses and ports of this machine, and whether one of our own servers answers."""

from __future__ import annotations

import errno
import ipaddress
import socket
from random import SystemRandom

from nbpulse.errors import StartupError


def bracket(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_every_address(host: str) -> bool:
    """Whether listening there means listening on all addresses of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def find_machine_address() -> str:
    """
    The address under which others in the same network reach this machine: the one outgoing packets bear.

    Nothing is sent: connecting a datagram socket only asks the routing table. Raises StartupError (NB-3016).
    """
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((somewhere, 9))
                address: str = probe.getsockname()[0]
        except OSError:
            continue
        if not is_loopback(address) and not is_every_address(address):
            return address
    raise StartupError("NB-3016")


def list_listening(host: str) -> list[str]:
    """Where an API for `host` listens: on loopback too, since /metrics and health are for this machine only."""
    return [host] if is_loopback(host) or is_every_address(host) else [host, "127.0.0.1"]


def listen(host: str, port: int) -> socket.socket:
    """A socket bound there. Raises StartupError (NB-3010, NB-3017)."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError("NB-3010", host=host, port=port, other=port + 1) from error
        raise StartupError("NB-3017", host=host, port=port, reason=error.strerror) from error
    return listening


def choose_port(host: str, port: int) -> int:
    """`port` if it can be listened on, a free one for 0. Raises StartupError (NB-3010, NB-3017)."""
    if port == 0:
        return find_free_port(host)
    for address in list_listening(host):
        listen(address, port).close()
    return port


def find_free_port(host: str = "127.0.0.1") -> int:
    """
    A port nobody listens on, below those that outgoing connections take (32768 and up on Linux).

    Otherwise a client's connection can hold the port while the part that owns it is started again.
    """
    random = SystemRandom()
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        try:
            return choose_port(host, port)
        except StartupError as error:
            if error.code == "NB-3017":
                raise
    raise StartupError("NB-3010", host=host, port=0, other=8642)


def ask_health(host: str, port: int, path: str, *, tls: bool = False, timeout_s: float = 1.0) -> int:
    """The HTTP status that one of our own servers answers, 0 when it does not."""
    target = "127.0.0.1" if is_every_address(host) else host
    try:
        with socket.create_connection((target, port), timeout=timeout_s) as plain:
            if not tls:
                return _ask(plain, target, path)
            import ssl

            context = ssl.create_default_context()
            context.check_hostname = False  # ours, on this machine; the certificate bears the public name
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(plain) as secured:
                return _ask(secured, target, path)
    except (OSError, ValueError, IndexError):
        return 0


def _ask(connection: socket.socket, host: str, path: str) -> int:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {bracket(host)}\r\nConnection: close\r\n\r\n".encode())
    with connection.makefile("rb") as reader:
        return int(reader.readline().split()[1])
