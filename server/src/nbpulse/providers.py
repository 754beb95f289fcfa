"""What a sign-in at another system is, whichever system: begun with an address to go to, ended by whom it has proved.

OAuth 2.0's authorization code with PKCE (RFC 6749, RFC 7636). The cache keeps the flow under its state, for one use.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import msgspec


class Flow(msgspec.Struct, frozen=True):
    """A sign-in under way: what its end has to fit. Nobody but this server knows nonce and verifier until then."""

    provider: str
    redirect_uri: str
    nonce: str
    verifier: str


class Proved(msgspec.Struct, frozen=True):
    """
    Whom a provider has proved: `subject` is who it is, for good; the names are what to call them.

    `groups`: of a provider whose groups say what somebody is here.
    """

    provider: str
    subject: str
    username: str
    display_name: str | None = None
    groups: frozenset[str] = frozenset()


class Provider(Protocol):
    """A system at which people sign in."""

    @property
    def issuer(self) -> str:
        """Whose word it is: `Proved.provider` of everybody it proves."""
        ...

    @property
    def label(self) -> str:
        """What its button calls it."""
        ...

    async def compose_url(self, flow: Flow, state: str) -> str:
        """Where the browser goes to sign in. Raises Unavailable (NB-2010, NB-2011)."""
        ...

    async def prove(self, flow: Flow, code: str) -> Proved:
        """
        Who has signed in, for the code the browser came back with.

        Raises AccessDenied: the code is refused (NB-1128), the answer cannot be trusted (NB-1129). Unavailable.
        """
        ...


def make_flow(provider: str, redirect_uri: str) -> Flow:
    """A new one."""
    return Flow(provider, redirect_uri, secrets.token_urlsafe(32), secrets.token_urlsafe(48))
