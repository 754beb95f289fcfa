"""Signing in through an OpenID Connect provider (Core 1.0, Discovery 1.0), by authorization code with PKCE.

Promises: an ID token is believed only where its signature fits a key that the provider has published within 10 minutes,
and issuer, audience, authorized party, times and nonce are ours; an unknown key is asked for again at most every 10 s.
What the provider says is read within 10 s and 1 MB; redirects are not followed.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from authlib.integrations.httpx_client import OAuth2ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from nbpulse.errors import AccessDenied, StartupError, Unavailable
from nbpulse.providers import Flow, Proved

_ANSWER_LIMIT_S: Final = 10.0
_ANSWER_BYTES_MAX: Final = 1_000_000
_CONNECTIONS_MAX: Final = 8
_METADATA_LIFE_S: Final = 3600.0
_KEYS_LIFE_S: Final = 600.0
_KEYS_AGAIN_S: Final = 10.0
_LEEWAY_S: Final = 60
_SUBJECT_MAX: Final = 255
# Signed with a secret that both know (HS…), or not at all, proves nothing of who signed.
_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class OpenIdProvider:
    """One provider, and what it has published."""

    def __init__(
        self, client: httpx2.AsyncClient, *, issuer: str, client_id: str, client_secret: str, label: str | None = None
    ) -> None:
        self.label = label or urlsplit(issuer).hostname or issuer
        self._client = client
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._metadata: tuple[dict[str, Any], float] | None = None
        self._keys: tuple[KeySet, float] | None = None

    async def compose_url(self, flow: Flow, state: str) -> str:
        """Where the browser goes to sign in. Raises Unavailable (NB-2011)."""
        metadata = await self._read_metadata()
        url: str = prepare_grant_uri(
            metadata["authorization_endpoint"],
            self._client_id,
            "code",
            flow.redirect_uri,
            scope="openid profile",
            state=state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return url

    async def prove(self, flow: Flow, code: str) -> Proved:
        """Who has signed in. Raises AccessDenied (NB-1128, NB-1129), Unavailable (NB-2011)."""
        metadata = await self._read_metadata()
        supported = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        method = "client_secret_basic" if "client_secret_basic" in supported else "client_secret_post"
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": flow.redirect_uri}
        status, answer = await self._ask(
            "POST",
            metadata["token_endpoint"],
            data=form | {"code_verifier": flow.verifier},
            auth=OAuth2ClientAuth(self._client_id, self._client_secret, method),
        )
        if status != 200:
            raise AccessDenied("NB-1128", reason=str(answer.get("error", status))[:60])
        claims = await self._read_id_token(answer, metadata, flow.nonce)
        subject = claims["sub"]
        name, username = (_read_text(claims, key) for key in ("name", "preferred_username"))
        return Proved(self.issuer, subject, username or name or subject, name)

    async def count_keys(self) -> int:
        """How many keys the provider publishes now. Raises Unavailable (NB-2011)."""
        return len((await self._read_keys(0.0))[0].keys)

    async def _read_id_token(self, answer: Mapping[str, Any], metadata: Mapping[str, Any], nonce: str) -> CodeIDToken:
        """The ID token's claims, all of them checked. Raises AccessDenied (NB-1129), Unavailable (NB-2011)."""
        algorithms = _ALGORITHMS & {*(metadata.get("id_token_signing_alg_values_supported") or ["RS256"])}
        text = answer.get("id_token")
        if not isinstance(text, str):
            raise AccessDenied("NB-1129", reason="id_token")
        try:
            token = await self._decode(text, sorted(algorithms))
            claims = CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": self.issuer},
                    "aud": {"essential": True, "value": self._client_id},
                    "sub": {"essential": True},
                },
                {"nonce": nonce, "client_id": self._client_id, "access_token": answer.get("access_token")},
            )
            claims.validate(int(time.time()), _LEEWAY_S)
        except ExpiredTokenError as error:
            raise AccessDenied("NB-1129", reason="exp") from error
        except JoseError as error:
            claim = getattr(error, "claim", None)
            raise AccessDenied("NB-1129", reason=str(claim or error.error)[:60]) from error
        except (ValueError, TypeError, KeyError) as error:  # no token at all
            raise AccessDenied("NB-1129", reason=type(error).__name__) from error
        if not hmac.compare_digest(str(claims["nonce"]).encode(), nonce.encode()):
            raise AccessDenied("NB-1129", reason="nonce")
        if not (isinstance(claims["sub"], str) and 0 < len(claims["sub"]) <= _SUBJECT_MAX):
            raise AccessDenied("NB-1129", reason="sub")
        return claims

    async def _decode(self, text: str, algorithms: list[str]) -> jwt.Token:
        """Raises JoseError, ValueError; a key that is not known is asked for once more."""
        keys, is_fresh = await self._read_keys(_KEYS_LIFE_S)
        try:
            return jwt.decode(text, keys, algorithms=algorithms)
        except (InvalidKeyIdError, BadSignatureError):
            if is_fresh:
                raise
        keys, _ = await self._read_keys(_KEYS_AGAIN_S)
        return jwt.decode(text, keys, algorithms=algorithms)

    # --- what the provider publishes ------------------------------------------------------------------------------

    async def _read_metadata(self) -> dict[str, Any]:
        known, read_at = self._metadata or ({}, 0.0)
        if known and time.monotonic() - read_at < _METADATA_LIFE_S:
            return known
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        status, metadata = await self._ask("GET", url)
        addresses = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        scheme = urlsplit(self.issuer).scheme
        if (
            status != 200
            or metadata.get("issuer") != self.issuer
            or not all(urlsplit(str(metadata.get(name))).scheme in {scheme, "https"} for name in addresses)
        ):
            raise Unavailable("NB-2011")
        self._metadata = metadata, time.monotonic()
        return metadata

    async def _read_keys(self, life_s: float) -> tuple[KeySet, bool]:
        """The provider's keys, at most `life_s` old, and whether they were asked for just now."""
        if self._keys is not None and time.monotonic() - self._keys[1] < life_s:
            return self._keys[0], False
        metadata = await self._read_metadata()
        status, answer = await self._ask("GET", metadata["jwks_uri"])
        try:
            if status != 200:
                raise Unavailable("NB-2011")
            keys = KeySet.import_key_set(answer)  # type: ignore[arg-type]
        except (JoseError, KeyError, TypeError, ValueError) as error:
            raise Unavailable("NB-2011") from error
        self._keys = keys, time.monotonic()
        return keys, True

    async def _ask(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Status below 500, and the JSON object that came with it, {} where there is none. Raises Unavailable."""
        try:
            async with self._client.stream(method, url, headers={"Accept": "application/json"}, **more) as answer:
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise Unavailable("NB-2011")
        except httpx2.HTTPError as error:
            raise Unavailable("NB-2011") from error
        if answer.status_code >= 500:
            raise Unavailable("NB-2011")
        try:
            return answer.status_code, _decode(body)
        except msgspec.DecodeError as error:
            if answer.status_code == 200:
                raise Unavailable("NB-2011") from error
            return answer.status_code, {}


def _read_text(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim that is one line of text."""
    value = claims.get(name)
    return " ".join(value.split())[:200] or None if isinstance(value, str) else None


@asynccontextmanager
async def open_provider(
    *, issuer: str, client_id: str | None, client_secret: str | None, label: str | None
) -> AsyncIterator[OpenIdProvider]:
    """
    The provider; nothing is asked yet, it may be away.

    Raises StartupError (NB-3084): the issuer is no https address (http on this machine only), or a setting is missing.
    """
    parts = urlsplit(issuer)
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or parts.query or not (parts.scheme == "https" or (parts.scheme == "http" and is_local)):
        raise StartupError("NB-3084", setting="NBPULSE_OIDC_ISSUER")
    if not client_id or not client_secret:
        raise StartupError("NB-3084", setting="NBPULSE_OIDC_CLIENT_ID, NBPULSE_OIDC_CLIENT_SECRET")
    async with httpx2.AsyncClient(
        timeout=_ANSWER_LIMIT_S, limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX), follow_redirects=False
    ) as client:
        yield OpenIdProvider(client, issuer=issuer, client_id=client_id, client_secret=client_secret, label=label)
