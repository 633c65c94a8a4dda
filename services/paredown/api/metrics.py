"""Figures for Prometheus: requests as they pass, the queue as the database has it at the moment of the scrape."""

from collections.abc import Iterable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from paredown.core import jobs
from paredown.core.db import Database
from paredown.core.errors import DatabaseUnavailable
from paredown.core.settings import Settings

_log = structlog.get_logger("pare.api")
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Anything else a client makes up counts as one, so that a scanner cannot fill our memory with names.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one application. Each has its own registry, so that two in one process do not mix."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pare_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "pare_http_request_seconds",
            "Time from the request to the end of its answer; event streams are not counted.",
            ("method", "route"),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.streams = Gauge("pare_event_streams", "Open streams of job events.", registry=self.registry)
        self.dropped_streams = Counter(
            "pare_event_streams_dropped", "Streams ended because their reader was too slow.", registry=self.registry
        )
        self.registry.register(_Queue(database, tuple(settings.pools)))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        # Status 0: the client left before there was an answer.
        self._requests.labels(method, route, str(status or "none")).inc()
        if not route.endswith("/events"):
            self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Queue(Collector):
    """Read from the one truth at each scrape. Without a database the other figures are still told."""

    def __init__(self, database: Database, pools: tuple[str, ...]) -> None:
        self._database = database
        self._pools = pools

    def describe(self) -> Iterable[GaugeMetricFamily]:
        # Registering asks for names; without this it would collect, and so query, before the database is up.
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        reachable = GaugeMetricFamily("pare_database_up", "1 when the database answers.")
        try:
            with self._database.transaction() as session:
                counts = jobs.counts(session)
                oldest = jobs.oldest_due_seconds(session)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            _log.warning("queue_figures_missing", reason=str(error))
            reachable.add_metric((), 0)
            yield reachable
            return
        reachable.add_metric((), 1)
        yield reachable
        by_state = GaugeMetricFamily("pare_jobs", "Jobs by pool and state.", labels=("pool", "state"))
        for (pool, state), number in counts.items():
            by_state.add_metric((pool, state.value), number)
        yield by_state
        waiting = GaugeMetricFamily(
            "pare_oldest_due_job_seconds", "How long a pool's oldest due job has waited.", labels=("pool",)
        )
        for pool in self._pools:
            waiting.add_metric((pool,), oldest.get(pool, 0))
        yield waiting
