"""HTTP to the class's server: one kept-alive connection, JSON in and out.

`http.client` is imported at the first request, in the sender's thread, so that starting a kernel does not
pay it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from http.client import HTTPConnection

GZIP_ABOVE_BYTES = 8_000


class UnreachableError(Exception):
    """No answer came: nobody knows whether the request arrived."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said; `content` is None when it was not JSON."""

    status: int
    content: Any
    retry_after_s: float | None = None
    collection_version: int | None = None
    """The version of what the course collects, where the answer bears it."""


class Wire:
    """
    One server. A request that finds the kept connection closed is made once more on a new one.

    `course` is named in each request: a JupyterHub's token does not say which of its user's courses is meant.
    """

    def __init__(self, url: str, *, course: str = "", timeout_s: float = 10.0) -> None:
        self.url = url
        self.course = course
        self._timeout_s = timeout_s
        self._kept: HTTPConnection | None = None

    def get(self, path: str, *, token: str | None = None) -> Answer:
        """Raises UnreachableError when there is no answer."""
        return self._ask("GET", path, None, {"Accept": "application/json"}, token)

    def put(self, path: str, content: object, *, token: str | None = None) -> Answer:
        """Raises UnreachableError when there is no answer."""
        return self.post(path, content, token=token, method="PUT")

    def post(self, path: str, content: object, *, token: str | None = None, method: str = "POST") -> Answer:
        """Raises UnreachableError when there is no answer."""
        body = _encode(content)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if len(body) > GZIP_ABOVE_BYTES:
            import gzip

            body = gzip.compress(body, 5)
            headers["Content-Encoding"] = "gzip"
        return self._ask(method, path, body, headers, token)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], token: str | None) -> Answer:
        from http.client import HTTPException

        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self.course:
            headers["Nbpulse-Course"] = quote(self.course)
        try:
            if self._kept is not None:
                try:
                    return self._exchange(method, path, body, headers)
                except (HTTPException, ConnectionError):
                    self.close()
            return self._exchange(method, path, body, headers)
        except (HTTPException, OSError, ValueError) as error:
            self.close()
            raise UnreachableError(f"{type(error).__name__}: {error}") from error

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        if self._kept is None:
            self._kept = self._connect()
        base = urlsplit(self.url).path.rstrip("/")
        self._kept.request(method, base + path, body, headers)
        response = self._kept.getresponse()
        raw = response.read(4_000_000)
        if response.will_close or not response.isclosed():
            self.close()
        try:
            parsed = json.loads(raw)
        except ValueError:
            parsed = None
        version = response.getheader("NBPULSE-Collection-Version") or ""
        return Answer(
            response.status,
            parsed,
            _parse_seconds(response.getheader("Retry-After")),
            int(version) if version.isdecimal() else None,
        )

    def _connect(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        parts = urlsplit(self.url)
        if not parts.hostname:
            raise ValueError(f"no host in {self.url!r}")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname, parts.port, timeout=self._timeout_s)

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _encode(content: object) -> bytes:
    """In UTF-8, which takes half of what escapes do; escapes where a text holds what UTF-8 cannot."""
    try:
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(content, separators=(",", ":")).encode()


def _parse_seconds(text: str | None) -> float | None:
    """Retry-After in seconds; the form with a date is not what our server sends and counts as absent."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
