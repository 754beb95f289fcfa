"""Renders the chart: the few of Helm's template words that it uses, and an error for every other. This is not Helm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"(\s*)\{\{(-?)\s*(.*?)\s*(-?)\}\}(\s*)", re.DOTALL)
_OPENING = re.compile(r"(if|range|define)\b")
_RANGE = re.compile(r"range (\$\w+), (\$\w+) := (\S+)")


def _split(text: str) -> list[str | tuple[str]]:
    """Text and actions in turn; white space is cut where an action says so."""
    parts: list[str | tuple[str]] = []
    place = 0
    for found in _ACTION.finditer(text):
        before, cut_before, action, cut_after, after = found.groups()
        parts += [text[place : found.start()] + ("" if cut_before else before), (action,)]
        place = found.end() - (0 if cut_after else len(after))
    return [*parts, text[place:]]


class Chart:
    """One chart with one release's name and values."""

    def __init__(self, directory: Path, **values: Any) -> None:
        self._directory = directory
        self.facts = yaml.safe_load((directory / "Chart.yaml").read_text(encoding="utf-8"))
        self.values = yaml.safe_load((directory / "values.yaml").read_text(encoding="utf-8")) | values
        self._scope: dict[str, Any] = {
            "Values": self.values,
            "Chart": {"Name": self.facts["name"]},
            "Release": {"Name": "class"},
        }
        self._defined: dict[str, list[str | tuple[str]]] = {}

    def render(self) -> list[dict[str, Any]]:
        """Every object of every template."""
        self._run(_split((self._directory / "templates/_helpers.tpl").read_text(encoding="utf-8")), {})
        objects: list[dict[str, Any]] = []
        for path in sorted((self._directory / "templates").glob("*.yaml")):
            text = self._run(_split(path.read_text(encoding="utf-8")), {})
            objects += [one for one in yaml.safe_load_all(text) if one]
        return objects

    def _run(self, parts: list[str | tuple[str]], names: dict[str, Any]) -> str:
        out, place = "", 0
        while place < len(parts):
            part = parts[place]
            place += 1
            if isinstance(part, str):
                out += part
            elif _OPENING.match(part[0]):
                end = self._find_end(parts, place)
                out += self._run_block(part[0], parts[place:end], names)
                place = end + 1
            else:
                out += self._evaluate(part[0], names)
        return out

    @staticmethod
    def _find_end(parts: list[str | tuple[str]], place: int) -> int:
        depth = 1
        while True:
            part = parts[place]
            if isinstance(part, tuple):
                depth += bool(_OPENING.match(part[0])) - (part[0] == "end")
                if not depth:
                    return place
            place += 1

    def _run_block(self, action: str, body: list[str | tuple[str]], names: dict[str, Any]) -> str:
        word, _, rest = action.partition(" ")
        if word == "define":
            self._defined[rest.strip('"')] = body
            return ""
        if word == "if":
            return self._run(body, names) if self._look_up(rest, names) else ""
        found = _RANGE.fullmatch(action)
        assert found, action
        entries = self._look_up(found[3], names).items()
        return "".join(self._run(body, names | {found[1]: key, found[2]: value}) for key, value in entries)

    def _look_up(self, path: str, names: dict[str, Any]) -> Any:
        if path.startswith("$"):
            return names[path]
        assert re.fullmatch(r"(\.\w+)+", path), f"not a word that is known here: {path}"
        found: Any = self._scope
        for name in path[1:].split("."):
            found = found[name]
        return found

    def _evaluate(self, action: str, names: dict[str, Any]) -> str:
        first, *pipes = (one.strip() for one in action.split("|"))
        if included := re.fullmatch(r'include "([\w.]+)" \.', first):
            value: Any = self._run(self._defined[included[1]], {})
        elif first.startswith("toYaml "):
            value = yaml.safe_dump(self._look_up(first.removeprefix("toYaml "), names)).rstrip()
        else:
            value = self._look_up(first, names)
        for pipe in pipes:
            word, _, number = pipe.partition(" ")
            if word == "quote":
                value = json.dumps(str(value))
            else:
                assert word == "nindent", f"not a word that is known here: {pipe}"
                value = "\n" + "\n".join(" " * int(number) + line if line else line for line in value.split("\n"))
        return str(value)
