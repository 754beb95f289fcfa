"""
Entry of our image: `start.py COMMAND...` runs `nbpulse COMMAND...`, passwords put into the NBPULSE_* variables.

`{name}` in a variable stands for the content of the file `name` in SECRETS_DIR (/run/secrets), made fit for a URL. So
compose.yaml shows which service knows which password, and no password stands in it.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

PREFIX = "NBPULSE_"


def fill(value: str, secrets_dir: Path) -> str:
    """`value` with each `{name}` replaced. Raises OSError: a file cannot be read; ValueError: it is empty."""

    def read(found: re.Match[str]) -> str:
        path = secrets_dir / found[1]
        if secret := path.read_text(encoding="utf-8").strip():
            return quote(secret, safe="")
        raise ValueError(f"{path} is empty")

    return re.sub(r"\{(\w+)\}", read, value)


def compose_environment(given: Mapping[str, str], secrets_dir: Path) -> dict[str, str]:
    """`given`, its NBPULSE_* variables filled. Raises as `fill`."""
    return {name: fill(value, secrets_dir) if name.startswith(PREFIX) else value for name, value in given.items()}


def main(arguments: list[str]) -> None:
    try:
        environment = compose_environment(os.environ, Path(os.environ.get("SECRETS_DIR", "/run/secrets")))
    except (OSError, ValueError) as error:
        sys.exit(f"start.py: {error}; make the files with ops/containers/make-secrets.sh")
    program = Path(sys.executable).with_name("nbpulse")
    os.execve(program, ["nbpulse", *arguments], environment)


if __name__ == "__main__":
    main(sys.argv[1:])
