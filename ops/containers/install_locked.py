"""
`install_locked.py LOCK REQUIREMENT...`: installs what the requirements need into this interpreter, as LOCK pins it.

LOCK also holds what only developers need, and no edges that would tell one from the other. So the closure is walked:
what an installed distribution declares is looked up in LOCK and installed with its hashes, then what that declares,
until nothing misses. Each pip call has --require-hashes --no-deps --only-binary, so nothing comes in that LOCK does not
name, and nothing is resolved or built.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # the one thing a new environment has
from pip._vendor.packaging.utils import canonicalize_name

Declared = tuple[str, list[str]]
"""An installed distribution's version and the requirements it declares."""


def read_lock(text: str) -> dict[str, tuple[str, str]]:
    """
    Name -> (version, the lines that pin it for this interpreter; a name may be pinned differently for others).

    Raises ValueError when a line pins nothing.
    """
    pinned: dict[str, tuple[str, str]] = {}
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        if not block.strip():
            continue
        found = re.match(r"([\w.-]+)==(\S+)", block)
        if found is None or "--hash=sha256:" not in block:
            raise ValueError(f"the lock pins nothing here: {block.splitlines()[0]}")
        line = Requirement(block.splitlines()[0].rstrip(" \\"))
        if line.marker is None or line.marker.evaluate():
            pinned[canonicalize_name(line.name)] = (found[2], block)
    return pinned


def find_declared(name: str) -> Declared | None:
    """What is installed here under that name."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    return found.version, list(found.requires or [])


def find_missing(
    wanted: Iterable[str], pinned: dict[str, tuple[str, str]], declared: Callable[[str], Declared | None]
) -> tuple[set[str], set[str]]:
    """
    The names the requirements lead to as far as is known: (all, those still to install as pinned).

    Raises ValueError: something is needed that is neither pinned nor, being ours, already installed.
    """
    seen: set[tuple[str, str]] = set()
    missing: set[str] = set()
    waiting = [Requirement(one) for one in wanted]
    ours = {canonicalize_name(one.name) for one in waiting} - pinned.keys()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        for extra in ("", *asked.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found = declared(name)
            if name not in pinned and (found is None or name not in ours):
                raise ValueError(f"{name} is needed and not in the lock; run: make lock")
            if found is None or (name in pinned and found[0] != pinned[name][0]):
                missing.add(name)
                continue
            needed = [Requirement(one) for one in found[1]]
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}, missing


def install(blocks: Iterable[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(blocks))
        file.flush()
        options = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "-r", file.name], check=True)
    importlib.invalidate_caches()


def main(arguments: list[str]) -> None:
    lock, *wanted = arguments
    pinned = read_lock(Path(lock).read_text(encoding="utf-8"))
    while True:
        names, missing = find_missing(wanted, pinned, find_declared)
        if not missing:
            break
        install(pinned[name][1] for name in sorted(missing))
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
    print(f"{len(names & pinned.keys())} of the lock's {len(pinned)} distributions installed")


if __name__ == "__main__":
    main(sys.argv[1:])
