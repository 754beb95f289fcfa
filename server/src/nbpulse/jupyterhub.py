"""Whom a JupyterHub's token stands for, asked at the hub itself with the very token.

Promises: no more than 8 questions at a time and none over 10 s (who asks us waits 2 s, access.py; the answer is good
for their next try); what cannot be a token is not asked about. A hub that is away is Unavailable (NB-2010), not a "no".
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from nbpulse.errors import AccessDenied, StartupError, Unavailable
from nbpulse.providers import Flow, Proved

_ANSWER_LIMIT_S: Final = 10.0
_CONNECTIONS_MAX: Final = 8
CLIENT_ID: Final = "service-nbpulse"
PROVIDER: Final = "jupyterhub"
_TOKEN: Final = re.compile(r"[\w.~+/=-]{8,255}", re.ASCII)


_decode_answer = msgspec.json.Decoder(dict[str, object]).decode


class HubUser(msgspec.Struct, frozen=True):
    """A user as `GET /user` describes the token's owner."""

    name: str
    kind: str = "user"
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()


class JupyterHub:
    """One hub's API."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def find_user(self, token: str) -> HubUser | None:
        """
        The user whose token this is; None for a token the hub does not know (any more), or that is no user's.

        Any token may ask this about itself (JupyterHub 2 and later), so nbpulse needs no right of its own there.
        Raises Unavailable (NB-2010): no answer in time, or none of a hub's.
        """
        if not _TOKEN.fullmatch(token):
            return None
        try:
            answer = await self._client.get("user", headers={"Authorization": f"token {token}"})
            if answer.status_code in (401, 403, 404):
                return None
            answer.raise_for_status()
            user = msgspec.json.decode(answer.content, type=HubUser)
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            raise Unavailable("NB-2010") from error
        return user if user.kind == "user" else None

    async def exchange_code(self, form: dict[str, str]) -> str:
        """
        The token for a code that the hub gave a browser.

        Raises AccessDenied (NB-1128): it refuses the code; Unavailable (NB-2010).
        """
        try:
            answer = await self._client.post("oauth2/token", data=form)
            if answer.status_code in (400, 401, 403):
                raise AccessDenied("NB-1128", reason=answer.status_code)
            answer.raise_for_status()
            token = _decode_answer(answer.content).get("access_token")
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            raise Unavailable("NB-2010") from error
        if not isinstance(token, str):
            raise Unavailable("NB-2010")
        return token

    async def read_version(self) -> str:
        """The hub's version. Raises Unavailable (NB-2010)."""
        try:
            answer = await self._client.get("")
            answer.raise_for_status()
            return str(msgspec.json.decode(answer.content, type=dict[str, object])["version"])
        except (httpx2.HTTPError, msgspec.DecodeError, KeyError) as error:
            raise Unavailable("NB-2010") from error


class HubSignIn:
    """The hub as a provider of sign-in at the board: a service of its own there, `service-nbpulse`."""

    issuer = PROVIDER
    label = "JupyterHub"

    def __init__(self, hub: JupyterHub, public_url: str, client_secret: str) -> None:
        self._hub = hub
        self._public_url = public_url.rstrip("/")
        self._client_secret = client_secret

    async def compose_url(self, flow: Flow, state: str) -> str:
        """Where the browser goes to sign in; nothing is asked."""
        url: str = prepare_grant_uri(
            f"{self._public_url}/hub/api/oauth2/authorize",
            CLIENT_ID,
            "code",
            flow.redirect_uri,
            state=state,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return url

    async def prove(self, flow: Flow, code: str) -> Proved:
        """Who has signed in, with their groups. Raises AccessDenied (NB-1128), Unavailable (NB-2010)."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": flow.redirect_uri}
        form |= {"client_id": CLIENT_ID, "client_secret": self._client_secret, "code_verifier": flow.verifier}
        user = await self._hub.find_user(await self._hub.exchange_code(form))
        if user is None:
            raise AccessDenied("NB-1128", reason="user")
        return Proved(PROVIDER, user.name, user.name, groups=user.groups)


@asynccontextmanager
async def open_jupyterhub(api_url: str) -> AsyncIterator[JupyterHub]:
    """The hub at `api_url`; nothing is asked yet, it may be away. Raises StartupError (NB-3082): that is no address."""
    parts = urlsplit(api_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartupError("NB-3082", setting="NBPULSE_HUB_API_URL")
    async with httpx2.AsyncClient(
        base_url=api_url.rstrip("/") + "/",
        timeout=_ANSWER_LIMIT_S,
        limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX),
        trust_env=False,
    ) as client:
        yield JupyterHub(client)
