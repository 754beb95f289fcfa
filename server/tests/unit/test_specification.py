"""docs/specification.md forgets no name of the specification; the reader that says so is itself put to the test."""

from __future__ import annotations

import pytest

from specification import DOCUMENT, find_unmentioned, is_shown, list_names, read_rows, read_specification

PLANTED = {
    "a column": (
        "    username VARCHAR(100) UNIQUE NOT NULL,",
        "    username VARCHAR(100) UNIQUE NOT NULL,\n    phone VARCHAR(20),",
        {"`users.phone` `VARCHAR(20)`"},
    ),
    "a default": (
        "cell_count INTEGER DEFAULT 0,",
        "cell_count INTEGER DEFAULT 1,",
        {"`notebooks.cell_count` `INTEGER DEFAULT 1`"},
    ),
    "an index's columns": (
        "ON learning_sessions(started_at);",
        "ON learning_sessions(ended_at);",
        {"CREATE INDEX idx_sessions_started_at ON learning_sessions(ended_at)"},
    ),
    "a tag": ("-- Tags: user_id, notebook_path\n", "-- Tags: user_id, seat\n", {"learning_progress.seat"}),
    "a measurement": ("-- Measurement: learning_progress", "-- Measurement: lesson", {"lesson", "lesson.user_id"}),
    "a channel": ("PUBLISH error_events", "PUBLISH panic_events", {"panic_events"}),
    "a key of a message": ('"avg_progress": 0.75', '"median": 0.75', {"median"}),
    "a life in the cache": ("SETEX class_summary:notebook_abc 300", "SETEX class_summary:notebook_abc 301", {"301"}),
    "a function": ("async def route_event", "async def sort_event", {"sort_event"}),
    "a metric's label": ("['database', 'query_type']", "['database', 'table']", {"table"}),
    "a query's column": ("    ls.error_count,\n", "    ls.seat,\n", {"seat"}),
    "a role": ("CREATE ROLE app_reader;", "CREATE ROLE app_auditor;", {"CREATE ROLE app_auditor", "app_auditor"}),
    "a service": ("  postgres-replica:", "  pgbouncer:", {"pgbouncer"}),
    "an environment variable": ("POSTGRES_MASTER_SERVICE:", "POSTGRES_SLOT:", {"POSTGRES_SLOT"}),
    "a linked document": ("(./SECURITY.md)", "(./PRIVACY.md)", {"PRIVACY.md"}),
    "a target": ("200+ 生徒", "500+ 生徒", {"500+"}),
}


def test_every_name_of_the_specification_has_a_row() -> None:
    names = list_names(read_specification())
    assert len(names) > 220
    assert find_unmentioned(names, read_rows(DOCUMENT.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("kind", PLANTED)
def test_a_new_name_is_missed(kind: str) -> None:
    before, after, missed = PLANTED[kind]
    specification = read_specification()
    assert before in specification
    rows = read_rows(DOCUMENT.read_text(encoding="utf-8"))
    assert missed <= set(find_unmentioned(list_names(specification.replace(before, after)), rows))


def test_a_row_taken_away_is_missed() -> None:
    names = list_names(read_specification())
    rows = read_rows(DOCUMENT.read_text(encoding="utf-8"))
    without = [row for row in rows if "`websocket_connections`" not in row.names]
    assert len(without) == len(rows) - 1
    assert find_unmentioned(names, without) == ["connection_id", "websocket_connections"]


def test_a_block_nobody_can_read_is_no_block_without_names() -> None:
    with pytest.raises(AssertionError, match="nobody reads 'graphql'"):
        list_names("```graphql\ntype User\n```\n")


def test_rows_of_several_tables_in_their_order() -> None:
    document = (
        "| specification | here | difference and reason | command | shows |\n|---|---|---|---|---|\n"
        "| `a` | here | none | `true` | `/x\\|y/` |\n| `b` | there | none | 〃 | `z` |\n"
    )
    first, second = read_rows(document)
    assert (first.command, first.shows, second.command, second.shows) == ("true", "/x|y/", "true", "z")


@pytest.mark.parametrize(
    ("shows", "answer", "is_there"),
    [
        ("id uuid not null", " id   | uuid |   | not null | ", True),
        ("id uuid not null", " id   | uuid |   |  | ", False),
        ('{"a":…"c":1', '{"a":2,"b":0,"c":1}', True),
        ('{"a":…"c":1', '{"a":2}', False),
        (r"/^3[56]\d\d$/", "3599\n", True),
        (r"/^3[56]\d\d$/", "300\n", False),
    ],
)
def test_what_an_answer_shows(shows: str, answer: str, is_there: bool) -> None:
    assert is_shown(shows, answer) is is_there
