"""The `influx` shell, to type what the specification says."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from servers import get_debian_programs


def type_query(server_url: str, database: str, query: str) -> list[dict[str, Any]]:
    """What the `influx` shell answers, as JSON. (It takes a line at a time.)"""
    programs = get_debian_programs("influxdb", "usr/bin", ["influxdb", "influxdb-client"])
    address = ["-host", "127.0.0.1", "-port", server_url.rpartition(":")[2], "-database", database]
    done = subprocess.run(
        [str(programs.root / "usr/bin/influx"), *address, "-format", "json", "-execute", " ".join(query.split())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.defpath, "HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [series for result in json.loads(done.stdout)["results"] for series in result.get("series", ())]
