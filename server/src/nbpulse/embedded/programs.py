"""Where the servers' programs are, who runs them, and whether that account can read them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from nbpulse.errors import StartupError


@dataclass(frozen=True)
class Programs:
    """Programs in `root / bin_dir`; `trees` is what must stay beside them in `root`, none for a system's."""

    name: str
    root: Path
    bin_dir: Path = Path()
    trees: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Account:
    """The unprivileged account the servers run as when nbpulse runs as root."""

    name: str
    uid: int
    gid: int


def find_packaged_programs(distribution: str, bin_dir: Path, trees: tuple[str, ...]) -> Programs | None:
    """The programs inside an installed wheel, found without importing it; `bin_dir` may hold a wildcard."""
    spec = find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).parent
    for found in root.glob(str(bin_dir)):
        name = f"{distribution}-{version(distribution)}"
        return Programs(name, root, found.relative_to(root), tuple(Path(t) for t in trees if (root / t).exists()))
    return None


def choose_account(directory: Path) -> Account | None:
    """None unless we are root; then the directory's owner, so that data stays readable, else `nobody`."""
    import pwd  # not on Windows

    if os.geteuid() != 0:
        return None
    owner = directory.stat().st_uid if directory.exists() else 0
    entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def is_reachable(path: Path, account: Account) -> bool:
    """Whether the account may enter `path` and every directory above it, judged by owner, group and mode."""
    for place in [path.resolve(), *path.resolve().parents]:
        status = place.stat()
        shift = 6 if status.st_uid == account.uid else 3 if status.st_gid == account.gid else 0
        if not status.st_mode >> shift & 0o1:
            return False
    return True


def bring_within_reach(programs: Programs, account: Account | None, data_dir: Path) -> Path:
    """The programs' directory, copied once into the data directory where the account cannot read it."""
    bin_dir = programs.root / programs.bin_dir
    if account is None or is_reachable(bin_dir, account):
        return bin_dir
    if not programs.trees:
        raise StartupError("NB-3004", path=bin_dir, user=account.name)
    copy = data_dir / "programs" / programs.name
    if not copy.exists():
        unfinished = copy.with_name(copy.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        for tree in programs.trees:
            shutil.copytree(programs.root / tree, unfinished / tree, ignore_dangling_symlinks=True)
        for path in [copy.parent, unfinished, *unfinished.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        unfinished.rename(copy)
    return copy / programs.bin_dir
