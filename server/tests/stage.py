"""The API on a stage: the real application under uvicorn on real stores, with a hand to play the worker.

Everything runs in the test's own event loop; the database login is the API's own, as in production.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import httpx2
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket

from nbpulse.api.app import ApiOptions, Application, create_app
from nbpulse.api.serving import Server, configure
from nbpulse.api.waiting import Waiting
from nbpulse.cache import Cache
from nbpulse.connections import open_pool, open_redis
from nbpulse.crypto import EncryptedField, make_key
from nbpulse.events import decode
from nbpulse.guesses import Guesses
from nbpulse.hub import LiveHub
from nbpulse.jupyterhub import JupyterHub, open_jupyterhub
from nbpulse.live import LivePublisher
from nbpulse.migrations.runner import with_login
from nbpulse.passwords import Hasher
from nbpulse.pipeline import process_events
from nbpulse.providers import Provider
from nbpulse.records.courses import Course, Courses
from nbpulse.records.ledger import PostgresLedger
from nbpulse.records.notebooks import NotebookDirectory
from nbpulse.records.people import People
from nbpulse.records.views import ClassReader
from nbpulse.replicas import HistoryPool
from nbpulse.stream import LANES, EventStream
from nbpulse.timeseries import TimeSeriesStore
from nbpulse.timeseries.influx import open_influx
from nbpulse.timeseries.postgres import PostgresTimeSeries
from stores import WORKER_PASSWORD, connect

KEY = make_key()
NOBODY = UUID("6f1c1d6e-0000-4000-8000-000000000000")
"""Nobody's id. As a parameter of tests it is the same in every process of a parallel run, which uuid4() is not."""


class Replicas(NamedTuple):
    """The read replicas of a stage's database, by the superuser's URLs."""

    urls: Sequence[str] = ()
    lag_max_s: float = 10.0


@dataclass(frozen=True)
class StageParts:
    """`api.context.Parts`."""

    stream: EventStream
    cache: Cache
    people: People
    history: HistoryPool
    classes: ClassReader
    hub: LiveHub
    guesses: Guesses
    series: TimeSeriesStore
    hasher: Hasher
    promise: str = "power"
    providers: Mapping[str, Provider] = field(default_factory=dict)
    jupyterhub: JupyterHub | None = None


@dataclass
class Stage:
    """One API, its class, and its teacher."""

    url: str
    http: httpx2.AsyncClient
    parts: StageParts
    database_url: str
    redis_url: str
    course: Course
    teacher_id: UUID
    teacher_token: str
    courses: Courses
    people: People
    """With the owner's rights; the API's own are in `parts`."""

    @property
    def staff(self) -> dict[str, str]:
        """The teacher's headers; each answer is made for the one who asks, from what is stored by then."""
        return {"Authorization": f"Bearer {self.teacher_token}", "Cache-Control": "no-store"}

    async def join(self, name: str = "鈴木 大翔", **fields: Any) -> dict[str, Any]:
        """A student's answer to joining, as JSON."""
        answer = await self.http.post(
            "/api/v1/join", json={"join_code": self.course.join_code, "display_name": name, **fields}
        )
        assert answer.status_code == 201, answer.text
        joined: dict[str, Any] = answer.json()
        return joined

    async def post(
        self, token: str | None, body: Any, *, headers: dict[str, str] | None = None, is_gzip: bool = False
    ) -> httpx2.Response:
        """A delivery of events; `body` as bytes goes as it is."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if is_gzip:
            content, sent["Content-Encoding"] = gzip.compress(content), "gzip"
        return await self.http.post("/api/v1/events", content=content, headers=sent)

    async def work(self) -> int:
        """Process everything that is in the stream, as a worker does; how many events."""
        processed = 0
        for lane in LANES:
            while deliveries := await self._worker.read(lane, block_ms=10):
                events = [decode(one.payload) for one in deliveries]
                await process_events(events, ledger=self._ledger, publisher=self._publisher)
                await self._worker.ack(deliveries)
                processed += len(events)
        return processed

    async def read_inbox(self, student: dict[str, Any], after: int = 0, wait_s: float = 0) -> dict[str, Any]:
        """What the student (as `join` gave them) is told."""
        answer = await self.http.get(
            f"/api/v1/me/inbox?after={after}&wait_s={wait_s}", headers={"Authorization": f"Bearer {student['token']}"}
        )
        assert answer.status_code == 200, answer.text
        inbox: dict[str, Any] = answer.json()
        return inbox

    async def snapshot(self, **query: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/courses/{self.course.id}/live", params=query, headers=self.staff)
        assert answer.status_code == 200, answer.text
        board: dict[str, Any] = answer.json()
        return board

    @asynccontextmanager
    async def watch(self, board: dict[str, Any] | None = None, **hello: Any) -> AsyncIterator[ClientConnection]:
        """A board's WebSocket after its hello, going on from `board` where one is given."""
        first = {"t": "hello", "token": self.teacher_token, **hello}
        if board is not None:
            first |= {"epoch": board["epoch"], "after_seq": board["seq"]}
        url = f"{self.url.replace('http', 'ws')}/api/v1/courses/{self.course.id}/ws"
        async with connect_socket(url) as socket:
            await socket.send(json.dumps(first))
            yield socket

    _worker: EventStream = None  # type: ignore[assignment]
    _ledger: PostgresLedger = None  # type: ignore[assignment]
    _publisher: LivePublisher = None  # type: ignore[assignment]


async def add_assistant(stage: Stage, teams: list[str], course_id: UUID | None = None) -> tuple[UUID, str]:
    """An assistant of these teams, or of the whole course for none: who it is, and their token."""
    user_id = uuid4()
    async with connect(stage.database_url) as owner:
        await owner.execute("INSERT INTO users (id, username) VALUES ($1, $2)", user_id, user_id.hex)
        await owner.execute(
            "INSERT INTO enrolments (user_id, course_id, role, teams) VALUES ($1, $2, 'assistant', $3)",
            *(user_id, course_id or stage.course.id, teams),
        )
    return user_id, await stage.people.create_staff_token(user_id)


def make_run(cell: int = 0, status: str = "ok", **changes: Any) -> dict[str, Any]:
    """One execution as a client sends it."""
    data: dict[str, Any] = {"status": status, "execution_duration_ms": 12.5, "execution_count": 1}
    if status == "error":
        data |= {"error_name": "NameError", "error_message": "name 'df' is not defined"}
    return {
        "schema_version": 1,
        "event_id": str(uuid4()),
        "event_type": "cell_execution",
        "occurred_at": datetime.now(UTC).isoformat(),
        "sequence": 1,
        "notebook_path": "week1.ipynb",
        "cell_id": f"cell-{cell}",
        "cell_index": cell,
        "cell_type": "code",
        "data": data,
    } | changes


@asynccontextmanager
async def open_parts(
    database_url: str,
    redis_url: str,
    influx_url: str | None = None,
    hub_api_url: str | None = None,
    replicas: Replicas | None = None,
) -> AsyncIterator[StageParts]:
    """What one API process shares."""
    replicas = replicas or Replicas()
    openings = [
        partial(
            *(open_pool, with_login(url, "nbpulse_api", WORKER_PASSWORD), 6),
            database="postgresql_replica",
            is_lazy=True,
        )
        for url in replicas.urls
    ]
    api_url = with_login(database_url, "nbpulse_api", WORKER_PASSWORD)
    opening_hub = open_jupyterhub(hub_api_url) if hub_api_url else nullcontext()
    async with (
        open_redis(redis_url) as redis,
        open_pool(api_url, 6) as pool,
        HistoryPool(pool, openings, lag_max_s=replicas.lag_max_s).watching() as history,
        opening_hub as jupyterhub,
    ):
        seal, cache, stream = EncryptedField(KEY), Cache(redis), EventStream(redis)
        classes = ClassReader(pool, seal)
        hub = LiveHub(redis, classes, cache.read_presence, stream.measure_backlog)
        series = PostgresTimeSeries(history)
        guesses, hasher = Guesses(redis, of_address=300, of_account=10), Hasher()
        parts = StageParts(
            *(stream, cache, People(pool, seal), history, classes, hub, guesses, series, hasher), jupyterhub=jupyterhub
        )
        try:
            if influx_url is None:
                yield parts
            else:
                async with open_influx(influx_url) as influx:
                    yield replace(parts, series=influx)
        finally:
            hasher.close()
            await stream.close()


@asynccontextmanager
async def serve_api(
    database_url: str,
    redis_url: str,
    *,
    influx_url: str | None = None,
    hub_api_url: str | None = None,
    providers: Mapping[str, Provider] | None = None,
    waiting: Waiting | None = None,
    replicas: Replicas | None = None,
    **options: Any,
) -> AsyncIterator[tuple[str, StageParts]]:
    """An API on a free port: its URL and its parts."""
    opened: list[StageParts] = []

    @asynccontextmanager
    async def open_noted() -> AsyncIterator[StageParts]:
        async with open_parts(database_url, redis_url, influx_url, hub_api_url, replicas) as parts:
            opened.append(replace(parts, providers=providers or {}))
            yield opened[0]

    async with serve_app(create_app(open_noted, ApiOptions(**options)), waiting) as url:
        yield url, opened[0]


@asynccontextmanager
async def serve_app(application: Application, waiting: Waiting | None = None) -> AsyncIterator[str]:
    """An application on a free port, as uvicorn serves it."""
    waiting = Waiting() if waiting is None else waiting
    config = configure(application, waiting, host="127.0.0.1", port=0, timeout_graceful_shutdown=1)
    server = Server(config, application, waiting)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    try:
        while not server.started:
            assert not task.done(), "the API did not start"
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)


@asynccontextmanager
async def open_stage(database_url: str, redis_url: str, **options: Any) -> AsyncIterator[Stage]:
    """A stage with one course and its teacher, on stores that may be shared with other stages."""
    worker_url = with_login(database_url, "nbpulse_worker", WORKER_PASSWORD)
    async with (
        serve_api(database_url, redis_url, **options) as (url, parts),
        # Reading the certificates, which http has no use for, is half of what a stage costs.
        httpx2.AsyncClient(base_url=url, timeout=10, verify=False) as http,
        asyncpg.create_pool(database_url, min_size=1, max_size=2) as owner,
        asyncpg.create_pool(worker_url, min_size=1, max_size=2) as writer,
        open_redis(redis_url) as redis,
    ):
        seal = EncryptedField(KEY)
        courses = Courses(owner, seal)
        course = await courses.ensure_course("情報 I", f"c{uuid4().hex[:8]}")
        teacher_id = await courses.ensure_teacher(course.id)
        people = People(owner, seal)
        stage = Stage(
            url=url,
            http=http,
            parts=parts,
            database_url=database_url,
            redis_url=redis_url,
            course=course,
            teacher_id=teacher_id,
            teacher_token=await people.create_staff_token(teacher_id),
            courses=courses,
            people=people,
        )
        stage._worker = EventStream(redis, consumer="worker-1")
        stage._ledger = PostgresLedger(writer, seal, NotebookDirectory())
        stage._publisher = LivePublisher(redis)
        await stage._worker.ensure_groups()
        try:
            yield stage
        finally:
            await stage._worker.close()
