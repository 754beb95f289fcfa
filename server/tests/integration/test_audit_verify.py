"""`nbpulse audit`: a change of the log is found and the first bad row named; operators and nobody else read it all."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from nbpulse import cli
from nbpulse.errors import InvalidInput, NbpulseError
from nbpulse.records.audit import Anchor, find_anchor, note_audit, verify_chain
from nbpulse.records.owner import open_owner
from stores import AUDIT_TEXT, connect, create_database

ROWS = 2_500
"""More than one page of the check."""


@pytest.fixture
def database_url(embedded_postgres: str) -> str:
    async def make() -> str:
        url = await create_database(embedded_postgres)
        async with connect(url) as owner, owner.transaction():
            await owner.execute("INSERT INTO users (username) VALUES ('alice')")
            alice = await owner.fetchval("SELECT id FROM users")
            await owner.execute(f"SET LOCAL app.current_user_id = '{alice}'")
            await owner.execute(
                "SELECT note_audit('class_viewed', gen_random_uuid(), NULL, jsonb_build_object('n', n, 'ü', '表'))"
                f" FROM generate_series(1, {ROWS - 1}) n"
            )
            await note_audit(owner, "student_viewed", subject_id=uuid4())
        return url

    return asyncio.run(make())


async def tamper(database_url: str, statement: str) -> None:
    """As who rules the server: no trigger, no grant keeps them from it."""
    async with connect(database_url) as owner:
        await owner.execute("ALTER TABLE audit_log DISABLE TRIGGER refuse_change")
        await owner.execute(statement)


async def verify(database_url: str, *anchors: Anchor) -> Anchor | None:
    async with open_owner(database_url) as pool:
        return await verify_chain(pool, anchors, lambda _done, _total: None)


async def take_anchor(database_url: str) -> Anchor:
    async with open_owner(database_url) as pool:
        anchor = await find_anchor(pool)
    assert anchor is not None
    return anchor


async def test_an_untouched_log_is_as_it_was_written(database_url: str) -> None:
    anchor = await take_anchor(database_url)
    assert anchor.id == ROWS
    assert await verify(database_url, anchor) == anchor


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE audit_log SET facts = '{\"n\": 2}' WHERE id = 1", 1),
        ("UPDATE audit_log SET subject_id = gen_random_uuid() WHERE id = 2100", 2100),
        ("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE id = 7", 7),
        ("UPDATE audit_log SET actor_id = NULL WHERE id = 2000", 2000),
        ("DELETE FROM audit_log WHERE id = 1", 1),
        ("DELETE FROM audit_log WHERE id BETWEEN 5 AND 9", 5),
        ("UPDATE audit_log SET link = sha256('x') WHERE id = 1999", 1999),
        ("UPDATE audit_log SET id = 9999 WHERE id = 30", 30),
        ("INSERT INTO audit_log (id, action, link) VALUES (2501, 'joined', sha256('x'))", 2501),
    ],
)
async def test_the_first_row_that_was_touched_is_named(database_url: str, statement: str, row: int) -> None:
    await tamper(database_url, statement)
    with pytest.raises(InvalidInput) as broken:
        await verify(database_url)
    assert (broken.value.code, broken.value.facts) == ("NB-1191", {"id": row})


async def test_a_cut_end_and_a_chain_written_anew_are_found_by_an_anchor_alone(database_url: str) -> None:
    anchor = await take_anchor(database_url)
    await tamper(database_url, f"DELETE FROM audit_log WHERE id > {ROWS - 10}")
    cut = await verify(database_url)
    assert cut is not None
    assert cut.id == ROWS - 10
    with pytest.raises(InvalidInput) as broken:
        await verify(database_url, anchor)
    assert (broken.value.code, broken.value.facts) == ("NB-1192", {"id": ROWS})

    middle = await take_anchor(database_url)
    async with connect(database_url) as owner:
        await owner.execute(f"UPDATE audit_log SET actor_id = NULL WHERE id = {ROWS - 20}")
        link = await owner.fetchval(f"SELECT link FROM audit_log WHERE id = {ROWS - 21}")
        for number in range(ROWS - 20, ROWS - 9):  # what follows is made to fit
            text = await owner.fetchval(f"SELECT {AUDIT_TEXT} FROM audit_log WHERE id = {number}")
            link = hashlib.sha256(link + text.encode()).digest()
            await owner.execute("UPDATE audit_log SET link = $2 WHERE id = $1", number, link)
    assert await verify(database_url) != middle
    with pytest.raises(InvalidInput) as rewritten:
        await verify(database_url, middle)
    assert rewritten.value.code == "NB-1192"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("NBPULSE_DATABASE_URL", database_url)
    monkeypatch.setenv("NBPULSE_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("NBPULSE_LANGUAGE", "en")

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, ["audit", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return command


def test_the_list_is_filtered_and_names_whom_it_knows(run: Callable[..., str]) -> None:
    rows = [json.loads(line) for line in run("list", "--json", "--actor", "alice", "--limit", "3").splitlines()]
    assert [(row["id"], row["action"]) for row in rows] == [
        (ROWS - 2, "class_viewed"),
        (ROWS - 1, "class_viewed"),
        (ROWS, "student_viewed"),
    ]
    assert rows[0]["facts"] == {"n": ROWS - 2, "ü": "表"}
    table = run("list", "--action", "student_viewed", "--since", "2020-01-01")
    assert "alice" in table
    assert run("list", "--until", "2020-01-01") == ""
    with pytest.raises(NbpulseError) as unknown:
        run("list", "--subject", "nobody")
    assert unknown.value.code == "NB-3023"


def test_the_anchor_printed_is_the_one_the_check_takes(run: Callable[..., str], database_url: str) -> None:
    anchor = run("anchor").strip()
    assert run("verify", "--anchor", anchor).strip() == anchor
    assert json.loads(run("verify", "--json"))["id"] == ROWS
    asyncio.run(tamper(database_url, "DELETE FROM audit_log WHERE id = 77"))
    with pytest.raises(InvalidInput) as broken:
        run("verify", "--anchor", anchor)
    assert "row 77 is the first" in broken.value.title("en")
    assert CliRunner().invoke(cli.app, ["audit", "verify", "--anchor", "77:abc"]).exit_code == 2
