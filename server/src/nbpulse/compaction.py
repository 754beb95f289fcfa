"""`nbpulse compact`: what was deleted leaves the files too.

A deleted row stays in its table's file until something else is written over it, and in the log of the server until that
file is used again. This rewrites what can be rewritten, and says what it could not.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nbpulse.offline import open_stores
from nbpulse.records import compacting
from nbpulse.records.owner import open_owners
from nbpulse.resources import open_outer_stores
from nbpulse.settings import Settings
from nbpulse.shards import MAIN
from nbpulse.terminal import get_text, say, show_progress

_REWRITE_S_MAX: Final = 600.0


async def compact(settings: Settings) -> None:
    """
    Write the tables, and the stream's files, anew; a table is locked while its turn lasts: not while a class runs.

    Raises StartupError (NB-3018): not the owner's login; Unavailable: a store is away.
    """
    with (
        open_stores(settings.data_dir, settings.database_url, settings.redis_url) as urls,
        show_progress(get_text("compacting")) as report,
    ):
        async with open_owners(urls[0]) as pools, open_outer_stores(settings, pools[MAIN], urls[1]) as stores:
            tables = [(pool, table) for pool in pools.values() for table in await compacting.list_tables(pool)]
            for number, (pool, table) in enumerate(tables):
                await compacting.rewrite_table(pool, table)
                report(number + 1, len(tables))
            has_checkpoint = all([await compacting.leave_log_behind(pool) for pool in pools.values()])
            await stores.stream.rewrite_files()
            async with asyncio.timeout(_REWRITE_S_MAX):
                while await stores.stream.is_rewriting():  # noqa: ASYNC110 - another process's work
                    await asyncio.sleep(0.2)
    say(get_text("compacted"))
    if not has_checkpoint:
        say(get_text("compacted_but_log"))
    if settings.influx_url:
        say(get_text("compacted_but_influx"))
