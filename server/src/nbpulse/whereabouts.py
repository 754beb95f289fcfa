"""Where a command finds its nbpulse: the data directory, what runs on it, and the settings that follow from both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbpulse.errors import StartupError

if TYPE_CHECKING:
    from nbpulse.settings import Settings


def find_data_dir(given: Path | None) -> Path:
    """As given, else where this kind of user keeps data."""
    if given is not None:
        return given.absolute()
    from nbpulse.settings import find_data_dir as find_usual_dir

    return find_usual_dir()


def find_running(data: Path | None) -> dict[str, Any]:
    """What the nbpulse that runs on the data directory says of itself; empty where none does."""
    from nbpulse.directory import read_running

    return read_running(find_data_dir(data)) or {}


def find_address(data: Path | None) -> str:
    """The address that people use: as set, else that of the nbpulse that runs on the data directory."""
    return os.environ.get("NBPULSE_PUBLIC_URL") or find_running(data).get("url") or "http://127.0.0.1:8642"


def connect(data: Path | None, *, is_needed: bool = True) -> Settings:
    """
    Settings of NBPULSE_*; what is unset there comes from the nbpulse that runs on the data directory.

    Raises StartupError (NB-3019) when nothing runs there and no servers are named either.
    """
    from nbpulse.settings import read_settings

    os.environ["NBPULSE_DATA_DIR"] = str(find_data_dir(data))
    if not (os.environ.get("NBPULSE_DATABASE_URL") and os.environ.get("NBPULSE_REDIS_URL")):
        running = find_running(data)
        names = {"NBPULSE_DATABASE_URL": "admin_database_url", "NBPULSE_REDIS_URL": "redis_url"}
        names |= {"NBPULSE_INFLUX_URL": "influx_url", "NBPULSE_HUB_API_URL": "hub_api_url"}
        for variable, name in names.items():
            if running.get(name):
                os.environ.setdefault(variable, running[name])
        if not running and is_needed and not os.environ.get("NBPULSE_DATABASE_URL"):
            raise StartupError("NB-3019", path=find_data_dir(data))
    return read_settings()
