"""`nbpulse rotate-keys`: a new key, every sealed text under it, and the old one's end.

Promises: a class that runs goes on meanwhile; a new key is on disk before anything is sealed with it; killed anywhere,
the same command goes on; an old key is dropped only when nothing is left under it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from nbpulse.crypto import FOLLOW_S, EncryptedField, make_key
from nbpulse.errors import StartupError
from nbpulse.offline import open_database
from nbpulse.records import sealing
from nbpulse.records.owner import OwnerPool, open_owners
from nbpulse.records.primaries import PUBLISHED
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.terminal import answer, get_text, say, show_progress


def rotate_keys(settings: Settings, *, drop_old: bool) -> None:
    """
    Seal everything with the newest key, made where there is only one; with `drop_old` forget the others.

    Raises StartupError: the keys do not open what is there (NB-3060), another rotation is at work (NB-3062), the login
    does not see every row (NB-3063), texts are still under an older key (NB-3064).
    """
    work = _drop_old if drop_old else _reseal

    async def run(url: str) -> None:
        async with open_owners(url) as pools, sealing.hold_rotation(pools[MAIN]):
            await _check_keys(pools, EncryptedField(settings.read_encryption_keys()))
            await work(pools, settings)

    with open_database(settings.data_dir, settings.database_url) as url:
        asyncio.run(run(url))


async def _check_keys(pools: Mapping[str, OwnerPool], seal: EncryptedField) -> None:
    for pool in pools.values():
        await sealing.check_keys(pool, seal)


async def _reseal(pools: Mapping[str, OwnerPool], settings: Settings) -> None:
    keys = settings.read_encryption_keys()
    if len(keys) == 1:
        key = make_key()
        if settings.key_file is None:
            answer(f"NBPULSE_ENCRYPTION_KEYS={key.decode()},$NBPULSE_ENCRYPTION_KEYS")
            say(get_text("keys_set_both"))
            return
        keys = [key, *keys]
        write_keys(settings.key_file, keys)
        say(get_text("keys_made", path=settings.key_file))
    seal = EncryptedField(keys)
    await _check_keys(pools, seal)
    if settings.key_file is not None:
        await asyncio.sleep(2 * FOLLOW_S)  # whoever runs seals with the newest key from now on
    # The directory last: until its learners' rows are taken from there, a worker may bring older ones to it; and what
    # is published there (people, enrolments) comes back to the others by itself.
    count = 0
    for name in reversed(list(pools)):
        with show_progress(get_text("keys_resealing")) as report:
            count += await sealing.reseal_all(pools[name], seal, report, but=() if name == MAIN else PUBLISHED)
    say(get_text("keys_resealed", count=count))


async def _drop_old(pools: Mapping[str, OwnerPool], settings: Settings) -> None:
    keys = settings.read_encryption_keys()
    seal = EncryptedField(keys)
    older = 0
    for pool in pools.values():
        with show_progress(get_text("keys_counting")) as report:
            older += await sealing.count_older(pool, seal, report)
    if older:
        raise StartupError("NB-3064", count=older)
    if settings.key_file is not None:
        write_keys(settings.key_file, keys[:1])
    for pool in pools.values():
        await sealing.forget_older_keys(pool, seal)
    say(get_text("keys_dropped" if settings.key_file else "keys_drop_setting", count=len(keys) - 1))


def write_keys(path: Path, keys: list[bytes]) -> None:
    """The key file, newest first: whole, durable, and for its owner only before anybody can seal with it."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(b"".join(key + b"\n" for key in keys))
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        owner = path.stat()
        os.chown(draft, owner.st_uid, owner.st_gid)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
