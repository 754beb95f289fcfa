"""An OpenID Connect provider to sign in at: a real one (oidc-provider-mock, PyPI) in a process of its own.

It never misbehaves by itself, so a step between it and its network can: it changes an ID token's claims or header and
signs it again, with the provider's own key or another's, and it changes what discovery and keys say. Told what by
`PUT /tamper`; `GET /seen` gives the requests to the token endpoint. Run as a program it says its port on stdout.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2

Start = Callable[..., Any]
Environ = dict[str, Any]


class Tampering:
    """WSGI between the provider and its network."""

    def __init__(self, app: Any, storage: Any) -> None:
        self._app, self._storage = app, storage
        self._told: dict[str, Any] = {}
        self._seen: list[dict[str, Any]] = []

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        """Answer as the provider does, or as was told."""
        path = environ["PATH_INFO"]
        if path == "/tamper":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            self._told = json.loads(environ["wsgi.input"].read(length))
            if self._told.get("forget"):
                self._seen.clear()
            if self._told.get("rotate"):
                self._storage.jwk = type(self._storage.jwk).generate_key(is_private=True)
            return _send(start, "200 OK", {})
        if path == "/seen":
            return _send(start, "200 OK", {"token_requests": self._seen})
        if path == "/oauth2/token":
            self._note(environ)
        if path in self._told.get("away", ()):
            return _send(start, "503 Service Unavailable", {})
        return self._change(path, environ, start)

    def _note(self, environ: Environ) -> None:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        form = dict(parse_qsl(body.decode()))
        self._seen.append({"form": form, "authorization": environ.get("HTTP_AUTHORIZATION", "").partition(" ")[0]})

    def _change(self, path: str, environ: Environ, start: Start) -> Iterable[bytes]:
        status_and_headers: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: status_and_headers.extend(given)))
        if not status_and_headers[0].startswith("200") or path not in (
            *("/oauth2/token", "/jwks"),
            "/.well-known/openid-configuration",
        ):
            start(*status_and_headers)
            return [body]
        answer = json.loads(body)
        if path == "/oauth2/token" and "id_token" in answer:
            answer["id_token"] = self._sign_again(answer["id_token"])
        elif path == "/jwks":
            if "kid" in self._told:
                answer["keys"] = [{**key, "kid": self._told["kid"]} for key in answer["keys"]]
            answer |= self._told.get("jwks", {})
        elif path.startswith("/.well-known"):
            answer |= self._told.get("metadata", {})
        return _send(start, "200 OK", answer)

    def _sign_again(self, token: str) -> str:
        told = self._told
        if not {"claims", "without", "header", "signed_by", "kid"} & told.keys():
            return token
        header, claims = (json.loads(_decode(part)) for part in token.split(".")[:2])
        claims = {name: value for name, value in claims.items() if name not in told.get("without", ())}
        claims |= told.get("claims", {})
        header |= told.get("header", {})
        header |= {"kid": told["kid"]} if "kid" in told else {}
        return _sign(header, claims, told.get("signed_by", "provider"), self._storage.jwk)


def _sign(header: dict[str, Any], claims: dict[str, Any], by: str, key: Any) -> str:
    """By hand: no library signs all of this."""
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    header |= {"nobody": {"alg": "none"}, "public key": {"alg": "HS256"}}.get(by, {})
    signed = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
    if by == "nobody":
        return f"{signed}."
    if by == "public key":  # with what everybody knows as its secret
        return f"{signed}.{_encode(hmac.digest(key.as_pem(is_private=False), signed.encode(), 'sha256'))}"
    own = load_pem_private_key(key.as_pem(is_private=True), None)
    signer = rsa.generate_private_key(65_537, 2_048) if by == "somebody else" else own
    assert isinstance(signer, rsa.RSAPrivateKey)
    return f"{signed}.{_encode(signer.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _send(start: Start, status: str, body: dict[str, Any]) -> Iterable[bytes]:
    text = json.dumps(body).encode()
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]


def serve() -> None:
    """Until it is killed."""
    warnings.simplefilter("ignore")  # of the libraries it is made of
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    import oidc_provider_mock._app as provider
    from werkzeug.serving import make_server

    made: list[Any] = []

    class KeptStorage(provider.Storage):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    provider.Storage = KeptStorage  # type: ignore[attr-defined]
    app = provider.app(require_client_registration=True, require_nonce=True)
    server = make_server("127.0.0.1", 0, Tampering(app, made[0]), threaded=True)
    print(server.server_port, flush=True)  # noqa: T201
    server.serve_forever()


class OpenIdServer:
    """The provider's process, and a client that is registered there."""

    def __init__(self, issuer: str, http: httpx2.AsyncClient) -> None:
        self.issuer, self.http = issuer, http
        self.client_id = self.client_secret = ""

    async def register(self, redirect_uri: str, method: str = "client_secret_basic") -> None:
        """As an administrator does: nbpulse's address, in return for an id and a secret."""
        body = {"redirect_uris": [redirect_uri], "token_endpoint_auth_method": method}
        answer = (await self.http.post("/oauth2/clients", json=body)).raise_for_status().json()
        self.client_id, self.client_secret = answer["client_id"], answer["client_secret"]

    async def tamper(self, **what: Any) -> None:
        """From now on misbehave so; without arguments no more."""
        (await self.http.put("/tamper", json=what)).raise_for_status()

    async def read_token_requests(self) -> list[dict[str, Any]]:
        """What came to the token endpoint."""
        found: list[dict[str, Any]] = (await self.http.get("/seen")).json()["token_requests"]
        return found

    async def sign_in(self, url: str, subject: str, **claims: Any) -> str:
        """What a person's browser does there: the address it is sent back to."""
        if claims:
            (await self.http.put(f"/users/{subject}", json=claims)).raise_for_status()
        assert (await self.http.get(url)).status_code == 200
        answer = await self.http.post(url, data={"sub": subject})
        assert answer.status_code == 302, answer.text
        return str(answer.headers["location"])

    async def deny(self, url: str) -> str:
        """The person says no there."""
        answer = await self.http.post(url, data={"action": "deny"})
        assert answer.status_code == 302, answer.text
        location = str(answer.headers["location"])
        state = dict(parse_qsl(urlsplit(url).query))["state"]
        return location if "state=" in location else f"{location}&state={state}"


@contextmanager
def run_openid_provider() -> Iterator[str]:
    """A provider on a free port: its issuer, of another site than a board on 127.0.0.1. Ended with the block."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the provider did not start"
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.communicate()


@asynccontextmanager
async def open_openid_server(issuer: str) -> AsyncIterator[OpenIdServer]:
    """The provider, which behaves and has seen nothing."""
    async with httpx2.AsyncClient(base_url=issuer, timeout=20, trust_env=False) as http:
        server = OpenIdServer(issuer, http)
        await server.tamper(forget=True)
        yield server


if __name__ == "__main__":
    serve()
