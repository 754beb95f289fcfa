"""The three who need help most, read from the board's own screen and held against what was planted: docs/insight.md.

    python bench/insight_board.py [--classes 20] [--students 60] [--together 20]

Each class is that of `nbpulse demo --seed N`: prepared, joined and played by the same code over HTTP, in real time, in
a course of its own; several of them share one `nbpulse up`. At each of the minutes asked for, the board is opened anew
in Chromium, and the attention list read from its top, as text, until three students are in it. A class begins 22
minutes before it is joined, as the demo does: what happened in them is delivered at once, as by computers that were
offline. No other time is compressed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from statistics import mean
from typing import Any
from uuid import UUID

import asyncpg
from playwright.async_api import BrowserContext, Page, async_playwright
from playwright.async_api import TimeoutError as PlaywrightTimeoutError
from report import RESULTS, describe_machine
from systems import Nbpulse

from nbpulse.simulator import BEGINS_MIN, ClassOptions, Schoolroom, Wire, measure_need, rank_by_need
from nbpulse.simulator.course import prepare_course

FLAGS = ["--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"]
MINUTES = (2, 8)
"""After the class was joined; 24 and 30 of the class."""
WANTED, GLANCE_S = 3, 20
NEAR_MIN = 0.5
"""Who needs help by so much less than the third is as good as the third: nobody could tell."""
ENTRY = ".attention .entries > li"
_BEGIN = "INSERT INTO class_meetings (course_id, started_at) VALUES ($1, $2)"


class Lesson:
    """One class at work in a course of its own."""

    def __init__(self, url: str, course: dict[str, Any], seed: int, students: int) -> None:
        self.seed = seed
        self.course_id: str = course["id"]
        self.address = f"{url}/courses/{self.course_id}"
        self.room = Schoolroom(ClassOptions(url, course["join_code"], students, seed=seed))
        self.truth = self.room.tell_truth()
        self._working: asyncio.Task[None] | None = None
        self._joined_s = 0.0

    def join(self) -> None:
        self._joined_s = time.monotonic()
        self._working = asyncio.create_task(self.room.run())

    @property
    def minute(self) -> float:
        """Of the class, now."""
        return BEGINS_MIN + (time.monotonic() - self._joined_s) / 60

    async def wait_for(self, minute: float) -> None:
        """Until that minute. Raises what has gone wrong with the class."""
        assert self._working is not None
        done, _ = await asyncio.wait([self._working], timeout=max(0.0, 60 * (minute - self.minute)))
        for task in done:
            task.result()

    async def end(self) -> None:
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)


async def open_lesson(system: Nbpulse, seed: int, students: int) -> Lesson:
    """A new course, prepared as the demo's is, whose class has begun 22 minutes ago."""
    url = system.described["url"]
    staff = Wire(url, system.described["teacher_token"])
    try:
        made = await staff.ask("POST", "/api/v1/courses", {"title": f"Seed {seed}"})
        assert made.status == 201, made
        lesson = Lesson(url, made.content, seed, students)
        await prepare_course(staff, lesson.course_id, lesson.room.pupils)
    finally:
        staff.close()
    owner = await asyncpg.connect(system.owner_url)
    try:
        await owner.execute(_BEGIN, UUID(lesson.course_id), datetime.now(UTC) - timedelta(minutes=BEGINS_MIN))
    finally:
        await owner.close()
    return lesson


async def read_screen(page: Page, address: str) -> tuple[list[dict[str, str]], float]:
    """The attention list from its top, as text, to the third student; after how many seconds it was there."""
    started_s = time.perf_counter()
    await page.goto(address)
    await page.locator(ENTRY).first.wait_for(timeout=60_000)
    with contextlib.suppress(PlaywrightTimeoutError):  # then there are fewer: it is what a teacher would see
        await page.locator(ENTRY).nth(WANTED - 1).wait_for(timeout=1000 * GLANCE_S)
    took_s = time.perf_counter() - started_s
    shown: dict[str, dict[str, str]] = {}
    for entry in await page.locator(ENTRY).all():
        text = " | ".join((await entry.inner_text()).split("\n"))
        number = re.search(r"\bD\d{6}\b", text)
        assert number, text
        kind = await entry.get_attribute("data-kind") or ""
        shown.setdefault(number[0], {"number": number[0], "kind": kind, "text": text})
        if len(shown) == WANTED:
            break
    return list(shown.values()), took_s


def judge(lesson: Lesson, shown: list[dict[str, str]], minute: float) -> dict[str, Any]:
    """How many of who was read are the three neediest, and whether the reasons say what was planted."""
    ranked = rank_by_need(lesson.truth, minute)
    third = measure_need(ranked[WANTED - 1], minute) if len(ranked) >= WANTED else 0.0
    planted = {one["number"]: (place, one) for place, one in enumerate(ranked, 1)}
    read = []
    for entry in shown:
        place, one = planted.get(entry["number"], (None, None))
        found = {
            "place": place,
            "planted": one and one["kind"],
            "need_min": one and round(measure_need(one, minute), 1),
        }
        is_right = one is not None and (not one["means"] or entry["kind"] in one["means"])
        read.append(entry | found | {"is_reason_right": is_right})
    return {
        "right": sum(one["place"] is not None and one["place"] <= WANTED for one in read),
        "right_or_near": sum(one["need_min"] is not None and one["need_min"] >= third - NEAR_MIN for one in read),
        "troubled": len(ranked),
        "read": read,
        "missed": [
            {"planted": one["kind"], "need_min": round(measure_need(one, minute), 1)}
            for one in ranked[:WANTED]
            if one["number"] not in {entry["number"] for entry in shown}
        ],
    }


async def look(context: BrowserContext, lesson: Lesson, minute: int) -> dict[str, Any]:
    """What is on the screen at that minute after joining, beside what was planted."""
    await lesson.wait_for(BEGINS_MIN + minute)
    page = await context.new_page()
    try:
        shown, took_s = await read_screen(page, lesson.address)
        at = lesson.minute
    finally:
        await page.close()
    found = {"seed": lesson.seed, "minute": minute, "at": round(at, 2), "shown_s": round(took_s, 2)}
    return found | judge(lesson, shown, at)


async def measure(system: Nbpulse, context: BrowserContext, seeds: list[int], students: int) -> list[dict[str, Any]]:
    """Some classes, all at once."""
    lessons = [await open_lesson(system, seed, students) for seed in seeds]
    looks = []
    try:
        for lesson in lessons:
            lesson.join()
            await asyncio.sleep(6)  # so that not all of them come, and are looked at, at once
        for minute in MINUTES:
            for lesson in lessons:
                found = await look(context, lesson, minute)
                looks.append(found)
                print(json.dumps(found, ensure_ascii=False), file=sys.stderr, flush=True)
    finally:
        for lesson in lessons:
            await lesson.end()
    return looks


def summarise(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of docs/insight.md, by minute."""
    found = {}
    for minute in MINUTES:
        these = [one for one in looks if one["minute"] == minute]
        read = [entry for one in these for entry in one["read"]]
        found[str(minute)] = {
            "right_of_3_mean": round(mean(one["right"] for one in these), 2),
            "right_of_3": [one["right"] for one in these],
            "right_or_near_of_3_mean": round(mean(one["right_or_near"] for one in these), 2),
            "in_trouble_share": round(mean(entry["planted"] is not None for entry in read), 3),
            "reason_right_share": round(mean(entry["is_reason_right"] for entry in read), 3),
            "in_trouble_mean": round(mean(one["troubled"] for one in these), 1),
            "shown_s_max": max(one["shown_s"] for one in these),
        }
    return found


async def measure_all(system: Nbpulse, asked: argparse.Namespace) -> list[dict[str, Any]]:
    seeds = list(range(asked.seed, asked.seed + asked.classes))
    looks = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US")
        page = await context.new_page()
        async with page.expect_response("**/api/v1/sign-in", timeout=60_000):
            await page.goto(system.described["teacher_link"])
        await page.wait_for_load_state("networkidle")
        await page.close()
        for first in range(0, len(seeds), asked.together):
            looks += await measure(system, context, seeds[first : first + asked.together], asked.students)
        await browser.close()
    return looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--students", type=int, default=60)
    parser.add_argument("--seed", type=int, default=401)
    parser.add_argument("--together", type=int, default=20, help="so many classes at a time")
    parser.add_argument("--dry", action="store_true", help="print only")
    asked = parser.parse_args()
    system = Nbpulse()
    try:
        system.start()
        looks = asyncio.run(measure_all(system, asked))
    finally:
        system.stop()
        system.remove()
    told = {"classes": asked.classes, "students": asked.students, "first_seed": asked.seed, "together": asked.together}
    told |= {"machine": describe_machine(), "minutes": summarise(looks), "looks": looks}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    print(text)
    if not asked.dry:
        (RESULTS / "insight_board.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
