"""What every route is given: the process's stores, the gate, and who is asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import msgspec
import structlog
from starlette.requests import HTTPConnection, Request

from nbpulse.allowances import DEFAULT, Limits
from nbpulse.api.access import Gate
from nbpulse.api.answers import Answers
from nbpulse.api.boards import OpenBoards
from nbpulse.api.cookies import Cookies
from nbpulse.api.freshness import Freshness
from nbpulse.api.hub_access import HubGate
from nbpulse.api.ingest import Ingest
from nbpulse.api.limits import RequestLimits
from nbpulse.api.trail import AuditTrail
from nbpulse.cache import Cache
from nbpulse.errors import NotFound, Unavailable
from nbpulse.guesses import Guesses
from nbpulse.hub import LiveHub
from nbpulse.identity import ask_as
from nbpulse.passwords import Hasher
from nbpulse.providers import Provider
from nbpulse.records.accounts import Accounts
from nbpulse.records.analysis import CourseHistory
from nbpulse.records.audit import AuditLog
from nbpulse.records.consents import Consents
from nbpulse.records.inboxes import Inboxes
from nbpulse.records.interventions import Interventions
from nbpulse.records.lessons import Lessons
from nbpulse.records.meetings import Meetings
from nbpulse.records.messages import Messages
from nbpulse.records.own_tokens import OwnTokens
from nbpulse.records.people import People, Person
from nbpulse.records.replays import Replays
from nbpulse.records.report_shares import ReportShares
from nbpulse.records.reports import Reports
from nbpulse.records.retention import FOR_EVER, Retention
from nbpulse.records.rules import CourseRules
from nbpulse.records.views import ClassReader
from nbpulse.records.work import WorkReader
from nbpulse.replicas import HistoryPool
from nbpulse.stream import EventStream
from nbpulse.timeseries import ClassScope, TimeSeriesStore

if TYPE_CHECKING:
    from nbpulse.jupyterhub import JupyterHub  # its HTTP client is 0.2 s of imports, for those who have a hub

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ApiOptions:
    """How one API process is reached and served. `public_url`: the address people use when a proxy stands in front."""

    public_url: str | None = None
    limits: Limits = DEFAULT
    retention: Retention = FOR_EVER
    """For how long the operator keeps things."""


class Parts(Protocol):
    """What the API needs of a process's resources (resources.py)."""

    @property
    def stream(self) -> EventStream: ...
    @property
    def cache(self) -> Cache: ...
    @property
    def guesses(self) -> Guesses: ...
    @property
    def people(self) -> People: ...
    @property
    def history(self) -> HistoryPool: ...
    @property
    def hasher(self) -> Hasher: ...
    @property
    def providers(self) -> Mapping[str, Provider]: ...
    @property
    def classes(self) -> ClassReader: ...
    @property
    def hub(self) -> LiveHub: ...
    @property
    def series(self) -> TimeSeriesStore: ...
    @property
    def jupyterhub(self) -> JupyterHub | None: ...
    @property
    def promise(self) -> str: ...


@dataclass
class Context:
    """One running API."""

    options: ApiOptions
    stream: EventStream
    cache: Cache
    guesses: Guesses
    people: People
    accounts: Accounts
    cookies: Cookies
    providers: Mapping[str, Provider]
    classes: ClassReader
    hub: LiveHub
    series: TimeSeriesStore
    history_pool: HistoryPool
    past: People
    """Asks `history_pool`: for what may be some seconds old, never for who somebody is."""
    history: CourseHistory
    work: WorkReader
    meetings: Meetings
    lessons: Lessons
    interventions: Interventions
    replays: Replays
    reports: Reports
    report_shares: ReportShares
    messages: Messages
    inboxes: Inboxes
    consents: Consents
    rules: CourseRules
    own_tokens: OwnTokens
    promise: str
    limits: RequestLimits
    boards: OpenBoards
    gate: Gate
    ingest: Ingest
    answers: Answers
    freshness: Freshness
    trail: AuditTrail
    is_stopping: bool = False

    def hear_access(self, user_id: UUID) -> None:
        """What the person may do is another now, here or by another process's word."""
        self.gate.forget_person(user_id)
        self.freshness.distrust(user_id)
        self.boards.tell(user_id)

    async def announce_access(self, user_id: UUID) -> None:
        """The same, told to every process. Without the cache they find out within 60 s."""
        self.hear_access(user_id)
        try:
            await self.cache.announce_access(user_id)
        except Unavailable as error:
            _log.warning("access.not_announced", code=error.code)

    async def find_class(self, course_id: UUID) -> ClassScope:
        """The course's students and notebooks, to narrow a question to the time series."""
        return ClassScope(course_id, *await self.classes.list_members(course_id))


def make_context(parts: Parts, options: ApiOptions) -> Context:
    """The context of an API on `parts`."""
    hub_gate = HubGate(parts.jupyterhub, parts.people) if parts.jupyterhub else None
    limits = RequestLimits(options.limits)
    gate = Gate(parts.people, limits, options.public_url, hub_gate)
    trail = AuditTrail(AuditLog(parts.people))
    seal = parts.people.seal
    past = People(parts.history, seal, databases=parts.people.databases)
    context = Context(
        options=options,
        stream=parts.stream,
        cache=parts.cache,
        guesses=parts.guesses,
        people=parts.people,
        accounts=Accounts(parts.people, parts.hasher),
        cookies=Cookies(options.public_url),
        providers=parts.providers,
        classes=parts.classes,
        hub=parts.hub,
        series=parts.series,
        history_pool=parts.history,
        past=past,
        history=CourseHistory(past),
        work=WorkReader(past),
        meetings=Meetings(parts.people),
        lessons=Lessons(parts.people),
        interventions=Interventions(parts.people, seal),
        messages=Messages(parts.people, seal),
        replays=Replays(past, ClassReader(parts.history, seal)),
        reports=Reports(past, Interventions(past, seal), Messages(past, seal)),
        report_shares=ReportShares(parts.people),
        inboxes=Inboxes(parts.people, seal),
        consents=Consents(parts.people),
        rules=CourseRules(parts.people),
        own_tokens=OwnTokens(parts.people),
        promise=parts.promise,
        limits=limits,
        boards=OpenBoards(options.limits.person_boards),
        gate=gate,
        ingest=Ingest(gate, limits, parts.stream, parts.cache, trail),
        answers=Answers(),
        freshness=Freshness(parts.history, parts.cache),
        trail=trail,
    )
    parts.hub.hear_access = context.hear_access
    return context


def get_context(connection: HTTPConnection) -> Context:
    """The context of the API that serves this connection."""
    context: Context = connection.app.state.context
    return context


def get_person(connection: HTTPConnection) -> Person:
    """Who is asking, as the route's rule has found out."""
    person: Person = connection.state.person
    return person


async def admit(request: Request) -> None:
    """Let the request through by its route's rule; from now on its task asks as that person. Raises as `Gate.admit`."""
    context, place = get_context(request), f"{request.method} {request.scope['route'].path}"
    request.state.person = person = await context.gate.admit(request, place)
    ask_as(person.user_id if person else None)
    if person:
        await context.trail.note_request(request, place, person)


def parse_id(text: str) -> UUID:
    """An id of a path or query. Raises NotFound (NB-1201): what is no id names nothing."""
    try:
        return UUID(text)
    except ValueError as error:
        raise NotFound("NB-1201") from error


def describe_body(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The request body of a route for OpenAPI."""
    definitions = msgspec.json.schema(kind)["$defs"]
    schema = _write_out(definitions[kind.__name__], definitions)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _write_out(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with what it refers to in its place: a request body stands alone."""
    if isinstance(schema, list):
        return [_write_out(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _write_out(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _write_out(one, definitions) for name, one in schema.items()}
