"""Fixtures for every test of the server."""

import signal

from hypothesis import settings
from playwright.async_api import expect

from clusters import valkey_cluster  # noqa: F401
from servers import (  # noqa: F401
    browser,
    chromium,
    chromium_path,
    data_dir,
    embedded_postgres,
    embedded_valkey,
    influxdb,
    postgres_15,
    redis_7,
)

# A shell's job in the background ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine is no finding: how long an example takes is no promise of a test, nor how soon a page shows something
# where the test does not say so itself.
settings.register_profile("nbpulse", deadline=None)
settings.load_profile("nbpulse")
expect.set_options(timeout=20_000)
