"""Metrics of a running stream for Prometheus, and its health, over HTTP on this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    MetricsHandler,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelines.stream.figures import Figures
from pipelines.stream.watcher import Watcher
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.stream.live_tables import CycleResult
    from pipelines.stream.publishing import Published
    from pipelines.stream.sources import Taking
from pipelines.stream.store import LiveStore

HOST = "127.0.0.1"
PREFIX = "care_kpis_"

_CYCLE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
_PUBLISH_BUCKETS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300)
_COUNTERS = (
    ("rows_read", "rows_read_count", "Input rows that were committed."),
    ("late_events", "late_event_count", "Events that came too late."),
)
_GAUGES = (
    ("events_kept", "events_kept_count", "Events kept since the start."),
    ("exact_duplicates", "exact_duplicate_count", "Rows that repeated an event word for word, since the start."),
    ("cycle", "cycle", "Number of the last cycle that was committed."),
    ("watermark_delay_seconds", "watermark_delay_seconds", "The clock minus the watermark."),
    ("open_rows", "open_row_count", "Rows of open conversations that are kept."),
    ("keys", "key_count", "Conversation keys that are kept."),
    ("pending_cycles", "pending_cycle_count", "Cycles that no published result has."),
    ("last_look_age_seconds", "looked_seconds_ago", "Since the stream last looked for something new."),
)
_OF_PARTITIONS = (
    ("partition_lag", "lag", "Rows (of a folder: files) that are there and not taken yet."),
    ("partition_next_offset", "next_offset", "First offset (of a folder: number of the file) that is not taken yet."),
)
_OF_CHANNELS = (
    ("waiting_count", "Turns that are due at the end of today, of the channel."),
    ("backlog_count", "Open conversations at the end of today, of the channel."),
)


class MetricsServer(Watcher):
    """Serves /metrics and /healthz until the stream ends.

    Attributes:
      port: where it listens.
    """

    def __init__(self, figures: Figures, port: int) -> None:
        """Begins to serve.

        Args:
          figures: of the stream; it is told everything before the server is.
          port: where to listen; 0 is any that is free.

        Raises:
          UserError: the port is taken, or not ours to take.
        """
        self._figures = figures
        # When a histogram was made is no news.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        registry.register(_Figured(figures))
        ProcessCollector(registry=registry)
        self._cycle = Histogram(
            f"{PREFIX}cycle_seconds", "Seconds of a cycle.", registry=registry, buckets=_CYCLE_BUCKETS
        )
        self._publish = Histogram(
            f"{PREFIX}publish_seconds", "Seconds of a publish.", registry=registry, buckets=_PUBLISH_BUCKETS
        )
        kind = type("Handler", (_Handler,), {"registry": registry, "figures": figures})
        try:
            self._server = _Server((HOST, port), kind)
        except OSError as error:
            raise UserError(
                f"Expected port {port} of {HOST} to be free for --metrics-port, but the system says "
                f"{(error.strerror or str(error))!r}: choose another port, or end what has it."
            ) from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """Observes how long it took."""
        self._cycle.observe(self._figures.cycle_seconds)

    def published(self, published: Published) -> None:
        """Observes how long it took."""
        self._publish.observe(published.seconds)

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    """A server of our own: HTTPServer would ask the name service who we are."""

    allow_reuse_address = True
    daemon_threads = True


class _Handler(MetricsHandler):
    figures: Figures
    timeout = 10
    """Seconds after which a silent client is left."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif path == "/healthz":
            illness = self.figures.illness()
            self._answer(200 if illness is None else 503, illness or "ok")
        else:
            self._answer(404, "There is /metrics and /healthz.")

    def _answer(self, code: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Figured(Collector):
    """The figures as they are when somebody asks."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        told = self._figures.current()
        published = told["published"] or {}
        yield InfoMetricFamily(f"{PREFIX}build", "Version of this package.", {"version": told["version"]})
        for name, key, sentence in _COUNTERS:
            yield CounterMetricFamily(f"{PREFIX}{name}", sentence, told[key])
        letters = CounterMetricFamily(
            f"{PREFIX}dead_letters", "Rows that became dead letters, by reason.", labels=["reason"]
        )
        for reason, count in sorted(self._figures.new_letters().items()):
            letters.add_metric([reason], count)
        yield letters
        for name, key, sentence in _GAUGES:
            yield _gauge(name, sentence, told[key])
        for name, moment, sentence in (
            ("watermark_timestamp_seconds", told["watermark"], "The watermark."),
            ("last_commit_timestamp_seconds", told["committed_at"], "When a cycle was last committed."),
            ("last_publish_timestamp_seconds", published.get("published_at"), "When a result was last published."),
        ):
            yield _gauge(name, sentence, moment and datetime.fromisoformat(moment).timestamp())
        yield _gauge("published_commit_id", "Number of the last published commit.", published.get("commit_id"))
        for name, key, sentence in _OF_PARTITIONS:
            family = GaugeMetricFamily(f"{PREFIX}{name}", sentence, labels=["topic", "partition"])
            for partition in told["partitions"]:
                topic, _, number = partition["partition"].rpartition("/")
                if partition[key] is not None:
                    family.add_metric([topic, number] if topic else [number, ""], partition[key])
            yield family
        kpis = [row for row in (told["today"] or {"kpis": []})["kpis"] if row["channel"] is not None]
        for name, sentence in _OF_CHANNELS:
            family = GaugeMetricFamily(f"{PREFIX}{name}", sentence, labels=["channel"])
            for row in kpis:
                family.add_metric([row["channel"]], row[name])
            yield family


def _gauge(name: str, sentence: str, value: Any) -> GaugeMetricFamily:
    """A gauge; without a value while nothing is known."""
    family = GaugeMetricFamily(f"{PREFIX}{name}", sentence)
    if value is not None:
        family.add_metric([], value)
    return family
