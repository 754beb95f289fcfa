"""Every metric nbpulse serves, one line of meaning each. The first two bear the specification's names.

A call is timed where the store's client is made (connections.py, stream/link.py, timeseries/influx.py); what it is for
is said by a name from the closed sets below, so that no text of a person can become a label.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar, get_args

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

Database = Literal["postgresql", "postgresql_replica", "influxdb", "redis"]
SeriesQuery = Literal[
    "check",
    "write_points",
    "query_activity",
    "query_error_rate",
    "query_percentiles",
    "query_progress",
    "query_performance",
    "erase_points",
]
InfluxQuery = Literal[SeriesQuery, "create_database", "read_points"]
PostgresQuery = Literal[
    SeriesQuery,
    "refresh_rollups",
    # the worker's
    "record_events",
    "read_shard_map",
    "pay_rollups",
    "find_erased",
    "settle_debt",
    "find_debts",
    "close_idle_sessions",
    "dead_letters",
    "check_keys",
    "read_owed",
    "keep_partitions",
    "count_cells",
    "count_dropped",
    "read_accounts",
    "pay_marks",
    "mark_changed_notebooks",
    # people, tokens, courses
    "find_person",
    "enter_by_identity",
    "create_token",
    "use_link",
    "revoke_token",
    "list_tokens",
    "describe_person",
    "find_password",
    "set_password",
    "open_session",
    "close_sessions",
    "enter_as_identity",
    "describe_account",
    "add_account",
    "close_account",
    "list_accounts",
    "join",
    "list_people",
    "change_member",
    "change_entry",
    "import_roster",
    "invite",
    "accept_invitation",
    "find_notice",
    "show_collection",
    "change_collection",
    "change_rules",
    "find_rules",
    "read_lesson",
    "show_consent",
    "note_consent",
    "note_audit",
    "list_own_audit",
    "ensure_course",
    "ensure_teacher",
    "begin_meeting",
    "list_courses",
    "create_course",
    "change_course",
    "register_original",
    "delete_course",
    "open_rehearsal",
    "remove_demo_course",
    "clear_removed",
    # the board
    "load_class",
    "load_pulse",
    "load_roster",
    "load_states",
    "load_help",
    "class_summary",
    "start_meeting",
    "end_meeting",
    "list_meetings",
    "reopen_meeting",
    "show_readiness",
    "keep_meetings",
    "report",
    "replay",
    "share_report",
    # what staff do, and inboxes
    "act_on_alert",
    "list_interventions",
    "find_helped_hands",
    "send_messages",
    "list_messages",
    "read_inbox",
    "write_message",
    "set_message_state",
    "mark_lesson",
    "find_map",
    "change_map",
    "change_error_group",
    "check_notebook",
    "find_session",
    "list_members",
    "list_signs",
    # a course's history
    "find_course",
    "sessions",
    "progress",
    "failing_cells",
    "common_errors",
    "slow_cells",
    "recovery_times",
    # one student's, cell's, error's work
    "find_policy",
    "read_student",
    "read_runs",
    "read_cell",
    "read_error",
    "read_own_progress",
    # privacy
    "look_at_replication",
    "find_tombstone",
    "export_person",
    "drop_expired",
    "other",
]
RedisQuery = Literal[
    "append",
    "make_groups",
    "read_settings",
    "read_new",
    "read_pending",
    "claim",
    "count_deliveries",
    "ack",
    "note_suspect",
    "measure_backlog",
    "trim",
    "beat",
    "read_leases",
    "take_leases",
    "give_leases",
    "leave",
    "copy_entries",
    "erase_entries",
    # of the cache and the publisher: the command itself
    "pipeline",
    "exists",
    "get",
    "getdel",
    "hdel",
    "hgetall",
    "hset",
    "publish",
    "set",
    "other",
]
HistorySource = Literal["replica", "primary", "primary_own_write", "primary_after_failure"]
CloseReason = Literal["full", "crowded", "late", "head"]
Limit = Literal[
    "student_events",
    "course_events",
    "token_requests",
    "address_requests",
    "address_refusals",
    "address_guesses",
    "account_guesses",
    "unproved_sockets",
    "person_boards",
]

database_query_duration = Histogram(
    "database_query_duration_seconds",
    "How long one call to a store took, from asking for a connection to giving it back",
    ["database", "query_type"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
# Per command, since looking a label up costs as much as the rest of the timing.
redis_query_durations: Final[dict[str, Histogram]] = {
    name: database_query_duration.labels("redis", name) for name in get_args(RedisQuery)
}
_query_type: ContextVar[PostgresQuery] = ContextVar("query_type", default="other")
_Parameters = ParamSpec("_Parameters")
_Answer = TypeVar("_Answer")
_Function = Callable[_Parameters, Coroutine[Any, Any, _Answer]]


@contextmanager
def name_query(query_type: PostgresQuery) -> Iterator[None]:
    """Calls for a PostgreSQL connection made inside are counted under this name."""
    token = _query_type.set(query_type)
    try:
        yield
    finally:
        _query_type.reset(token)


def named_query(
    query_type: PostgresQuery,
) -> Callable[[_Function[_Parameters, _Answer]], _Function[_Parameters, _Answer]]:
    """`name_query` for the whole of an async function."""

    def decorate(function: _Function[_Parameters, _Answer]) -> _Function[_Parameters, _Answer]:
        @functools.wraps(function)
        async def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
            with name_query(query_type):
                return await function(*args, **kwargs)

        return call

    return decorate


def read_query_name() -> PostgresQuery:
    """What the call being made is for; `other` where nobody said."""
    return _query_type.get()


class PoolFigures(NamedTuple):
    """Connections of one pool now: open, open and unused, and at most."""

    size: int
    idle: int
    limit: int


class _Pools(Collector):
    """The pools of this process, asked at each scrape."""

    def __init__(self) -> None:
        self._watched: list[tuple[Database, Callable[[], PoolFigures]]] = []

    @contextmanager
    def watch(self, database: Database, measure: Callable[[], PoolFigures]) -> Iterator[None]:
        """While inside, the pool that `measure` looks at is part of its database's figures."""
        entry = (database, measure)
        self._watched.append(entry)
        try:
            yield
        finally:
            self._watched.remove(entry)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The metrics without their figures."""
        return [GaugeMetricFamily(name, text, labels=["database"]) for name, text in _POOL_METRICS]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The figures as they are now; a store this process has no pool for has none."""
        sums: dict[Database, list[int]] = {}
        for database, measure in self._watched:
            sums[database] = [a + b for a, b in zip(sums.get(database, (0, 0, 0)), measure(), strict=True)]
        families = [GaugeMetricFamily(name, text, labels=["database"]) for name, text in _POOL_METRICS]
        for database, figures in sums.items():
            for family, figure in zip(families, figures, strict=True):
                family.add_metric([database], figure)
        return families


_POOL_METRICS: Final = (  # in the order of PoolFigures
    ("database_connection_pool_size", "Connections open in this process now"),
    ("database_connection_pool_idle", "Connections open in this process that nobody uses now"),
    ("database_connection_pool_limit", "Connections this process opens at most"),
)
pools: Final = _Pools()
REGISTRY.register(pools)

ingest_events = Counter(
    "nbpulse_ingest_events_total", "Events answered by the API, by what was said of each", ["result"]
)
ingest_stripped_fields = Counter(
    "nbpulse_ingest_stripped_fields_total", "Fields that were sent though the course does not collect them", ["field"]
)
limited_requests = Counter("nbpulse_limited_requests_total", "Requests refused because a limit was met", ["limit"])
closed_connections = Counter(
    "nbpulse_closed_connections_total", "Connections closed because they kept us waiting, or were too many", ["reason"]
)
ingest_ack_duration = Histogram(
    "nbpulse_ingest_ack_seconds",
    "From a delivery's headers to its answer, of deliveries that were taken",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
ingest_append_duration = Histogram(
    "nbpulse_ingest_append_seconds",
    "From the start of one coalesced append to the stream's durable answer",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
)
stream_backlog_events = Gauge("nbpulse_stream_backlog_events", "Events in the stream not yet acknowledged")
stream_generation_changes = Counter(
    "nbpulse_stream_generation_changes_total", "Times the stream's server was found emptied or exchanged"
)
worker_shards = Gauge("nbpulse_worker_shards", "Shards of 64 that this worker reads")
workers = Gauge("nbpulse_workers", "Workers at work in the last 5 s, as the API sees them at the scrape")
worker_events = Counter("nbpulse_worker_events_total", "Events the worker finished, by outcome", ["outcome"])
worker_redeliveries = Counter("nbpulse_worker_redeliveries_total", "Entries taken over from a dead or slow worker")
worker_batch_duration = Histogram(
    "nbpulse_worker_batch_seconds",
    "One batch from read to acknowledgement",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
worker_lag_seconds = Gauge("nbpulse_worker_lag_seconds", "Age of the newest event processed, at its commit")
dead_letters = Gauge("nbpulse_dead_letters", "Entries set aside and not replayed, as the API sees them at the scrape")
unaccounted_events = Gauge(
    "nbpulse_unaccounted_events",
    "Entries the stream was given that are neither stored, duplicate, set aside, dropped nor in hand, and stored ledger"
    " rows that are gone; below 0: counted twice. Of the last moment without a batch in hand",
)
series_debt_batches = Gauge(
    "nbpulse_series_debt_batches", "Batches stored but not yet in the time series (a worker sees at most 20)"
)
series_debt_oldest_seconds = Gauge(
    "nbpulse_series_debt_oldest_seconds", "Age of the oldest such batch, as the API sees it at the scrape; 0 for none"
)
series_marks = Gauge(
    "nbpulse_series_marks",
    "Students' notebooks with runs not yet in learning_progress and performance_metrics, as the API sees them",
)
series_marks_oldest_seconds = Gauge(
    "nbpulse_series_marks_oldest_seconds", "Age of the oldest of them, as the API sees it at the scrape; 0 for none"
)
series_rejected_points = Counter(
    "nbpulse_series_rejected_points_total", "Points the time-series store refused for good, set aside", ["reason"]
)
replica_lag_seconds = Gauge(
    "nbpulse_replica_lag_seconds",
    "How old what a read replica shows is, as this process saw it last; NaN: it does not answer, or is no replica",
    ["replica"],
)
history_answers = Counter(
    "nbpulse_history_answers_total",
    "Answers of history where there are replicas, by what they were read from: primary: no replica was near enough",
    ["source"],
)
# A label's value that never came yet is 0, not nothing: else an alert would miss the first one.
for _outcome in ("stored", "duplicate", "dead_letter"):
    worker_events.labels(_outcome)
for _why in get_args(CloseReason):
    closed_connections.labels(_why)
for _limit in get_args(Limit):
    limited_requests.labels(_limit)
for _source in get_args(HistorySource):
    history_answers.labels(_source)
for _reason in ("refused", "series_limit"):
    series_rejected_points.labels(_reason)
# What only the API, or only a worker, looks up is unknown in every other process, not 0.
for _seen_by_one in (
    *(workers, dead_letters, series_debt_oldest_seconds),
    *(series_marks, series_marks_oldest_seconds, unaccounted_events, worker_shards),
):
    _seen_by_one.set(math.nan)
live_frames = Counter("nbpulse_live_frames_total", "Frames encoded for boards")
live_viewers = Gauge("nbpulse_live_viewers", "Boards connected to this process")
