"""What real kernels and Jupyter servers record at each level: canaries of source, output and environment."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from nbpulse_capture import consent, notices
from nbpulse_capture.cli import main
from nbpulse_capture.contents import TEXT_CAP_BYTES
from nbpulse_capture.membership import MembershipFile
from student_jupyter import open_notebook

from .conftest import FakeApi, Open
from .recorded import Recorded
from .test_kernel import Start, start_kernel  # noqa: F401 - a fixture

SECRET = "v3ry-s3cret-of-the-environment"
ENVIRONMENT = {"COURSE_API_TOKEN": SECRET, "PLAIN_SETTING": "plain-canary-of-the-environment"}
# The canaries are made by the cell, so that the output's is not in the source.
CODE = (
    "source_canary = 'out' + 'put_canary'\n"
    "print(source_canary)\n"
    "import os\nprint(os.environ['COURSE_API_TOKEN'])\n"
    "async def later():\n    return source_canary.upper()\n"
    "await later()"
)


def join(api: FakeApi, level: str, *without: str) -> None:
    api.set_collection(1, level, *without)
    api.shown = api.collection
    assert main(["join", api.url, "ABCD", "--name", "花子"]) == 0


def set_level(api: FakeApi, version: int, level: str) -> None:
    """The course's newest version, and the student was shown it."""
    membership = MembershipFile().read()
    assert membership is not None
    api.set_collection(version, level)
    api.shown = api.collection
    notices.write_collection(membership, {"current": api.collection, "shown": api.shown}, time.time())


def find_in_files(place: Path, *texts: str) -> list[str]:
    """The files of the student's (the outbox and its log, the membership) that hold one of the texts."""
    wanted = [text.encode() for text in texts]
    files = [path for name in ("data", "config") for path in (place / name).rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(text in path.read_bytes() for text in wanted)]


def check_contents(data: dict[str, Any], level: str) -> None:
    assert ("source" in data, "output" in data) == (level in ("source", "output"), level == "output")
    if "source" in data:
        assert data["source"] == CODE
    if "output" in data:
        assert data["output"] == "output_canary\n[masked]\n'OUTPUT_CANARY'\n"
    assert SECRET not in json.dumps(data)


@pytest.mark.parametrize("level", ["metadata", "source", "output"])
def test_a_kernel_alone_records_source_and_output_where_they_are_collected_and_only_there(
    student: Path,
    api: FakeApi,
    start_kernel: Start,  # noqa: F811
    level: str,
) -> None:
    join(api, level)
    kernel = start_kernel(is_joined=False, env=ENVIRONMENT)
    ran = kernel.run(CODE, "c1")
    assert ran.text == f"output_canary\n{SECRET}\n", "the student sees what they always see"
    (end,) = api.wait_for(1, "cell_execution")
    check_contents(end["data"], level)
    hidden = {"metadata": ["source_canary", "output_canary"], "source": ["OUTPUT_CANARY"], "output": []}[level]
    assert find_in_files(student, SECRET, "plain-canary", *hidden) == []


def test_outputs_of_cells_that_overlap_are_told_apart_and_a_flood_is_cut(
    student: Path,
    api: FakeApi,
    start_kernel: Start,  # noqa: F811
) -> None:
    join(api, "output", "source")
    kernel = start_kernel(is_joined=False)
    kernel.run("for n in range(20_000): print('flood', n)", "c1")
    kernel.run("print('x')\n1 / 0", "c2")
    first, second = api.wait_for(2, "cell_execution")
    assert first["data"]["output"].startswith("flood 0\nflood 1\n")
    assert first["data"]["output"].endswith("[cut here]")
    assert len(first["data"]["output"].encode()) <= TEXT_CAP_BYTES
    assert (second["data"]["output"], second["data"]["status"]) == ("x\n", "error")
    assert not any("source" in event["data"] for event in (first, second))


def test_what_runs_in_a_pause_is_not_recorded_nor_is_what_began_in_it(
    student: Path,
    api: FakeApi,
    start_kernel: Start,  # noqa: F811
) -> None:
    join(api, "source")
    kernel = start_kernel(is_joined=False)
    kernel.run("before = 1", "c1")
    consent.pause(None)
    kernel.run("in_the_pause = 1 / 0", "c2")
    over_its_end = kernel.submit("import time; time.sleep(1.5); over_its_end = 1", "c3")
    time.sleep(0.5)
    assert main(["resume"]) == 0
    kernel.collect(over_its_end)
    kernel.run("%nbpulse status", "c5")
    kernel.run("after = 1", "c4")
    assert [event["cell_id"] for event in api.wait_for(2, "cell_execution")] == ["c1", "c4"]
    assert [event["cell_id"] for event in api.of_type("cell_execution_start")] == ["c1", "c4"]
    assert find_in_files(student, "in_the_pause", "over_its_end", "ZeroDivision") == []


async def test_a_jupyter_server_records_them_as_the_levels_change_in_mid_class(
    student: Path, api: FakeApi, jupyter_of: Open, recorded: Recorded
) -> None:
    join(api, "metadata")
    async with jupyter_of(env=ENVIRONMENT) as jupyter, open_notebook(jupyter.http, "week1.ipynb") as notebook:
        for version, level in enumerate(("metadata", "source", "output", "metadata"), start=2):
            await asyncio.to_thread(set_level, api, version, level)
            ran = await notebook.run("c1", CODE)
            check_contents((await recorded.wait_for_end(notebook.kernel_id, ran))["data"], level)
        await asyncio.to_thread(set_level, api, 9, "nothing")
        await notebook.run("c2", "nothing_of_this = 1 / 0")
        consent.pause(None)
        await asyncio.to_thread(set_level, api, 10, "output")
        await notebook.run("c3", "in_the_pause = 1 / 0")
        queued = [await notebook.submit("c4", "1 / 0"), await notebook.submit("c5", "2")]
        await notebook.wait_for(*queued)
        consent.resume()
        last = await notebook.run("c6", "print('あ' * 20_000)")
        end = await recorded.wait_for_end(notebook.kernel_id, last)
    assert end["data"]["output"].endswith("[cut here]")
    assert end["data"]["output_bytes"] > 60_000
    assert {event["cell_id"] for event in recorded.of("cell_execution_start", "cell_execution")} == {"c1", "c6"}
    found = find_in_files(student, SECRET, "plain-canary", "in_the_pause", "nothing_of_this")
    assert found == []
