"""What `nbpulse up` does: everything on one data directory, started in order, watched, stopped in order.

Promises: what cannot work is said before anything starts; whatever ends the start-up stops what had started; Ctrl-C
drains, a second one does not wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from nbpulse.directory import end_previous, forget_running, hold_directory, write_running
from nbpulse.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey, find_obstacle
from nbpulse.errors import StartupError
from nbpulse.network import (
    ask_health,
    bracket,
    choose_port,
    find_free_port,
    find_machine_address,
    is_every_address,
    is_loopback,
)
from nbpulse.parts import import_parts, prepare_database, run_part
from nbpulse.supervisor import Part, Program, Supervisor, describe_exit, read_last_line
from nbpulse.terminal import get_text, pick_language, say

_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class UpOptions:
    """What the command line and NBPULSE_* say."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8642
    public_url: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    database_url: str | None = None
    replica: bool = False
    """Whether the embedded PostgreSQL has a streaming replica beside it, from which history is read."""
    redis_url: str | None = None
    api_count: int = 1
    worker_count: int = 1
    deaths_limit: int = 5
    demo: Mapping[str, Any] | None = None


@dataclass
class Running:
    """Everything that runs, once it does."""

    options: UpOptions
    url: str
    ports: list[int]
    metrics_ports: list[int]
    stores: dict[str, EmbeddedServer]
    is_new: bool
    apis: list[Program]
    workers: list[Program]
    demo: Program | None = None
    replica: Program | None = None
    replica_port: int = 0
    replica_said: str = ""
    """What was last passed on of what the replica says of itself."""
    prepared: dict[str, Any] = field(default_factory=dict)

    def list_parts(self) -> list[Part]:
        """What must always run, in the walk of an event backwards: what comes last is stopped first."""
        return [*self.stores.values(), *([self.replica] if self.replica else []), *self.workers, *self.apis]

    @property
    def local_host(self) -> str:
        """The address at which this machine reaches its own API."""
        return self.options.host if is_loopback(self.options.host) else "127.0.0.1"

    @property
    def local_url(self) -> str:
        """The first API as this machine reaches it."""
        return self._list_api_urls()[0]

    def _list_api_urls(self) -> list[str]:
        scheme = "https" if self.options.tls_cert else "http"
        return [f"{scheme}://{bracket(self.local_host)}:{port}" for port in self.ports]

    def get_admin_url(self) -> str:
        """The owner's database URL."""
        return self.options.database_url or self.stores["postgresql"].url

    def describe(self) -> dict[str, Any]:
        """The line of `up --json`."""
        page = "/"
        if self.prepared["is_demo"]:
            language = f"?lang={pick_language()}" if os.environ.get("NBPULSE_LANGUAGE") else ""  # asked for by name
            page = f"/courses/{self.prepared['course_id']}{language}"
        urls = self._list_api_urls()
        replica = {"replica_url": self._move_to_replica(self.prepared["operator_database_url"])} if self.replica else {}
        return {
            "url": self.url,
            "teacher_link": f"{self.url}{page}#code={self.prepared['link_code']}",
            "teacher_token": self.prepared["teacher_token"],
            "join_code": self.prepared["join_code"],
            "course_id": self.prepared["course_id"],
            "database_url": self.prepared["operator_database_url"],
            **replica,
            "redis_url": self.options.redis_url or self.stores["redis"].url,
            "metrics_urls": [f"{url}/metrics" for url in urls]
            + [f"http://127.0.0.1:{port}/metrics" for port in self.metrics_ports],
            "api_urls": urls,
            "pids": self.list_pids(),
        }

    def _move_to_replica(self, url: str) -> str:
        """The same login and database there."""
        return f"{url.rpartition('@')[0]}@127.0.0.1:{self.replica_port}/nbpulse"

    def list_pids(self) -> dict[str, Any]:
        """The process of every part; None for a store of one's own."""
        stores = {
            "postgresql": self.stores["postgresql"].pid if "postgresql" in self.stores else None,
            "redis": self.stores["redis"].pid if "redis" in self.stores else None,
        }
        programs = {"api": [part.pid for part in self.apis], "worker": [part.pid for part in self.workers]}
        demo = {"demo": self.demo.pid} if self.demo else {}
        replica = {"replica": self.replica.pid} if self.replica else {}
        return {"supervisor": os.getpid(), **programs, **stores, **replica, **demo}


class StopRequested(BaseException):
    """SIGTERM, SIGHUP or Ctrl-C."""


class _StopSignal:
    """Raises StopRequested in the main thread once; asked again during the drain, everything ends at once."""

    def __enter__(self) -> _StopSignal:
        self._is_stopping = False
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            if number == signal.SIGINT:
                os._exit(130)  # the parts die with us; nothing accepted is lost, the next start recovers
            return
        self._is_stopping = True
        raise StopRequested


def run_up(options: UpOptions, announce: Callable[[Running], None]) -> None:
    """
    Start, announce, watch until a signal, stop.

    Raises StartupError when something cannot start or keeps dying; then everything has been stopped.
    """
    if options.replica and options.database_url:
        raise StartupError("NB-3111")
    if not (options.database_url and options.redis_url) and (obstacle := find_obstacle()):
        raise obstacle
    with hold_directory(options.data_dir), _StopSignal():
        end_previous(options.data_dir)
        running = _assemble(options)
        supervisor = Supervisor(
            running.list_parts(), deaths_limit=options.deaths_limit, note_change=lambda: _note(running)
        )
        try:
            _start(running)
            _note(running)
            announce(running)
            supervisor.run(lambda: _look_further(running))
        except StopRequested:
            say(get_text("stopping"))
        finally:
            if running.demo is not None:
                running.demo.stop(3)
            supervisor.stop()
            forget_running(options.data_dir)
    say(get_text("stopped"))


def _assemble(options: UpOptions) -> Running:
    """Every part, none of them started. Raises StartupError when something is already known to fail."""
    host = find_machine_address() if options.host == "lan" else options.host
    ports = [choose_port(host, options.port), *(find_free_port(host) for _ in range(options.api_count - 1))]
    options = replace(options, host=host, port=ports[0])
    stores: dict[str, EmbeddedServer] = {}
    if not options.redis_url:
        stores["redis"] = EmbeddedValkey(options.data_dir)
    if not options.database_url:
        stores["postgresql"] = EmbeddedPostgres(options.data_dir)
    is_new = not options.database_url and not (options.data_dir / "postgresql" / "data").exists()
    logs = options.data_dir / "log"
    logs.mkdir(mode=0o700, exist_ok=True)
    return Running(
        options,
        url=compose_url(options),
        ports=ports,
        metrics_ports=[find_free_port() for _ in range(options.worker_count)],
        stores=stores,
        is_new=is_new,
        apis=_make_programs("api", options.api_count, logs),
        workers=_make_programs("worker", options.worker_count, logs),
        demo=_make_programs("demo", 1, logs)[0] if options.demo is not None else None,
        replica=_make_programs("replica", 1, logs)[0] if options.replica else None,
        replica_port=find_free_port() if options.replica else 0,
    )


def _make_programs(part: str, count: int, logs: Path) -> list[Program]:
    names = [part] + [f"{part}-{number}" for number in range(2, count + 1)]
    return [Program(name, partial(run_part, part), log_path=logs / f"{name}.log") for name in names]


def compose_url(options: UpOptions) -> str:
    """The address people type."""
    if options.public_url:
        return options.public_url.rstrip("/")
    host = find_machine_address() if is_every_address(options.host) else options.host
    return f"{'https' if options.tls_cert else 'http'}://{bracket(host)}:{options.port}"


def _start(running: Running) -> None:
    """Stores and imports side by side, then the database, then the parts."""
    options = running.options
    importing = threading.Thread(target=import_parts, kwargs={"is_new": running.is_new})
    sys.setswitchinterval(0.0002)  # the stores' start is many small steps; each waits this long for the imports
    importing.start()
    try:
        for store in running.stores.values():
            store.launch()
        for store in running.stores.values():
            store.wait_ready(_READY_TIMEOUT_S)
    finally:
        importing.join()  # nothing may be forked while another thread runs
    settings = {"NBPULSE_DATA_DIR": str(options.data_dir)}
    settings["NBPULSE_REDIS_URL"] = options.redis_url or running.stores["redis"].url
    owner = {"NBPULSE_DATABASE_URL": running.get_admin_url()}
    has_replica = None if options.database_url else options.replica
    running.prepared = prepare_database(settings | owner, is_demo=options.demo is not None, has_replica=has_replica)
    for api, port in zip(running.apis, running.ports, strict=True):
        api.settings = settings | _describe_api(running, port)
    for number, worker in enumerate(running.workers):
        slot = {"NBPULSE_WORKER_NAME": worker.name, "NBPULSE_METRICS_PORT": str(running.metrics_ports[number])}
        worker.settings = settings | slot | {"NBPULSE_WORKER_DATABASE_URL": running.prepared["worker_database_url"]}
    if running.replica is not None:
        plan = {"primary_url": running.prepared["replication_url"], "port": running.replica_port}
        running.replica.settings = settings | {
            "NBPULSE_REPLICA_PLAN": json.dumps({"data_dir": str(options.data_dir), **plan})
        }
        running.replica.launch()  # nobody waits for it: meanwhile the primary answers
    for part in (*running.apis, *running.workers):
        part.launch()
    _await_ready(running)
    if running.demo is not None:
        prepared = running.prepared
        asked = {**(options.demo or {}), "url": running.local_url, "join_code": prepared["join_code"]}
        facts = {"asked": asked} | {name: prepared[name] for name in ("course_id", "teacher_token")}
        running.demo.settings = settings | {"NBPULSE_DEMO_CLASS": json.dumps(facts)}
        running.demo.launch()


def _look_further(running: Running) -> None:
    _watch_demo(running)
    if running.replica is not None and (said := read_last_line(running.replica.log_path)) != running.replica_said:
        running.replica_said = said
        say(said)


def _watch_demo(running: Running) -> None:
    """The simulated class may end; once it has, that is said and forgotten."""
    if running.demo is None or (code := running.demo.poll()) is None:
        return
    if code == 0:
        say(get_text("demo_ended"))
    else:
        reason = read_last_line(running.demo.log_path)
        say(get_text("demo_died", how=describe_exit(code), reason=reason, log=running.demo.log_path))
    running.demo = None


def _describe_api(running: Running, port: int) -> dict[str, str]:
    options = running.options
    settings = {
        "NBPULSE_API_DATABASE_URL": running.prepared["api_database_url"],
        "NBPULSE_HOST": options.host,
        "NBPULSE_PORT": str(port),
        "NBPULSE_PUBLIC_URL": running.url,
    }
    if options.replica:
        settings["NBPULSE_REPLICA_URLS"] = f"postgresql://127.0.0.1:{running.replica_port}/nbpulse"
    if options.tls_cert and options.tls_key:
        settings |= {"NBPULSE_TLS_CERT": str(options.tls_cert), "NBPULSE_TLS_KEY": str(options.tls_key)}
    return settings


def _await_ready(running: Running) -> None:
    """Until every API and worker answers. Raises StartupError (NB-3012, NB-3013) when one does not."""
    options = running.options
    host, is_tls = running.local_host, bool(options.tls_cert)
    apis, workers = (
        zip(running.apis, running.ports, strict=True),
        zip(running.workers, running.metrics_ports, strict=True),
    )
    waiting = [(api, host, port, "/health/ready", is_tls) for api, port in apis]
    waiting += [(worker, "127.0.0.1", port, "/health", False) for worker, port in workers]
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    while waiting:
        part, host, port, path, is_tls = waiting[0]
        if ask_health(host, port, path, tls=is_tls) == 200:
            waiting.pop(0)
            continue
        if part.poll() is not None:
            raise StartupError("NB-3012", part=part.name, reason=read_last_line(part.log_path), log=part.log_path)
        if time.monotonic() > deadline_s:
            raise StartupError("NB-3013", part=part.name, timeout_s=_READY_TIMEOUT_S, log=part.log_path)
        time.sleep(0.02)


def _note(running: Running) -> None:
    """Keep `running.json` true; the link's code is good once and stays out of it."""
    import psutil

    described = running.describe()
    del described["teacher_link"]
    processes = []
    others = [one for one in (running.demo, running.replica) if one is not None]
    for program in [*running.apis, *running.workers, *others]:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append([program.pid, psutil.Process(program.pid).create_time()])
    private: dict[str, str | None] = {"admin_database_url": running.get_admin_url()}
    private |= {
        name: os.environ.get(f"NBPULSE_{name.upper()}") for name in ("influx_url", "hub_api_url", "oidc_issuer")
    }
    write_running(running.options.data_dir, described | private | {"processes": processes})
