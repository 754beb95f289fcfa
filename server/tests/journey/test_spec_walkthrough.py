"""docs/examples/spec_walkthrough.sh: the specification's statements equal the ledger, and a wrong answer is found."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from debian_clients import make_clients, write_program
from servers import ROOT

SCRIPT = ROOT / "docs" / "examples" / "spec_walkthrough.sh"
STATEMENT_COUNT = 15


async def walk(path: str, settings: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and everything said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NBPULSE_")}
    process = await asyncio.create_subprocess_exec(
        SCRIPT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**kept, "PATH": path, "PYTHON": sys.executable, **settings},
    )
    try:
        async with asyncio.timeout(240):
            said, _ = await process.communicate()
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, said.decode()


def list_names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.mark.timeout(300)
async def test_every_answer_equals_the_ledger(data_dir: Path) -> None:
    code, said = await walk(make_clients(data_dir / "bin"), {"TMPDIR": str(data_dir)})
    assert "× " not in said, said
    assert code == 0, said
    assert said.count("✓ equals the ledger: ") == STATEMENT_COUNT
    runs = {int(number) for number in re.findall(r"(\d+) = \1 runs\b(?! of)", said)}
    assert len(runs) == 1, "PostgreSQL and InfluxDB tell of equally many"
    assert runs.pop() > 100
    assert list_names(data_dir) == ["bin"], "it leaves nothing behind"


@pytest.mark.timeout(300)
async def test_a_wrong_answer_is_found(data_dir: Path) -> None:
    path = make_clients(data_dir / "bin")
    real = data_dir / "bin" / "redis-cli"
    real.rename(data_dir / "bin" / "real-redis-cli")
    # One student more than there are, in the class summary alone.
    write_program(real, f'{data_dir}/bin/real-redis-cli "$@" | sed -u \'s/"total_students":12/"total_students":13/\'')
    settings = {"TMPDIR": str(data_dir), "SECONDS_OF_CLASS": "6"}
    code, said = await walk(path, settings)
    assert code == 1, said
    assert "× differs from the ledger: total_students: the answer says 13 where it should be 12" in said
    assert f"1 of {STATEMENT_COUNT} answers differ" in said


async def test_what_is_missing_is_named_with_where_to_get_it(data_dir: Path) -> None:
    for program in ("bash", "dirname", "env", "curl"):
        write_program(data_dir / program, f'exec /usr/bin/{program} "$@"')
    code, said = await walk(str(data_dir), {"PYTHON": "no-such-python"})
    assert code == 2
    for program in ("psql", "redis-cli", "influx", "influxd"):
        assert re.search(rf"^'{program}' is missing\. .*(apt install)", said, re.MULTILINE), said
    assert "'no-such-python' has no nbpulse" in said


async def test_a_server_that_does_not_start_is_told_with_what_it_said(data_dir: Path) -> None:
    path = make_clients(data_dir / "bin")
    write_program(data_dir / "bin" / "influxd", "echo 'open meta.db: permission denied' >&2; exit 1")
    code, said = await walk(path, {"TMPDIR": str(data_dir)})
    assert code == 1
    assert re.search(r"^InfluxDB: not there after [0-9] s\. What was said:", said, re.MULTILINE), said
    assert "open meta.db: permission denied" in said
    assert list_names(data_dir) == ["bin"]
