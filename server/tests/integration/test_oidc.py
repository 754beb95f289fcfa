"""Signing in at the board through a real OpenID Connect provider, and everything that must not sign anybody in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx2
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from redis.asyncio import Redis

from nbpulse.doctor import _look_at_provider
from nbpulse.errors import StartupError
from nbpulse.oidc import open_provider
from nbpulse.passwords import Hasher
from nbpulse.records.accounts import Accounts
from openid_provider import OpenIdServer, open_openid_server, run_openid_provider
from stage import Stage, open_stage
from stores import connect

CALLBACK = "/api/v1/sign-in/oidc/callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with run_openid_provider() as found:
        yield found


@pytest.fixture
async def provider(issuer: str) -> AsyncIterator[OpenIdServer]:
    async with open_openid_server(issuer) as server:
        yield server


@pytest.fixture
async def oidc_stage(stage_database: str, embedded_valkey: str, provider: OpenIdServer) -> AsyncIterator[Stage]:
    """An API at which the provider is set up; its address is known before it listens, as behind a proxy."""
    async with AsyncExitStack() as stack:
        await provider.register("http://board.example" + CALLBACK)
        oidc = await stack.enter_async_context(
            open_provider(
                issuer=provider.issuer,
                client_id=provider.client_id,
                client_secret=provider.client_secret,
                label="Example School",
            )
        )
        stage = await stack.enter_async_context(
            open_stage(stage_database, embedded_valkey, public_url="http://board.example", providers={"oidc": oidc})
        )
        yield stage


class Browser:
    """One browser with its cookies, at the board and at the provider."""

    def __init__(self, stage: Stage, provider: OpenIdServer, http: httpx2.AsyncClient) -> None:
        self.stage, self.provider, self.http = stage, provider, http

    async def begin(self) -> str:
        answer = await self.http.post("/api/v1/sign-in/oidc", headers={"Origin": "http://board.example"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["url"])

    async def come_back(self, location: str) -> httpx2.Response:
        parts = urlsplit(location)
        assert (parts.scheme, parts.netloc, parts.path) == ("http", "board.example", CALLBACK)
        return await self.http.get(f"{parts.path}?{parts.query}")

    async def sign_in(self, subject: str, **claims: Any) -> httpx2.Response:
        return await self.come_back(await self.provider.sign_in(await self.begin(), subject, **claims))

    async def read_me(self) -> dict[str, Any] | None:
        answer = await self.http.get("/api/v1/me")
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found


@pytest.fixture
async def browser(oidc_stage: Stage, provider: OpenIdServer) -> AsyncIterator[Browser]:
    async with httpx2.AsyncClient(base_url=oidc_stage.url, timeout=20) as http:
        yield Browser(oidc_stage, provider, http)


def draw_subject() -> str:
    return f"sub-{uuid4().hex}"


async def assert_refused(browser: Browser, answer: httpx2.Response, code: str) -> None:
    """Nobody is signed in, and the page is told why and nothing else."""
    assert (answer.status_code, answer.headers["location"]) == (303, f"/#refused={code}")
    assert "nbp_session" not in str(answer.headers)
    assert await browser.read_me() is None


# --- as it should be --------------------------------------------------------------------------------------------------


async def test_somebody_new_becomes_a_user_without_courses_and_stays_the_same_one(
    oidc_stage: Stage, browser: Browser
) -> None:
    subject = draw_subject()
    answer = await browser.sign_in(subject, name="佐藤 一郎", preferred_username=f"sato-{subject[4:12]}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    me = await browser.read_me()
    assert me is not None
    assert (me["display_name"], me["courses"]) == ("佐藤 一郎", [])
    async with connect(oidc_stage.database_url) as owner:
        row = await owner.fetchrow(
            "SELECT u.username, u.role, u.display_name, i.provider FROM external_identities i"
            " JOIN users u ON u.id = i.user_id WHERE i.subject = $1",
            subject,
        )
        assert (row["username"], row["role"]) == (f"sato-{subject[4:12]}", "student")
        assert row["provider"] == browser.provider.issuer
        assert "佐藤" not in row["display_name"], "sealed"
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role) VALUES ($1::uuid, $2, 'instructor')",
            *(me["user_id"], oidc_stage.course.id),
        )
    async with httpx2.AsyncClient(base_url=oidc_stage.url) as http:
        elsewhere = Browser(oidc_stage, browser.provider, http)
        await elsewhere.sign_in(subject, name="Another name by now")
        again = await elsewhere.read_me()
        assert again is not None
        assert again["user_id"] == me["user_id"]
        assert [one["id"] for one in again["courses"]] == [str(oidc_stage.course.id)]
        assert (await http.get(f"/api/v1/courses/{oidc_stage.course.id}/live")).status_code == 200


async def test_nobody_is_found_by_a_name_or_an_address(oidc_stage: Stage, browser: Browser) -> None:
    name = f"tanaka-{uuid4().hex[:8]}"
    theirs = await Accounts(oidc_stage.people, Hasher()).add(name, "田中", oidc_stage.course.short_name, "instructor")
    await browser.sign_in(draw_subject(), name="田中", preferred_username=name, email=f"{name}@school.example")
    me = await browser.read_me()
    assert me is not None
    assert me["user_id"] != str(theirs)
    assert me["courses"] == []


async def test_the_code_is_bound_by_pkce_and_the_secret_leaves_in_the_header_alone(browser: Browser) -> None:
    url = await browser.begin()
    asked = dict(parse_qsl(urlsplit(url).query))
    assert (asked["code_challenge_method"], asked["response_type"], asked["scope"]) == (
        "S256",
        "code",
        "openid profile",
    )
    assert min(len(asked[name]) for name in ("state", "nonce", "code_challenge")) >= 43
    await browser.come_back(await browser.provider.sign_in(url, draw_subject()))
    (request,) = await browser.provider.read_token_requests()
    assert create_s256_code_challenge(request["form"]["code_verifier"]) == asked["code_challenge"]
    assert request["authorization"] == "Basic"
    assert "client_secret" not in request["form"]
    assert request["form"]["redirect_uri"] == asked["redirect_uri"]


async def test_the_provider_is_offered_by_its_name(oidc_stage: Stage, stage: Stage) -> None:
    offered = (await oidc_stage.http.get("/api/v1/sign-in")).json()
    assert offered == {"providers": [{"id": "oidc", "label": "Example School"}]}
    assert (await stage.http.get("/api/v1/sign-in")).json() == {"providers": []}
    for path in ("/api/v1/sign-in/oidc", "/api/v1/sign-in/elsewhere"):
        answer = await stage.http.post(path, headers={"Origin": stage.url})
        assert (answer.status_code, answer.json()["code"]) == (404, "NB-1126")


async def test_the_cookies_are_lax_on_the_way_and_strict_at_the_end(browser: Browser) -> None:
    begun = await browser.http.post("/api/v1/sign-in/oidc", headers={"Origin": "http://board.example"})
    binding = begun.headers["set-cookie"].lower()
    assert binding.startswith("nbpulse_sign_in=")
    for part in ("httponly", "samesite=lax", "max-age=600", "path=/"):
        assert part in binding
    ended = await browser.come_back(await browser.provider.sign_in(begun.json()["url"], draw_subject()))
    cookies = [one.lower() for one in ended.headers.get_list("set-cookie")]
    assert ["samesite=strict" in one and "httponly" in one for one in cookies if "session=nbp" in one] == [True]
    assert [one for one in cookies if one.startswith("nbpulse_sign_in=") and "max-age=0" in one]


async def test_who_signs_in_anew_leaves_no_second_session(browser: Browser) -> None:
    await browser.sign_in(draw_subject())
    first = browser.http.cookies["nbpulse_session"]
    await browser.sign_in(draw_subject())
    assert browser.http.cookies["nbpulse_session"] != first
    async with httpx2.AsyncClient(base_url=browser.stage.url) as thief:
        stolen = await thief.get("/api/v1/me", headers={"Cookie": f"nbpulse_session={first}"})
        assert stolen.status_code == 401


async def test_a_session_from_a_provider_lasts_12_hours_at_most(oidc_stage: Stage, browser: Browser) -> None:
    await browser.sign_in(draw_subject())
    me = await browser.read_me()
    assert me is not None
    async with connect(oidc_stage.database_url) as owner:
        is_short = await owner.fetchval(
            "SELECT expires_at BETWEEN now() + interval '11 hours' AND now() + interval '12 hours' FROM tokens"
            " WHERE user_id = $1::uuid AND kind = 'session'",
            me["user_id"],
        )
        noted = await owner.fetchval(
            "SELECT facts FROM audit_log WHERE subject_id = $1::uuid AND action = 'session_started'", me["user_id"]
        )
    assert is_short
    assert json.loads(noted) == {"by": "oidc"}


async def test_a_closed_account_is_not_let_in_by_its_provider(oidc_stage: Stage, browser: Browser) -> None:
    subject = draw_subject()
    await browser.sign_in(subject)
    me = await browser.read_me()
    assert me is not None
    await Accounts(oidc_stage.people, Hasher()).close(me["user_id"])
    browser.http.cookies.clear()
    await assert_refused(browser, await browser.sign_in(subject), "NB-1125")


# --- a provider that misbehaves, or somebody who plays it -------------------------------------------------------------


NOW = round(time.time())
FORGERIES: dict[str, dict[str, Any]] = {
    "another nonce": {"claims": {"nonce": "of another sign-in"}},
    "no nonce": {"without": ["nonce"]},
    "expired": {"claims": {"exp": NOW - 3_600, "iat": NOW - 7_200}},
    "no end": {"without": ["exp"]},
    "an end that is no number": {"claims": {"exp": "tomorrow"}},
    "from the future": {"claims": {"iat": NOW + 7_200, "exp": NOW + 9_000}},
    "not yet": {"claims": {"nbf": NOW + 7_200, "exp": NOW + 9_000}},
    "another audience": {"claims": {"aud": "another-client"}},
    "several audiences without us": {"claims": {"aud": ["another-client", "a-third"]}},
    "no audience": {"without": ["aud"]},
    "several audiences, made for another": {"claims": {"azp": "another-client"}},
    "another issuer": {"claims": {"iss": "https://elsewhere.example"}},
    "no issuer": {"without": ["iss"]},
    "nobody": {"without": ["sub"]},
    "nobody at all": {"claims": {"sub": ""}},
    "somebody who is no text": {"claims": {"sub": 7}},
    "somebody far too long": {"claims": {"sub": "x" * 256}},
    "of another access token": {"claims": {"at_hash": "bm90IHRoaXMgb25lIGF0IGFsbA"}},
    "signed by somebody else": {"signed_by": "somebody else"},
    "signed by nobody": {"signed_by": "nobody"},
    "signed with the public key as a secret": {"signed_by": "public key"},
    "an unknown critical header": {"header": {"crit": ["exp"], "exp": 1}},
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_an_id_token_that_is_not_as_it_must_be_signs_nobody_in(browser: Browser, what: str) -> None:
    location = await browser.provider.sign_in(await browser.begin(), subject := draw_subject())
    await browser.provider.tamper(**FORGERIES[what])
    await assert_refused(browser, await browser.come_back(location), "NB-1129")
    async with connect(browser.stage.database_url) as owner:
        assert await owner.fetchval("SELECT count(*) FROM external_identities WHERE subject = $1", subject) == 0
    await browser.provider.tamper()
    assert (await browser.sign_in(subject)).headers["location"] == "/", "the same without the forgery"


async def test_one_audience_among_several_needs_to_be_made_for_us(browser: Browser) -> None:
    audiences = ["another-client", browser.provider.client_id]
    await browser.provider.tamper(claims={"aud": audiences})
    await assert_refused(browser, await browser.sign_in(draw_subject()), "NB-1129")
    await browser.provider.tamper(claims={"aud": audiences, "azp": browser.provider.client_id})
    assert (await browser.sign_in(draw_subject())).headers["location"] == "/"


async def test_a_clock_that_is_half_a_minute_off_does_no_harm(browser: Browser) -> None:
    now = round(time.time())
    await browser.provider.tamper(claims={"iat": now + 30, "exp": now + 3_600})
    assert (await browser.sign_in(draw_subject())).headers["location"] == "/"


async def test_rotated_keys_are_fetched_and_the_old_ones_no_longer_believed(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbpulse.oidc._KEYS_AGAIN_S", 0.0)
    for kid in ("first", "second"):
        await browser.provider.tamper(rotate=True, kid=kid)
        assert (await browser.sign_in(draw_subject())).headers["location"] == "/", kid
    await browser.provider.tamper(rotate=True)  # without a name
    assert (await browser.sign_in(draw_subject())).headers["location"] == "/"
    browser.http.cookies.clear()
    await browser.provider.tamper(kid="never published", jwks={"keys": []})
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    await assert_refused(browser, await browser.come_back(location), "NB-2011")


async def test_unknown_keys_do_not_become_a_flood_at_the_provider(oidc_stage: Stage, browser: Browser) -> None:
    await browser.sign_in(draw_subject())
    browser.http.cookies.clear()
    await browser.provider.tamper(header={"kid": "unknown"})
    asked: list[str] = []
    provider = oidc_stage.parts.providers["oidc"]
    ask = provider._ask  # type: ignore[attr-defined]

    async def count(method: str, url: str, **more: Any) -> Any:
        asked.append(urlsplit(url).path)
        return await ask(method, url, **more)

    provider._ask = count  # type: ignore[attr-defined]
    for _ in range(6):
        await assert_refused(browser, await browser.sign_in(draw_subject()), "NB-1129")
    assert asked.count("/oauth2/token") == 6
    assert asked.count("/jwks") <= 1


@pytest.mark.parametrize(
    "metadata",
    [{"issuer": "https://elsewhere.example"}, {"token_endpoint": "ftp://elsewhere.example"}, {"jwks_uri": None}],
)
async def test_a_discovery_document_of_another_is_not_believed(browser: Browser, metadata: dict[str, Any]) -> None:
    await browser.provider.tamper(metadata=metadata)
    answer = await browser.http.post("/api/v1/sign-in/oidc", headers={"Origin": "http://board.example"})
    assert (answer.status_code, answer.json()["code"]) == (503, "NB-2011")
    await browser.provider.tamper()
    assert (await browser.sign_in(draw_subject())).headers["location"] == "/", "it was not remembered"


@pytest.mark.parametrize("path", ["/oauth2/token", "/jwks"])
async def test_a_provider_that_fails_is_said_and_the_next_try_works(browser: Browser, path: str) -> None:
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    await browser.provider.tamper(away=[path])
    await assert_refused(browser, await browser.come_back(location), "NB-2011")
    await browser.provider.tamper()
    assert (await browser.sign_in(draw_subject())).headers["location"] == "/"


async def test_the_wrong_secret_or_a_person_who_says_no_signs_nobody_in(browser: Browser) -> None:
    denied = await browser.provider.deny(await browser.begin())
    await assert_refused(browser, await browser.come_back(denied), "NB-1128")
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    provider = browser.stage.parts.providers["oidc"]
    secret, provider._client_secret = provider._client_secret, "wrong"  # type: ignore[attr-defined]
    await assert_refused(browser, await browser.come_back(location), "NB-1128")
    provider._client_secret = secret  # type: ignore[attr-defined]


# --- somebody who stole, replays or plants ----------------------------------------------------------------------------


async def test_the_way_back_is_good_once(browser: Browser) -> None:
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    kept = browser.http.cookies["nbpulse_sign_in"]
    assert (await browser.come_back(location)).headers["location"] == "/"
    browser.http.cookies.clear()
    browser.http.cookies.set("nbpulse_sign_in", kept, domain="127.0.0.1", path="/")
    await assert_refused(browser, await browser.come_back(location), "NB-1127")


async def test_of_many_who_come_back_at_once_one_is_signed_in(browser: Browser) -> None:
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    answers = await asyncio.gather(*(browser.come_back(location) for _ in range(6)))
    assert sorted(answer.headers["location"] for answer in answers) == ["/", *["/#refused=NB-1127"] * 5]
    assert len(await browser.provider.read_token_requests()) == 1


async def test_a_stolen_way_back_is_worthless_in_another_browser_and_stays_good_in_its_own(browser: Browser) -> None:
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    async with httpx2.AsyncClient(base_url=browser.stage.url) as http:
        thief = Browser(browser.stage, browser.provider, http)
        await assert_refused(thief, await thief.come_back(location), "NB-1127")
        await thief.begin()  # with a cookie of their own
        await assert_refused(thief, await thief.come_back(location), "NB-1127")
    assert await browser.provider.read_token_requests() == []
    assert (await browser.come_back(location)).headers["location"] == "/"


async def test_nobody_is_signed_in_as_the_attacker_by_the_attackers_own_way_back(browser: Browser) -> None:
    async with httpx2.AsyncClient(base_url=browser.stage.url) as http:
        attacker = Browser(browser.stage, browser.provider, http)
        planted = await attacker.provider.sign_in(await attacker.begin(), draw_subject())
    await assert_refused(browser, await browser.come_back(planted), "NB-1127")
    own = await browser.provider.sign_in(await browser.begin(), draw_subject())
    code = dict(parse_qsl(urlsplit(planted).query))["code"]
    state = dict(parse_qsl(urlsplit(own).query))["state"]
    mixed = await browser.http.get(CALLBACK, params={"code": code, "state": state})  # their code, our state
    await assert_refused(browser, mixed, "NB-1129")  # its ID token bears the nonce of their sign-in


async def test_a_code_of_another_provider_is_not_shown_to_this_one(browser: Browser) -> None:
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    await assert_refused(browser, await browser.come_back(f"{location}&iss=https://elsewhere.example"), "NB-1129")
    assert await browser.provider.read_token_requests() == []
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    assert (await browser.come_back(f"{location}&iss={browser.provider.issuer}")).headers["location"] == "/"


async def test_a_way_back_after_10_minutes_or_of_another_provider_is_none(oidc_stage: Stage, browser: Browser) -> None:
    async with Redis.from_url(oidc_stage.redis_url) as redis:
        before = [one async for one in redis.scan_iter("nbpulse:sign_in:*")]
        location = await browser.provider.sign_in(await browser.begin(), draw_subject())
        (key,) = [one async for one in redis.scan_iter("nbpulse:sign_in:*") if one not in before]
        assert 590 < await redis.ttl(key) <= 600
        state = dict(parse_qsl(urlsplit(location).query))["state"]
        assert state not in key.decode()
        assert hashlib.sha256(state.encode()).hexdigest() not in key.decode()
        await redis.delete(key)
    await assert_refused(browser, await browser.come_back(location), "NB-1127")
    location = await browser.provider.sign_in(await browser.begin(), draw_subject())
    other = await browser.http.get(f"/api/v1/sign-in/jupyterhub/callback?{urlsplit(location).query}")
    await assert_refused(browser, other, "NB-1127")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "code=x",
        "state=x",
        "code=x&state=x",
        "error=access_denied",
        "code=x&state=" + "x" * 300,
        "state=%00&code=%00",
    ],
)
async def test_a_way_back_that_nobody_began_is_refused_without_a_fault(browser: Browser, query: str) -> None:
    await assert_refused(browser, await browser.http.get(f"{CALLBACK}?{query}"), "NB-1127")
    await browser.begin()
    await assert_refused(browser, await browser.http.get(f"{CALLBACK}?{query}"), "NB-1127")


async def test_there_is_nowhere_else_to_be_sent(browser: Browser) -> None:
    elsewhere = "https://elsewhere.example"
    names = ("next", "redirect", "redirect_uri", "return_to", "url", "path", "continue")
    query = "&".join(f"{name}={elsewhere}" for name in names)
    begun = await browser.http.post(f"/api/v1/sign-in/oidc?{query}", headers={"Origin": "http://board.example"})
    assert elsewhere not in begun.json()["url"]
    location = await browser.provider.sign_in(begun.json()["url"], draw_subject())
    headers = {"Referer": elsewhere, "X-Forwarded-Host": "elsewhere.example", "Host": "elsewhere.example"}
    parts = urlsplit(f"{location}&{query}")
    answer = await browser.http.get(f"{parts.path}?{parts.query}", headers=headers)
    assert (answer.status_code, answer.headers["location"]) in [(303, "/"), (303, "/#refused=NB-1127")]


async def test_another_site_cannot_begin_it(browser: Browser) -> None:
    for headers in ({"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await browser.http.post("/api/v1/sign-in/oidc", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "NB-1107")
        assert "set-cookie" not in answer.headers
    assert (await browser.http.get("/api/v1/sign-in/oidc")).status_code in (404, 405)


# --- setting it up ----------------------------------------------------------------------------------------------------


async def test_the_doctor_says_whether_the_provider_is_the_one_it_says_it_is(provider: OpenIdServer) -> None:
    async def look(issuer: str) -> list[tuple[str, str]]:
        return [(check.result, check.found) async for check in _look_at_provider(issuer)]

    ((result, found),) = await look(provider.issuer)
    assert (result, provider.issuer in found) == ("ok", True)
    await provider.tamper(metadata={"issuer": "https://elsewhere.example"})
    ((result, found),) = await look(provider.issuer)
    assert (result, "NB-2011" in found) == ("failure", True)


@pytest.mark.parametrize(
    ("issuer", "client_id", "client_secret"),
    [
        ("http://login.example", "id", "secret"),
        ("ftp://login.example", "id", "secret"),
        ("login.example", "id", "secret"),
        ("https://login.example?x=1", "id", "secret"),
        ("https://login.example", None, "secret"),
        ("https://login.example", "id", ""),
    ],
)
async def test_half_a_setting_or_an_open_line_stops_the_start(
    issuer: str, client_id: str | None, client_secret: str | None
) -> None:
    with pytest.raises(StartupError, match="NB-3084"):
        async with open_provider(issuer=issuer, client_id=client_id, client_secret=client_secret, label=None):
            pass
