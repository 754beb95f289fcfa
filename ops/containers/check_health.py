"""
Health check of our image: exit code 0 when this container's process answers 200.

`check_health.py` asks the API for /health/live, `check_health.py worker` the worker's loopback port for /health.
"""

import sys

from nbpulse.network import ask_health
from nbpulse.settings import read_settings


def main(arguments: list[str]) -> int:
    settings = read_settings()
    if arguments == ["worker"]:
        status = ask_health("127.0.0.1", settings.metrics_port, "/health", timeout_s=3)
    else:
        status = ask_health(settings.host, settings.port, "/health/live", tls=bool(settings.tls_cert), timeout_s=3)
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
