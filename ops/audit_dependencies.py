"""Asks an advisory source about every pinned dependency that this machine installs; `make check` runs it.

Fails on a known weakness, and when a package was not audited. A source that cannot be reached, or that does not know
even a weakness everybody knows, has audited nothing: that is said and is no failure, unless NBPULSE_REQUIRE_AUDIT=1.
NBPULSE_ADVISORY_URL names another source than osv.dev that answers as OSV does.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
URL = os.environ.get("NBPULSE_ADVISORY_URL", "https://api.osv.dev/v1/query")
KNOWN = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "19.0"}
"""A version with weaknesses that were published years ago."""


def find_why_not_reached() -> str | None:
    """Why the source is none; None when it knows what it must."""
    request = urllib.request.Request(URL, json.dumps(KNOWN).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)
    except (OSError, ValueError) as error:
        return f"{URL}: {error}"
    is_source = isinstance(found, dict) and bool(found.get("vulns"))
    return None if is_source else f"{URL} knows no weakness of {KNOWN['package']['name']} {KNOWN['version']}"


def read_pins(lock: Path) -> tuple[set[str], int]:
    """The names of what is installed here, and how many pins are for other systems."""
    lines = [line.removesuffix("\\").strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "--hash"))]
    here = {canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    return here, sum(pin.marker is not None and not pin.marker.evaluate() for pin in pins)


def audit(lock: Path) -> list[str]:
    """What is wrong, one line each."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--osv-url", URL, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return [f"the audit broke off: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"]
    wrong = [f"{one['name']} could not be audited: {one['skip_reason']}" for one in packages if "skip_reason" in one]
    for one in packages:
        for weakness in one.get("vulns", ()):
            names = ", ".join([weakness["id"], *weakness["aliases"]])
            mended = " or ".join(weakness["fix_versions"]) or "no version yet"
            wrong.append(f"{one['name']} {one['version']}: {names}; mended in {mended}")
    missing = read_pins(lock)[0] - {canonicalize_name(one["name"]) for one in packages}
    wrong += [f"{name} could not be audited: it is missing in the answer" for name in sorted(missing)]
    return wrong or ([] if done.returncode == 0 else [f"the audit failed: {done.stderr.strip()}"])


def main() -> int:
    lock = Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK
    if reason := find_why_not_reached():
        print(f"not audited: no advisory source could be reached ({reason})")
        return int(os.environ.get("NBPULSE_REQUIRE_AUDIT") == "1")
    wrong = audit(lock)
    for line in wrong:
        print(line)
    if not wrong:
        here, others = read_pins(lock)
        print(f"audited: {len(here)} packages, no known weakness; pins for other systems: {others}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
