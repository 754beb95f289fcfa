"""The cookies of the board: the session, and what binds a sign-in at a provider to the browser that began it.

Over https their names begin with `__Host-`, so that no other host of the domain can plant them and none but this one
gets them; a cookie of the bare name is then not read. Scripts read neither.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from starlette.requests import HTTPConnection
from starlette.responses import Response

from nbpulse.records.tokens import SESSION_LIFE

SESSION: Final = "nbpulse_session"
SIGN_IN: Final = "nbpulse_sign_in"
SIGN_IN_LIFE: Final = timedelta(minutes=10)


class Cookies:
    """Cookies of one address."""

    def __init__(self, public_url: str | None) -> None:
        self._is_public_secure = (public_url or "").startswith("https:")

    def read(self, connection: HTTPConnection, name: str) -> str | None:
        """The cookie's value."""
        return connection.cookies.get(self._full_name(connection, name))

    def set_session(self, connection: HTTPConnection, response: Response, token: str) -> None:
        """Sent back by the board's own requests alone."""
        self._set(connection, response, SESSION, token, life=SESSION_LIFE)

    def set_sign_in(self, connection: HTTPConnection, response: Response, secret: str) -> None:
        """Lax: the way back from a provider is a navigation from another site."""
        self._set(connection, response, SIGN_IN, secret, life=SIGN_IN_LIFE, same_site="lax")

    def delete(self, connection: HTTPConnection, response: Response, name: str) -> None:
        """Take the cookie back."""
        self._set(connection, response, name, "", life=timedelta(0))

    def _set(
        self,
        connection: HTTPConnection,
        response: Response,
        name: str,
        value: str,
        *,
        life: timedelta,
        same_site: Literal["lax", "strict"] = "strict",
    ) -> None:
        response.set_cookie(
            self._full_name(connection, name),
            value,
            max_age=round(life.total_seconds()),
            path="/",
            httponly=True,
            samesite=same_site,
            secure=self._is_secure(connection),
        )

    def _full_name(self, connection: HTTPConnection, name: str) -> str:
        return f"__Host-{name}" if self._is_secure(connection) else name

    def _is_secure(self, connection: HTTPConnection) -> bool:
        return self._is_public_secure or connection.url.scheme in ("https", "wss")
