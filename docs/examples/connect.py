"""Prints, as lines for a shell, how to reach every store of the nbpulse that runs on a data directory.

    eval "$(python3 docs/examples/connect.py DATA)"

Says on stderr what is missing and exits 1 when nothing runs there. What it prints holds passwords: do not keep it.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def describe_redis(url: str) -> dict[str, str]:
    """The password apart, where redis-cli reads it without a warning."""
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
    return {"REDIS_URL": address, "REDISCLI_AUTH": unquote(parts.password or "")}


def describe_influx(url: str) -> dict[str, str]:
    """The arguments of the `influx` shell; its password goes through the environment."""
    parts = urlsplit(url)
    arguments = ["-host", parts.hostname or "127.0.0.1", "-port", str(parts.port or 8086)]
    arguments += ["-database", unquote(parts.path.strip("/")) or "nbpulse", "-precision", "rfc3339"]
    if parts.scheme == "https":
        arguments.append("-ssl")
    described = {"INFLUX": " ".join(arguments)}
    if parts.username:
        described |= {"INFLUX_USERNAME": unquote(parts.username), "INFLUX_PASSWORD": unquote(parts.password or "")}
    return described


def describe(running: dict[str, Any]) -> dict[str, str]:
    """Every variable."""
    influx = describe_influx(running["influx_url"]) if running.get("influx_url") else {}
    return {
        "API_URL": running["api_urls"][0],
        "WORKER_METRICS_URL": running["metrics_urls"][len(running["api_urls"])],
        "DATABASE_URL": running["database_url"],
        "OWNER_DATABASE_URL": running["admin_database_url"],
        **describe_redis(running["redis_url"]),
        **influx,
        "COURSE_ID": running["course_id"],
        "JOIN_CODE": running["join_code"],
        "TEACHER_TOKEN": running["teacher_token"],
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0]) / "running.json"
    try:
        running = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"Nothing runs on {arguments[0]} ({error}). Start it first: nbpulse up --data DIRECTORY", file=sys.stderr)
        return 1
    for name, value in describe(running).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
