"""Fixtures for every test of the server."""

from servers import (  # noqa: F401
    chromium_path,
    data_dir,
    embedded_postgres,
    embedded_valkey,
    influxdb,
    postgres_15,
    redis_7,
)
