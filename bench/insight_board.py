"""The three who need help most, read from the demo's own screen and held against what was planted: docs/insight.md.

    python bench/insight_board.py [--classes 20] [--students 60] [--together 5]

Each class is one `nbpulse demo` of another seed: all of the system, with stores of its own, in real time. At each of
the minutes asked for, the board is opened anew in Chromium, and the attention list read from its top as text until
three students are in it; nothing but the address, and which student a number is, comes from elsewhere. What was planted
is read from the file the demo keeps. The class begins 14 minutes before the demo does: what happened in them is
delivered at once, as by computers that were offline (no other time is compressed).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from playwright.async_api import Browser, BrowserContext, async_playwright
from report import RESULTS, describe_machine

from nbpulse.network import find_free_port
from nbpulse.simulator import BEGINS_MIN, rank_by_need, read_truth

FLAGS = ["--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"]
MINUTES = (2, 5)
WANTED = 3
ENTRY = ".attention .entries > li"
START_TIMEOUT_S = 180


@asynccontextmanager
async def run_demo(seed: int, students: int) -> AsyncIterator[tuple[dict[str, Any], Path]]:
    """The facts of a demo and its data directory, from when it says that it is ready."""
    with tempfile.TemporaryDirectory(prefix="nbpulse-insight-") as directory:
        command = [sys.executable, "-m", "nbpulse", "demo", "--students", str(students), "--seed", str(seed), "--json"]
        process = await asyncio.create_subprocess_exec(
            *[*command, "--data", directory, "--port", str(find_free_port())],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(START_TIMEOUT_S):
                facts = json.loads(await process.stdout.readline())
            yield facts, Path(directory)
        finally:
            process.terminate()
            await process.wait()


async def read_screen(context: BrowserContext, address: str) -> tuple[list[dict[str, str]], float]:
    """The first entries of the attention list as text until three students are in them, and after how many seconds."""
    page = await context.new_page()
    try:
        started_s = time.perf_counter()
        await page.goto(address)
        await page.locator(ENTRY).nth(WANTED - 1).wait_for(timeout=60_000)
        took_s = time.perf_counter() - started_s
        shown: dict[str, dict[str, str]] = {}
        for entry in await page.locator(ENTRY).all():
            text = " | ".join((await entry.inner_text()).split("\n"))
            found = re.search(r"\bD\d{6}\b", text)
            assert found, text
            kind = await entry.get_attribute("data-kind") or ""
            shown.setdefault(found[0], {"number": found[0], "kind": kind, "text": text})
            if len(shown) == WANTED:
                break
        return list(shown.values()), took_s
    finally:
        await page.close()


async def measure(browser: Browser, seed: int, students: int) -> list[dict[str, Any]]:
    """One class: what was read at each minute, beside what was planted."""
    async with run_demo(seed, students) as (facts, data_dir):
        context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
        try:
            page = await context.new_page()
            await page.goto(facts["teacher_link"])
            await page.locator(ENTRY).first.wait_for(timeout=60_000)  # so the class is at work, and its truth written
            address = page.url
            await page.close()
            looks = []
            for minute in MINUTES:
                await asyncio.sleep(max(0.0, 60 * (BEGINS_MIN + minute - read_truth(data_dir)["minute"])))
                shown, took_s = await read_screen(context, address)
                looks.append({"seed": seed, "minute": minute, "shown_s": round(took_s, 2)} | judge(data_dir, shown))
            return looks
        finally:
            await context.close()


def judge(data_dir: Path, shown: list[dict[str, str]]) -> dict[str, Any]:
    """How many of who was read are the three neediest, and whether the reasons say what was planted."""
    truth = read_truth(data_dir)
    ranked = rank_by_need(truth["students"], truth["minute"])
    places = {one["number"]: place for place, one in enumerate(ranked, 1)}
    planted = {one["number"]: one for one in ranked}
    read = [
        {
            **one,
            "planted": planted[one["number"]]["kind"] if one["number"] in planted else None,
            "place": places.get(one["number"]),
            "is_reason_right": one["number"] in planted
            and (not planted[one["number"]]["means"] or one["kind"] in planted[one["number"]]["means"]),
        }
        for one in shown
    ]
    missed = [one["kind"] for one in ranked[:WANTED] if one["number"] not in {entry["number"] for entry in shown}]
    return {
        "right": sum(one["place"] is not None and one["place"] <= WANTED for one in read),
        "troubled": len(ranked),
        "read": read,
        "missed": missed,
    }


def summarise(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of docs/insight.md, by minute."""
    found = {}
    for minute in MINUTES:
        these = [look for look in looks if look["minute"] == minute]
        read = [one for look in these for one in look["read"]]
        found[str(minute)] = {
            "right_of_3_mean": round(mean(look["right"] for look in these), 2),
            "right_of_3": [look["right"] for look in these],
            "in_trouble_share": round(mean(one["planted"] is not None for one in read), 3),
            "reason_right_share": round(mean(one["is_reason_right"] for one in read), 3),
            "in_trouble_mean": round(mean(look["troubled"] for look in these), 1),
            "shown_s_max": max(look["shown_s"] for look in these),
        }
    return found


async def measure_all(asked: argparse.Namespace) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(asked.together)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        async def measure_one(seed: int) -> list[dict[str, Any]]:
            async with gate:
                looks = await measure(browser, seed, asked.students)
            for look in looks:
                print(seed, look["minute"], look["right"], look["missed"], file=sys.stderr, flush=True)
            return looks

        seeds = range(asked.seed, asked.seed + asked.classes)
        found = await asyncio.gather(*map(measure_one, seeds))
        await browser.close()
    return [look for looks in found for look in looks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--students", type=int, default=60)
    parser.add_argument("--seed", type=int, default=401)
    parser.add_argument("--together", type=int, default=5, help="so many demos at a time")
    parser.add_argument("--dry", action="store_true", help="print only")
    asked = parser.parse_args()
    looks = asyncio.run(measure_all(asked))
    told = {"classes": asked.classes, "students": asked.students, "first_seed": asked.seed, "together": asked.together}
    told |= {"machine": describe_machine(), "minutes": summarise(looks), "looks": looks}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    print(text)
    if not asked.dry:
        (RESULTS / "insight_board.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
