"""Every link leads somewhere, each document has its twin, and generated parts are what they are made of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import ROOT

TWINS = (
    *("README.md", "docs/README.md", "docs/install.md", "docs/privacy.md"),
    *("docs/DATABASE_COMPARISON.md", "docs/PERFORMANCE.md", "docs/SECURITY.md", "docs/capacity.md"),
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


def list_documents(root: Path) -> list[Path]:
    """Every Markdown file of the repository; what tools unpack lies in hidden directories."""
    found = root.rglob("*.md")
    hidden = (".", "node_modules", "secrets")
    return sorted(path for path in found if not any(part.startswith(hidden) for part in path.relative_to(root).parts))


def split_document(text: str) -> tuple[list[str], list[str], str]:
    """Headings with their marks, code blocks, and the text without code."""
    prose = FENCE.sub("", text)
    headings = re.findall(r"^#+ .+$", prose, re.MULTILINE)
    return headings, FENCE.findall(text), re.sub(r"`[^`\n]*`", "", prose)


def list_anchors(text: str) -> set[str]:
    """As GitHub makes them of headings; of equal ones the second gets a number."""
    anchors: set[str] = set()
    for heading in split_document(text)[0]:
        plain = heading.lstrip("#").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, anchor = 0, slug
        while anchor in anchors:
            number += 1
            anchor = f"{slug}-{number}"
        anchors.add(anchor)
    return anchors


def find_broken_links(root: Path) -> Iterator[str]:
    """`document: target` for each relative link that leads nowhere."""
    for document in list_documents(root):
        for target in LINK.findall(split_document(document.read_text(encoding="utf-8"))[2]):
            if re.match(r"[a-z]+:", target):
                continue  # another site: nobody here can say
            name, _, anchor = target.partition("#")
            path = document.parent / name if name else document
            # Case counts on Linux and does not on macOS: listed as it is written, it holds on both.
            is_there = path.exists() and path.name in {entry.name for entry in path.resolve().parent.iterdir()}
            if not is_there or (anchor and anchor not in list_anchors(path.read_text(encoding="utf-8"))):
                yield f"{document.relative_to(root)}: {target}"


def test_every_link_leads_somewhere() -> None:
    assert len(list_documents(ROOT)) > 25
    assert list(find_broken_links(ROOT)) == []


def test_every_test_a_document_names_is_there() -> None:
    named = re.findall(
        r"`((?:server|capture)/tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/asvs.md").read_text("utf-8")
    )
    assert len(named) > 40
    gone = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).exists() or (test and f"def {test}(" not in (ROOT / file).read_text("utf-8"))
    ]
    assert gone == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One\n[x](b.md) [y](b.md#two) [z](B.md) [gone](c.md) [lost](b.md#three) [self](#one) [far](https://x.invalid/)\n"
        "```\n[in code](d.md)\n```\n`[in code](e.md)`\n"
    )
    (tmp_path / "b.md").write_text("# Two\n")
    assert list(find_broken_links(tmp_path)) == ["a.md: B.md", "a.md: c.md", "a.md: b.md#three"]


@pytest.mark.parametrize("name", TWINS)
def test_a_document_and_its_japanese_twin_have_the_same_parts(name: str) -> None:
    english = split_document((ROOT / name).read_text(encoding="utf-8"))
    japanese = split_document((ROOT / name.replace(".md", ".ja.md")).read_text(encoding="utf-8"))
    assert [one.split()[0] for one in japanese[0]] == [one.split()[0] for one in english[0]]
    assert re.search(r"[ぁ-ん]", japanese[2])
    assert mask(japanese[1]) == mask(english[1])


def mask(blocks: list[str]) -> list[str]:
    """Code alike but for what stands in `<...>`: a place to fill in, said in either language."""
    return [re.sub(r"<[^>\n]+>", "<>", block) for block in blocks]


def test_no_two_documents_differ_by_case_alone() -> None:
    names = [str(path.relative_to(ROOT)).lower() for path in list_documents(ROOT)]
    assert len(names) == len(set(names))


def test_generated_parts_are_what_the_results_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import documents

    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.setattr(documents, "DOCS", tmp_path / "docs")
    assert documents.write_documents() == [], "run: python bench/documents.py"


def test_a_table_made_in_english_only_stands_where_there_is_a_place_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import documents

    monkeypatch.setattr(documents, "SECTIONS", {"reads": lambda result: result["said"], "unmeasured": str})
    (tmp_path / "reads.json").write_text('{"said": "new"}')
    text = "# あ\n<!-- begin: reads, generated -->\nold\n<!-- end: reads -->\n<!-- begin: own, generated -->"
    assert documents.fill_sections(text, tmp_path, is_whole=True) == text.replace("old", "new")
    assert documents.fill_sections("# あ\n", tmp_path, is_whole=False) == "# あ\n"
    with pytest.raises(ValueError, match="begin: reads, generated"):
        documents.fill_sections("# A\n", tmp_path, is_whole=True)


def test_figures_of_both_stores_stand_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import documents

    assert "Not measured yet" in documents.compose_comparison(tmp_path, "en")
    assert "まだ計測していません" in documents.compose_comparison(tmp_path, "ja")
    ours = {"writes_per_s": 41234, "rollups_s": 9.5, "query_1_ms": 12.5, "new_ms": 1}
    theirs = {"writes_per_s": 250000, "query_1_ms": None, "new_ms": 2}
    found = {
        "measured_at": "2026-11-25T20:00:00+00:00",
        "command": "bench/timeseries.py",
        "machine": {"cpu": "X", "cores": 2, "memory_gb": 8, "system": "Linux"},
        "sizes": [{"points": 1_000_000, "stores": {"PostgreSQL": ours, "InfluxDB 1.6.7": theirs}}],
    }
    (tmp_path / "timeseries.json").write_text(json.dumps(found))
    assert documents.compose_comparison(tmp_path, "en").splitlines() == [
        "Made by `bench/timeseries.py` on 2026-11-25: X, 2 cores, 8 GB, Linux. All stores in one run.",
        "",
        "| figure | PostgreSQL | InfluxDB 1.6.7 |",
        "|---|---:|---:|",
        "| 1,000,000 points: written in the worker's batches, points/s | 41,234 | 250,000 |",
        "| 1,000,000 points: making all rollups once, s | 9.5 | - |",
        "| 1,000,000 points: query 1 through nbpulse's store, ms | 12.5 | not within its deadline |",
        "| 1,000,000 points: new_ms | 1 | 2 |",
    ]
    assert "| 1,000,000 点:ワーカーのまとめ書き(点/秒) | 41,234 | 250,000 |" in documents.compose_comparison(
        tmp_path, "ja"
    )
