"""The headers that keep every answer to itself: also errors, files and the hot route.

What a page may do is said in one place; whatever is no page may do nothing at all. A refused WebSocket is an answer
of the server's own without a body: there is nothing in it to keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
OTHER_POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
EVERYWHERE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), midi=(), payment=(), serial=(), usb=()",
    ),
)
_PAGE: Final = (b"content-security-policy", PAGE_POLICY.encode())
_OTHER: Final = (b"content-security-policy", OTHER_POLICY.encode())
_NOT_MODIFIED: Final = 304
# Browsers heed it over https only, and never for an address without a name.
_HTTPS_ONLY: Final = (b"strict-transport-security", b"max-age=31536000")
_NO_STORE: Final = (b"cache-control", b"no-store")


class Headers:
    """ASGI: `app`, each of its answers with these headers; `public_url` is the address people use."""

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self._app = app
        self._is_https = (public_url or "").startswith("https:")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, and keep the answer to itself."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_https = self._is_https or scope["scheme"] == "https"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _complete(message["headers"], message["status"], is_https=is_https)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _complete(given: Iterable[tuple[bytes, bytes]], status: int, *, is_https: bool) -> list[tuple[bytes, bytes]]:
    is_page = is_kept = False
    for name, value in given:
        if name == b"content-type":
            is_page = value.startswith(b"text/html")
        elif name == b"cache-control":
            is_kept = True  # as the route says
    headers = [*given, *EVERYWHERE]
    if status != _NOT_MODIFIED:  # its headers replace those the browser has kept, and it does not say what it is of
        headers.append(_PAGE if is_page else _OTHER)
    if not is_kept:
        headers.append(_NO_STORE)
    if is_https:
        headers.append(_HTTPS_ONLY)
    return headers
