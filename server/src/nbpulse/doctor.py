"""`nbpulse doctor`: looks at everything a running class stands on, and says of each fault what to do.

Promises: each check is made for real and timed; one that cannot be made says so and never counts as good; the exit
code is 0 when nothing failed (warnings aside), 1 otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from nbpulse.accounting import Auditor
from nbpulse.cache import Cache
from nbpulse.connections import open_redis
from nbpulse.directory import read_running
from nbpulse.embedded import find_obstacle
from nbpulse.errors import NbpulseError, StartupError, Unavailable
from nbpulse.network import ask_health
from nbpulse.preparation import LOGINS, find_newest_revision
from nbpulse.records import owner
from nbpulse.records.accounting import Accounts
from nbpulse.records.databases import is_spread, list_urls, measure_lag
from nbpulse.resources import open_stream
from nbpulse.settings import Settings
from nbpulse.stream import Entries
from nbpulse.stream.promises import RANKS
from nbpulse.terminal import answer, get_text, pick_language

Result = Literal["ok", "warning", "failure"]
_MARKS: dict[Result, str] = {"ok": "✓", "warning": "!", "failure": "×"}
_LAG_MAX_BYTES = 16_000_000
_WEB_FILES = ("index.html", "app.css", "js/main.js", "vendor", "messages")


class Check(NamedTuple):
    """One look: what was found, and what to do where it is not good."""

    name: str
    result: Result
    found: str
    todo: str = ""
    took_ms: float = 0.0


Findings = AsyncIterator[Check]


def run_doctor(data_dir: Path, settings: Settings, *, as_json: bool) -> int:
    """Every check in order, printed as it is made; the exit code."""
    checks = asyncio.run(_examine_all(data_dir, settings, lambda check: None if as_json else _show(check)))
    if as_json:
        answer(json.dumps({"checks": [check._asdict() for check in checks]}, ensure_ascii=False))
        return int(any(check.result == "failure" for check in checks))
    failures = sum(check.result == "failure" for check in checks)
    warnings = sum(check.result == "warning" for check in checks)
    answer("")
    answer(get_text("doctor_summary", checks=len(checks), failures=failures, warnings=warnings))
    return int(failures > 0)


def _show(check: Check) -> None:
    answer(f"{_MARKS[check.result]} {get_text('check_' + check.name)}: {check.found}  ({check.took_ms:.0f} ms)")
    if check.todo:
        answer(f"    → {check.todo}")


async def _examine_all(data_dir: Path, settings: Settings, tell: Callable[[Check], None]) -> list[Check]:
    running = read_running(data_dir)
    looks: list[Findings] = [
        _look_at_programs(settings),
        _look_at_directory(data_dir, running),
        _look_at_keys(data_dir, settings),
        _look_at_board(),
        _look_at_postgresql(settings),
        _look_at_cluster(settings),
        _look_at_stream(settings),
        _look_at_conservation(settings),
        _look_at_jupyterhub(settings),
        _look_at_provider(settings.oidc_issuer or (running or {}).get("oidc_issuer")),
        _look_at_processes(running),
    ]
    checks = []
    for look in looks:
        started_s = time.perf_counter()
        async for check in look:
            timed = check._replace(took_ms=round((time.perf_counter() - started_s) * 1000, 1))
            checks.append(timed)
            tell(timed)
            started_s = time.perf_counter()
    return checks


def _fail(name: str, error: NbpulseError) -> Check:
    language = pick_language()
    return Check(name, "failure", f"{error.code} {error.title(language)}", error.todo(language))


async def _look_at_programs(settings: Settings) -> Findings:
    if settings.database_url and settings.redis_url:
        yield Check("programs", "ok", get_text("found_own_servers"))
    elif obstacle := find_obstacle():
        yield _fail("programs", obstacle)
    else:
        yield Check("programs", "ok", "PostgreSQL, Valkey")


async def _look_at_directory(data_dir: Path, running: dict[str, Any] | None) -> Findings:
    place = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free_mb = shutil.disk_usage(place).free // 1_000_000
    fix = get_text("todo_disk")
    result: Result = "ok" if free_mb > 1_000 else "warning" if free_mb > 200 else "failure"
    yield Check("disk", result, get_text("found_disk", free_mb=free_mb, path=data_dir), "" if result == "ok" else fix)
    if not os.access(place, os.W_OK):
        yield Check("directory", "failure", str(place), get_text("todo_directory"))
    if running is None:
        yield Check("running", "warning", get_text("found_not_running", path=data_dir), "nbpulse up")
    else:
        yield Check("running", "ok", f"{running['url']} (pid {running['pids']['supervisor']})")


async def _look_at_keys(data_dir: Path, settings: Settings) -> Findings:
    path = data_dir / "encryption.key"
    if settings.encryption_keys:
        yield Check("key", "ok", "NBPULSE_ENCRYPTION_KEYS")
    elif not path.exists():
        yield Check("key", "warning", get_text("found_no_key", path=path), get_text("todo_no_key"))
    elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Check("key", "failure", get_text("found_open_key", path=path), f"chmod 600 {path}")
    else:
        yield Check("key", "ok", str(path))


async def _look_at_board() -> Findings:
    web = resources.files("nbpulse").joinpath("web")
    missing = [name for name in _WEB_FILES if not web.joinpath(name).is_file() and not web.joinpath(name).is_dir()]
    if missing:
        yield Check("board", "failure", ", ".join(missing), get_text("todo_reinstall"))
    else:
        yield Check("board", "ok", get_text("found_complete"))


async def _look_at_postgresql(settings: Settings) -> Findings:
    if not settings.database_url:
        return
    try:
        async with owner.open_owner(settings.database_url) as pool:
            facts = await owner.examine(pool, LOGINS)
            skew_ms = (time.time() - facts["now_s"]) * 1000
            supported = 15 <= facts["major"] <= 18
            found = f"PostgreSQL {facts['major']}"
            yield Check("postgresql", "ok" if supported else "failure", found, "" if supported else "PostgreSQL 15-18")
            for node, answers in await owner.check_nodes(pool):
                found, fix = (node, "") if answers else (get_text("found_silent", server=node), get_text("todo_node"))
                yield Check("node", "ok" if answers else "failure", found, fix)
            weak = [name for name in ("fsync", "synchronous_commit", "full_page_writes") if facts[name] == "off"]
            fix = "; ".join(f"ALTER SYSTEM SET {name} = on" for name in weak)
            yield Check("durability", "failure" if weak else "ok", ", ".join(weak) or get_text("found_durable"), fix)
            is_off = abs(skew_ms) > 1_000
            fix = get_text("todo_clock") if is_off else ""
            yield Check("clock", "warning" if is_off else "ok", f"{skew_ms:+.0f} ms", fix)
            revision, newest = await owner.read_revision(pool), find_newest_revision()
            is_current = revision == newest and facts["has_logins"]
            fix = "" if is_current else "nbpulse migrate"
            yield Check("schema", "ok" if is_current else "failure", f"{revision} / {newest}", fix)
            if is_current:
                async for check in _look_at_tables(pool):
                    yield check
                async for check in _look_at_others(pool, newest):
                    yield check
    except NbpulseError as error:
        yield _fail("postgresql", error)


async def _look_at_tables(pool: Any) -> Findings:
    has_months = await owner.has_months_ahead(pool)
    found = get_text("found_months" if has_months else "found_no_months")
    yield Check("months", "ok" if has_months else "warning", found, "" if has_months else "nbpulse migrate")
    work = await owner.count_unfinished(pool)
    letters = work["dead_letters"]
    fix = "nbpulse dead-letters list" if letters else ""
    yield Check("dead_letters", "warning" if letters else "ok", str(letters), fix)
    is_old = work["oldest_debt_s"] > 60
    fix = get_text("todo_debt") if is_old else ""
    found = get_text("found_debt", count=work["debts"], age_s=round(work["oldest_debt_s"]))
    yield Check("series_debt", "warning" if is_old else "ok", found, fix)
    is_old = work["oldest_mark_s"] > 60
    fix = get_text("todo_debt") if is_old else ""
    found = get_text("found_marks", count=work["marks"], age_s=round(work["oldest_mark_s"]))
    yield Check("series_marks", "warning" if is_old else "ok", found, fix)


async def _look_at_others(directory: owner.OwnerPool, newest: str) -> Findings:
    """Each further database of students' rows: answers, has the schema, follows the directory."""
    for name, url in (await list_urls(directory)).items():
        try:
            async with owner.open_owner(url) as pool:
                revision, lag_bytes = await owner.read_revision(pool), await measure_lag(directory, pool)
        except NbpulseError as error:
            yield _fail("shard_database", StartupError("NB-3135", name=name, detail=str(error)))
            continue
        if revision != newest:
            yield _fail("shard_database", StartupError("NB-3136", name=name, found=revision, expected=newest))
        elif lag_bytes is None:
            yield Check(
                "shard_database", "failure", get_text("found_unfollowed", name=name), get_text("todo_unfollowed")
            )
        else:
            is_late = lag_bytes > _LAG_MAX_BYTES
            fix = get_text("todo_unfollowed") if is_late else ""
            found = get_text("found_following", name=name, revision=revision, lag_kb=lag_bytes // 1000)
            yield Check("shard_database", "warning" if is_late else "ok", found, fix)


async def _look_at_cluster(settings: Settings) -> Findings:
    """Each server of a cluster, or the one that is to have replicas; of one alone its promise tells."""
    if not settings.redis_url:
        return
    language = pick_language()
    try:
        async with open_redis(settings.redis_url) as redis:
            members = await Cache(redis).check(has_replicas=settings.promise == "failover")
    except Unavailable:
        return  # said of the stream
    except NbpulseError as error:
        yield _fail("cluster", error)
        return
    for one in members:
        if one.replicas is None:
            fix = NbpulseError("NB-2031").todo(language)
            yield Check("cluster", "failure", get_text("found_silent", server=one.name), fix)
        elif one.is_primary:
            is_bare = settings.promise == "failover" and not one.replicas
            found = get_text("found_primary", server=one.name, replicas=one.replicas)
            fix = NbpulseError("NB-2030").todo(language) if is_bare else ""
            yield Check("cluster", "failure" if is_bare else "ok", found, fix)
        else:
            yield Check("cluster", "ok", get_text("found_replica", server=one.name))


async def _look_at_stream(settings: Settings) -> Findings:
    if not settings.redis_url:
        return
    try:
        async with open_stream(settings) as stream:
            kept = await stream.read_promise()
            if kept is None:
                found = get_text("found_stated", promise=settings.promise)
                fix = "" if settings.promise_stated else "NBPULSE_PROMISE_STATED=true"
                yield Check("promise", "warning" if settings.promise_stated else "failure", found, fix)
            else:
                is_kept = RANKS[kept] >= RANKS[settings.promise]
                found = get_text("found_promise", kept=kept, promise=settings.promise)
                fix = "" if is_kept else get_text("todo_promise")
                yield Check("promise", "ok" if is_kept else "failure", found, fix)
            async for check in _look_at_backlog(await stream.count_entries(), settings):
                yield check
    except Unavailable as error:
        yield _fail("promise", StartupError("NB-3054", detail=str(error.__cause__ or error)))
    except NbpulseError as error:
        yield _fail("promise", error)


async def _look_at_backlog(entries: Entries, settings: Settings) -> Findings:
    backlog, limit = entries.waiting + entries.pending, settings.backlog_limit_events
    result: Result = "failure" if backlog >= limit else "warning" if backlog > limit // 10 else "ok"
    fix = "" if result == "ok" else "nbpulse worker"
    yield Check("backlog", result, f"{backlog} / {limit}", fix)
    yield Check("pending", "ok", str(entries.pending))


async def _look_at_conservation(settings: Settings) -> Findings:
    """Says nothing where the stores themselves have just been found wanting."""
    if not settings.database_url or not settings.redis_url:
        return
    with contextlib.suppress(NbpulseError):
        async with owner.open_owner(settings.database_url) as pool, open_stream(settings) as stream:
            if await owner.read_revision(pool) != find_newest_revision() or await is_spread(pool):
                return  # several databases are the worker's to add up: nbpulse_unaccounted_events
            unaccounted = await Auditor(stream, Accounts(pool)).audit()
        if unaccounted is None:
            yield Check("unaccounted", "warning", get_text("found_not_quiet"), get_text("todo_not_quiet"))
        else:
            fix = get_text("todo_unaccounted") if unaccounted else ""
            yield Check("unaccounted", "failure" if unaccounted else "ok", str(unaccounted), fix)


async def _look_at_jupyterhub(settings: Settings) -> Findings:
    if not settings.hub_api_url:
        return
    from nbpulse.jupyterhub import open_jupyterhub  # its HTTP client is slow to import

    try:
        async with open_jupyterhub(settings.hub_api_url) as hub:
            yield Check("jupyterhub", "ok", f"JupyterHub {await hub.read_version()} ({settings.hub_api_url})")
    except NbpulseError as error:
        yield _fail("jupyterhub", error)


async def _look_at_provider(issuer: str | None) -> Findings:
    if not issuer:
        return
    from nbpulse.oidc import open_provider  # as above

    try:
        # What it publishes needs no secret.
        async with open_provider(issuer=issuer, client_id="-", client_secret="-", label=None) as provider:  # noqa: S106
            yield Check("oidc", "ok", get_text("found_provider", issuer=issuer, keys=await provider.count_keys()))
    except NbpulseError as error:
        yield _fail("oidc", error)


async def _look_at_processes(running: dict[str, Any] | None) -> Findings:
    if running is None:
        return
    for kind, path in (("api", "/health/ready"), ("worker", "/health")):
        count = len(running["pids"][kind])
        urls = running["metrics_urls"][:count] if kind == "api" else running["metrics_urls"][-count:]
        for url in urls:
            place = urlsplit(url)
            host, port = place.hostname or "127.0.0.1", place.port or 0
            status = await asyncio.to_thread(ask_health, host, port, path, tls=place.scheme == "https")
            fix = "" if status == 200 else get_text("todo_log", part=kind)
            yield Check(kind, "ok" if status == 200 else "failure", f"{host}:{port} → HTTP {status}", fix)
