"""What the specification names, and what docs/specification.md says of each: two readers for the tests.

A name is what a reader could search for: identifiers of SQL, whole definitions and statements, tags and fields in
comments, Redis commands' words and JSON keys, what Python code calls, defines, imports or quotes, every word of a
compose file, links, figures. A block in a language nobody can read here is an error, so that none is passed over.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from servers import ROOT, give_up

SPECIFICATION = "shared/spec/database_architecture.ja.md"
DOCUMENT = ROOT / "docs" / "specification.md"
DITTO = "〃"


def read_specification() -> str:
    """It lies beside the clone, not in it; a work tree may lie a directory deeper."""
    path = next((path for directory in ROOT.parents if (path := directory / SPECIFICATION).exists()), None)
    if path is None:
        give_up(f"the specification is not beside this clone (../{SPECIFICATION})")
    return path.read_text(encoding="utf-8")


# --- the specification ----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z_][a-z0-9_]*")
_TABLE = re.compile(r"CREATE TABLE (\w+) \((.*?)\n\);", re.DOTALL)
# Letters for tables and times, and InfluxQL's keyword, which the specification writes small.
_SQL_NO_NAMES = {"u", "ls", "as", "h", "m"}
_PYTHON_NO_NAMES = {*dir(builtins), *dir(str), *dir(bytes), "self", "hexdigest"}


def list_names(specification: str) -> set[str]:
    """Every name."""
    readers: dict[str, Callable[[str], Iterator[str]]] = {
        "sql": _read_sql,
        "redis": _read_redis,
        "python": _read_python,
        "yaml": _read_yaml,
    }
    names: set[str] = set()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", specification, re.DOTALL | re.MULTILINE):
        assert language in readers, f"nobody reads {language!r} here:\n{block}"
        names.update(readers[language](block))
    prose = re.sub(r"^```.*?^```", "", specification, flags=re.DOTALL | re.MULTILINE)
    names.update(re.findall(r"^- \*\*(.+?)\*\*", prose, re.MULTILINE))
    names.update(re.findall(r"\d+\+|< \d+\w+", prose))
    names.update(re.findall(r"`([^`]+)`", prose))
    names.update(Path(target).name for target in re.findall(r"\]\(([^)]+)\)", prose))
    return names - {"..."}


def _read_sql(block: str) -> Iterator[str]:
    yield from _read_comments(block)
    code = re.sub(r"--.*", "", block)
    for table, body in _TABLE.findall(code):
        for line in filter(None, (line.strip().rstrip(",") for line in body.splitlines())):
            column, _, definition = line.partition(" ")
            yield f"`{table}.{column}` `{definition}`"  # in one row
    # InfluxQL's statements end without a mark: the next begins its line.
    for statement in (" ".join(one.split()) for one in re.split(r";|\n(?=SELECT)", _TABLE.sub("", code))):
        if statement:
            yield statement
    yield from (word for word in _WORD.findall(re.sub(r"'[^']*'", "", code)) if word not in _SQL_NO_NAMES)
    yield from re.findall(r"'(\w[\w.]+)'", code)


def _read_comments(block: str) -> Iterator[str]:
    """`-- Measurement: m` and the Tags, Fields and Time below it: `m.tag`."""
    measurement = ""
    for kind, listed in re.findall(r"^-- (Measurement|Tags|Fields|Time): (.+)$", block, re.MULTILINE):
        if kind == "Measurement":
            measurement = listed.strip()
            yield measurement
        else:
            yield from (f"{measurement}.{name.strip()}" for name in listed.split(","))


def _read_redis(block: str) -> Iterator[str]:
    if "await" in block or "=" in block.replace("==", ""):
        yield from _read_python(block)
        return
    for line in block.splitlines():
        if not line or line.startswith("#"):
            continue
        for word in shlex.split(line.replace("{...}", "{}")):
            yield from _read_json(json.loads(word)) if word.startswith("{") else [word]


def _read_json(value: dict[str, Any]) -> Iterator[str]:
    for key, content in value.items():
        yield key
        if isinstance(content, str) and re.fullmatch(r"\w+", content):
            yield content


def _read_python(block: str) -> Iterator[str]:
    tree = compile(block, "specification", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    own = _find_local_names(tree)
    for node in ast.walk(tree):
        for name in _name(node):
            if name not in own and name not in _PYTHON_NO_NAMES:
                yield name


def _name(node: ast.AST) -> list[str]:
    names: list[str] = []
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            names = [node.name, *(one.arg for one in node.args.args)]
        case ast.ClassDef():
            names = [node.name]
        case ast.Name():
            names = [node.id]
        case ast.Attribute():
            names = [f"event.{node.attr}" if ast.unparse(node.value) == "event" else node.attr]
        case ast.ImportFrom():
            names = [str(node.module), *(one.name for one in node.names)]
        case ast.keyword():
            names = [str(node.arg)]
            if isinstance(node.value, ast.Constant):
                names.append(f"{node.arg}={node.value.value}")
        case ast.Constant(value=str() as text):
            names = [text]
        case ast.Constant(value=int() as number) if number >= 100:
            names = [str(number)]
    return names


def _find_local_names(tree: ast.AST) -> set[str]:
    """What a function gives a name for itself: nobody looks for that."""
    own: set[str] = {"event", "self"}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    own.add(node.id)
                elif isinstance(node, ast.ExceptHandler) and node.name:
                    own.add(node.name)
    return own


def _read_yaml(block: str) -> Iterator[str]:
    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, content in value.items():
                yield str(key)
                yield from walk(content)
        elif isinstance(value, str):
            yield value

    yield from walk(yaml.safe_load(block))


# --- docs/specification.md ------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of a table: what the specification names, where it lives, why it differs, and what shows it."""

    line: int
    names: str
    place: str
    difference: str
    command: str
    shows: str


def read_rows(document: str) -> list[Row]:
    """Every row whose table ends with a command and what it shows; a ditto mark is the command above."""
    rows: list[Row] = []
    for number, line in enumerate(document.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]
        if not line.startswith("| ") or cells[0] == "specification":
            continue
        assert len(cells) == 5, f"docs/specification.md:{number}: {len(cells)} cells"
        command = rows[-1].command if cells[3] == DITTO else _take_code(cells[3], number)
        rows.append(Row(number, *cells[:3], command, _take_code(cells[4], number)))
    return rows


def _take_code(cell: str, number: int) -> str:
    found = re.fullmatch(r"(`+)(.+)\1", cell)
    assert found, f"docs/specification.md:{number}: no code: {cell}"
    return found[2].strip().replace("\\|", "|")


def find_unmentioned(names: set[str], rows: list[Row]) -> list[str]:
    """Names in no row's first cell, nor as code in the next two; queries that no row's command types."""
    said = "\n".join([row.names + " ".join(re.findall(r"`[^`]+`", row.place + row.difference)) for row in rows])
    typed = "\n".join(row.command for row in rows)
    return sorted(name for name in names if not _stands_in(typed if is_query(name) else said, name))


def is_query(name: str) -> bool:
    """Whether it is a whole query."""
    return name.startswith("SELECT ") and " FROM " in name


def _stands_in(text: str, name: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def is_shown(shows: str, answer: str) -> bool:
    """
    Whether the answer contains it. `/…/` is a regular expression; in other text `…` stands for anything, and lines
    between columns, line ends and blanks count as one blank.
    """
    if shows.startswith("/") and shows.endswith("/"):
        return bool(re.search(shows[1:-1], answer, re.MULTILINE))
    pattern = ".*?".join(re.escape(" ".join(part.split())) for part in shows.split("…"))
    return bool(re.search(pattern, " ".join(re.sub(r"[|+]", " ", answer).split())))
