"""One cell's page of a class of 200 whose code and output are collected: the answer, and the page in a browser.

    .venv/bin/python bench/cell_page.py

Every student ran the cell 8 times, each with code of their own (about 30 lines) and 1.5 kB of output; the notebook is
prepared, so that the 20 largest groups are compared with the teacher's cell. `answer` is GET .../cells/{notebook_id} as
the page asks for it, one after the other, with the processor's time of one in the API and in PostgreSQL, which other
work on the machine hardly changes; `shown` is from going to the page until the frame in which the first 25
answers stand, and what all of the browser's processes worked for one.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import statistics
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
from measures import find_percentile
from playwright.async_api import async_playwright
from report import RESULTS, describe_machine, write_results
from systems import Nbpulse, ask

STUDENTS, RUNS, ANSWERS, LOADS = 200, 8, 40, 10
FLAGS = ["--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"]
TASK = "".join(f"row_{n} = table.loc[{n}]  # the temperature of day {n}\n" for n in range(30))
AFTER_FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


def write_code(student: int) -> str:
    """The teacher's cell with a few lines of one's own: no two students' are equal."""
    lines = TASK.splitlines()
    for n in range(student % 7 + 1):
        lines[(student * 5 + n * 3) % len(lines)] = f"day_{student}_{n} = table.iloc[{n}] * {student}"
    return "\n".join(lines)


def prepare(system: Nbpulse) -> tuple[str, str]:
    """The teacher's notebook: its id and its cell's."""
    notebook = {
        "cells": [
            {"cell_type": "code", "id": "task", "metadata": {}, "source": TASK, "outputs": [], "execution_count": None}
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=30)
    headers = {
        "Content-Type": "application/x-ipynb+json",
        "Authorization": f"Bearer {system.described['teacher_token']}",
    }
    path = f"/api/v1/courses/{system.described['course_id']}/notebooks?name=week1.ipynb"
    connection.request("POST", path, json.dumps(notebook), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["notebook_id"]), "task"


def make_runs(student: int, notebook_id: str, cell_id: str, began_at: datetime) -> list[dict[str, Any]]:
    """One student's runs of the cell, the last of them ok for two of three."""
    code = write_code(student)
    runs = []
    for n in range(RUNS):
        failed = n < RUNS - 1 or student % 3 == 0
        data = {"status": "error" if failed else "ok", "execution_duration_ms": 20, "execution_count": n + 1}
        data |= {"source": f"{code}\n# {n}", "output": f"day {student} {n}\n" * 110}
        if failed:
            data |= {"error_name": "KeyError", "error_message": f"'{n}'"}
        runs.append(
            {
                "schema_version": 1,
                "event_id": str(uuid.uuid4()),
                "event_type": "cell_execution",
                "occurred_at": (began_at + timedelta(seconds=n * 5 + student % 5)).isoformat(),
                "sequence": n + 1,
                "notebook_path": "week1.ipynb",
                "notebook_id": notebook_id,
                "cell_id": cell_id,
                "cell_index": 0,
                "cell_type": "code",
                "data": data,
            }
        )
    return runs


def fill(system: Nbpulse) -> str:
    """Collect, let 200 students join and run; the cell's place after the course's in addresses."""
    course, token = system.described["course_id"], system.described["teacher_token"]
    path = f"/api/v1/courses/{course}/collection"
    version = ask(system.port, "PUT", path, token=token, body={"level": "output"})["version"]
    notebook_id, cell_id = prepare(system)
    began_at = datetime.now(UTC) - timedelta(minutes=2)
    for student in range(STUDENTS):
        wanted = {"join_code": system.described["join_code"], "display_name": f"Student {student:03d}"}
        wanted |= {"student_number": f"B{student:04d}", "notice_version": version}
        joined = ask(system.port, "POST", "/api/v1/join", body=wanted)
        runs = make_runs(student, notebook_id, cell_id, began_at)
        ask(system.port, "POST", "/api/v1/events", token=joined["token"], body=runs)
    query = f"/api/v1/courses/{course}/cells/{notebook_id}?cell={cell_id}&limit=25"
    while ask(system.port, "GET", query, token=token)["figures"]["states"]["none"]:
        time.sleep(0.5)
    return f"cells/{notebook_id}/{cell_id}"


def measure_cpu(system: Nbpulse) -> dict[str, float]:
    """Milliseconds of the processor so far, of the API and of PostgreSQL."""
    pids, found = system.list_pids(), {}
    for name in ("api", "postgresql"):
        family = [psutil.Process(pids[name]), *psutil.Process(pids[name]).children(recursive=True)]
        found[name] = 1000 * sum(sum(one.cpu_times()[:2]) for one in family)
    return found


def measure_browser() -> float:
    """Milliseconds of the processor so far, of all the browser's processes."""
    family = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("chrom")]
    return 1000 * sum(sum(one.cpu_times()[:2]) for one in family)


async def measure(system: Nbpulse, place: str) -> dict[str, Any]:
    """All figures of that cell's page."""
    course, token = system.described["course_id"], system.described["teacher_token"]
    notebook_id, cell_id = place.split("/")[1:]
    query = f"/api/v1/courses/{course}/cells/{notebook_id}?cell={cell_id}&limit=25"
    times_ms, answer, before = [], {}, measure_cpu(system)
    for _ in range(ANSWERS):
        started = time.perf_counter()
        answer = await asyncio.to_thread(ask, system.port, "GET", query, token=token)
        times_ms.append(1000 * (time.perf_counter() - started))
    found: dict[str, Any] = {"students": STUDENTS, "runs": STUDENTS * RUNS, "groups": answer["group_count"]}
    cpu_ms = {name: round((now - before[name]) / ANSWERS, 1) for name, now in measure_cpu(system).items()}
    found["answer"] = {
        "cpu_ms": cpu_ms,
        "p50_ms": round(statistics.median(times_ms), 1),
        "p95_ms": round(find_percentile(times_ms, 0.95), 1),
        "kb": round(len(json.dumps(answer).encode()) / 1000),
    }
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = await browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-US")
        await page.goto(system.described["teacher_link"])
        await page.wait_for_selector(".board")
        shown_ms, before_ms = [], measure_browser()
        for _ in range(LOADS):
            started = time.perf_counter()
            await page.goto(f"{system.described['url']}/courses/{course}/{place}", wait_until="commit")
            await page.wait_for_selector("[data-answer]:nth-child(25)", state="attached")
            await page.evaluate(AFTER_FRAME)
            shown_ms.append(1000 * (time.perf_counter() - started))
        browser_ms = (measure_browser() - before_ms) / LOADS
        await browser.close()
    found["shown"] = {
        "cpu_ms": round(browser_ms),
        "p50_ms": round(statistics.median(shown_ms)),
        "max_ms": round(max(shown_ms)),
        "loads": LOADS,
    }
    return found | {"load_average": round(os.getloadavg()[0], 1)}


def main() -> None:
    system = Nbpulse()
    try:
        system.start()
        found = asyncio.run(measure(system, fill(system)))
    finally:
        system.stop()
        system.remove()
    print(json.dumps(found), file=sys.stderr)
    write_results({"cell_page": found}, describe_machine(), RESULTS, "bench/cell_page.py")


if __name__ == "__main__":
    main()
