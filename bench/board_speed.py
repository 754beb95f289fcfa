"""The live page in a real browser while a class works: main-thread time, frames, event to pixel, snapshots.

    .venv/bin/python bench/board_speed.py

Chromium without a window and with software drawing, 1280 x 800, beside the system and the load client on the same
cores. `main_thread_ms_per_s` is what the browser says of its own tasks (CDP, Performance.getMetrics, TaskDuration), by
the clock, so it holds what other processes took meanwhile; `main_thread_cpu_ms_per_s` is the processor's time of the
same. Frames are the gaps between calls of requestAnimationFrame, event to pixel counts from when an event was due to
the frame after its square's change. What is needed to see those two costs main-thread time, so each has its own run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import time
from typing import Any

import load
import systems
from documents import write_documents
from load import Load, make_visible_posts
from measures import find_percentile
from playwright.async_api import CDPSession, Page, async_playwright, expect
from report import RESULTS, describe_machine, write_results
from systems import Nbpulse, ask

RATE_PER_S = 100
CLASSES = {"200 students, 40 cells": (200, 40), "1,000 students, 60 cells": (1000, 60)}
MEASURE_S, CPU_S, FRAMES_S, PIXEL_S = 30, 15, 15, 15
FLAGS = ["--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"]
# Every square that changes, by its student and cell, with the wall clock of the frame after it.
WATCH_PIXELS = """() => {
  window.pixels = [];
  new MutationObserver((changes) => {
    const keys = changes.map(({ target }) => [
      target.closest("[data-student]")?.dataset.student, target.dataset.cell, target.dataset.state]);
    const note = () => { for (const key of keys) window.pixels.push([...key, Date.now()]); };
    requestAnimationFrame(() => setTimeout(note));
  }).observe(document.querySelector(".grid"), { subtree: true, attributes: true, attributeFilter: ["data-state"] });
}"""
WATCH_FRAMES = """() => {
  window.gaps = [];
  let before = performance.now();
  const note = (at) => { window.gaps.push(at - before); before = at; requestAnimationFrame(note); };
  requestAnimationFrame(note);
}"""


async def measure(system: Nbpulse, cells: int) -> dict[str, Any]:
    """One class on one board."""
    await system.connect()
    students = system.students
    async with Load(system.port, 50, make_visible_posts(students)) as posts:
        await posts.run_open(1_500, len(students) * cells / 1_500)  # every student's every cell is on the board
        await posts.settle(120)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = await browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-US")
            try:
                found = await _measure_page(system, page, posts)
            finally:
                await browser.close()
        return found | {"students": len(students), "rate_per_s": RATE_PER_S, "refused": posts.tally.refused}


async def _measure_page(system: Nbpulse, page: Page, posts: Load) -> dict[str, Any]:
    squares = len(system.students) * load.CELLS
    started = time.perf_counter()
    await page.goto(system.described["teacher_link"])
    await expect(page.locator("[data-student] i")).to_have_count(squares, timeout=60_000)
    found: dict[str, Any] = {"squares": squares, "shown_s": round(time.perf_counter() - started, 2)}
    await posts.run_open(RATE_PER_S, 5)  # what only the first updates cost is not of the figure
    found |= await _measure_thread(page, posts)
    await page.evaluate(WATCH_FRAMES)
    await posts.run_open(RATE_PER_S, FRAMES_S)
    gaps = (await page.evaluate("window.gaps"))[1:]
    found["frame"] = {
        "p95_ms": round(find_percentile(gaps, 0.95), 1),
        "max_ms": round(max(gaps), 1),
        "count": len(gaps),
    }
    return found | await _measure_pixels(page, posts) | {"snapshot": await _measure_snapshots(system, posts)}


async def _measure_thread(page: Page, posts: Load) -> dict[str, Any]:
    """Milliseconds of the page's main thread per second: by the clock, and of the processor alone."""
    found: dict[str, Any] = {}
    for domain, prefix, seconds in (("timeTicks", "main_thread", MEASURE_S), ("threadTicks", "main_thread_cpu", CPU_S)):
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": domain})
        before = await _read_metrics(session)
        await posts.run_open(RATE_PER_S, seconds)
        after = await _read_metrics(session)
        passed = {name: 1000 * (value - before[name]) / seconds for name, value in after.items()}
        found[f"{prefix}_ms_per_s"] = round(passed["TaskDuration"], 1)
        if domain == "timeTicks":
            parts = {"script": "ScriptDuration", "style": "RecalcStyleDuration", "layout": "LayoutDuration"}
            found |= {f"{name}_ms_per_s": round(passed[metric], 1) for name, metric in parts.items()}
            found["heap_mb"] = round(after["JSHeapUsedSize"] / 1e6, 1)
        await session.detach()
    return found


async def _read_metrics(session: CDPSession) -> dict[str, float]:
    return {one["name"]: one["value"] for one in (await session.send("Performance.getMetrics"))["metrics"]}


async def _measure_pixels(page: Page, posts: Load) -> dict[str, Any]:
    due: dict[tuple[str, str, str], float] = {}
    offset = time.time() - time.perf_counter()

    def note(post: load.Post, due_at: float) -> None:
        due[post.student.user_id, post.cell_id, "3" if post.failed else "1"] = due_at + offset

    posts.note = note
    await page.evaluate(WATCH_PIXELS)
    await posts.run_open(RATE_PER_S, PIXEL_S)
    await posts.settle()
    await asyncio.sleep(3)
    posts.note = None
    latencies = []
    for user_id, cell_id, state, at_ms in await page.evaluate("window.pixels"):
        if (due_at := due.pop((user_id, cell_id, state), None)) is not None:
            latencies.append(at_ms / 1000 - due_at)
    shares = {f"p{round(100 * share)}_ms": round(1000 * find_percentile(latencies, share), 1) for share in (0.5, 0.95)}
    return {"pixel": shares | {"samples": len(latencies), "unseen": len(due)}}


async def _measure_snapshots(system: Nbpulse, posts: Load) -> dict[str, float]:
    """The answer of GET .../live while the class works; so far apart that each is made anew."""
    working = asyncio.create_task(posts.run_open(RATE_PER_S, 25))
    path, times_ms = f"/api/v1/courses/{system.described['course_id']}/live", []
    for _ in range(60):
        started = time.perf_counter()
        await asyncio.to_thread(ask, system.port, "GET", path, token=system.described["teacher_token"])
        times_ms.append(1000 * (time.perf_counter() - started))
        await asyncio.sleep(0.3)
    await working
    times_ms.sort()
    return {"p50_ms": round(statistics.median(times_ms), 1), "p95_ms": round(times_ms[int(0.95 * len(times_ms))], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="the class of so many students alone; nothing is written")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name, (students, cells) in CLASSES.items():
        if arguments.only not in (None, students):
            continue
        systems.STUDENTS, load.CELLS = students, cells
        system = Nbpulse()
        try:
            system.start()
            found[name] = asyncio.run(measure(system, cells)) | {"load_average": os.getloadavg()[0]}
        finally:
            system.stop()
            system.remove()
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    if arguments.only is None:
        write_results({"board_speed": {"classes": found}}, describe_machine(), RESULTS, "bench/board_speed.py")
        write_documents()


if __name__ == "__main__":
    main()
