"""Every metric nbpulse serves, one line of meaning each. The first two bear the specification's names."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

database_query_duration = Histogram(
    "database_query_duration_seconds",
    "How long one call to a store took",
    ["database", "query_type"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
database_connection_pool = Gauge(
    "database_connection_pool_size", "Connections open in this process's pool", ["database"]
)

ingest_events = Counter(
    "nbpulse_ingest_events_total", "Events answered by the API, by what was said of each", ["result"]
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
worker_events = Counter("nbpulse_worker_events_total", "Events the worker finished, by outcome", ["outcome"])
worker_redeliveries = Counter("nbpulse_worker_redeliveries_total", "Entries taken over from a dead or slow worker")
worker_batch_duration = Histogram(
    "nbpulse_worker_batch_seconds",
    "One batch from read to acknowledgement",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
worker_lag_seconds = Gauge("nbpulse_worker_lag_seconds", "Age of the newest event processed, at its commit")
series_debt_batches = Gauge("nbpulse_series_debt_batches", "Batches stored but not yet in the time series")
series_rejected_points = Counter(
    "nbpulse_series_rejected_points_total", "Points the time-series store refused for good, set aside", ["reason"]
)
live_frames = Counter("nbpulse_live_frames_total", "Frames encoded for boards")
live_viewers = Gauge("nbpulse_live_viewers", "Boards connected to this process")
