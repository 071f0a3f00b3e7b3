"""All that watch a stream from within: its figures, their file, the log, and where it is wanted the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.stream.figures import Figures
from pipelines.stream.logs import Log
from pipelines.stream.status import StatusFile
from pipelines.stream.watcher import Watcher
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.stream.live_tables import CycleResult
    from pipelines.stream.publishing import Published
    from pipelines.stream.sources import Taking
from pipelines.stream.store import LiveStore


@contextmanager
def watchers(
    output: Path,
    timezone: str,
    source: str,
    log_form: Literal["text", "json"] = "text",
    is_verbose: bool = False,
    metrics_port: int | None = None,
) -> Iterator[Watcher]:
    """Whoever is to be told what a stream does.

    Args:
      output: its output folder.
      timezone: IANA zone in which days are cut.
      source: what it reads, for the log: no secrets.
      log_form: of the lines of the log.
      is_verbose: a line for each cycle too.
      metrics_port: where metrics are served; None: nowhere.

    Raises:
      UserError: the port is taken, or a package is missing.
    """
    figures = Figures(timezone)
    all_: list[Watcher] = [figures, StatusFile(output, figures), Log(figures, source, log_form, is_verbose)]
    with ExitStack() as stack:
        if metrics_port is not None:
            if find_spec("prometheus_client") is None:
                raise UserError(
                    "Expected the package prometheus_client for --metrics-port, but it is not installed: "
                    "pip install 'care-kpis[stream]'."
                )
            from pipelines.stream.metrics import MetricsServer

            server = MetricsServer(figures, metrics_port)
            stack.callback(server.close)
            all_.append(server)
        yield Watchers(all_)


class Watchers(Watcher):
    """Tells several, in their order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        """Takes them."""
        self._watchers = watchers

    def began(self, store: LiveStore) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.began(store)

    def said(self, sentence: str) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.said(sentence)

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.committed(result, taking, store)

    def looked(self, taking: Taking, store: LiveStore) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.looked(taking, store)

    def published(self, published: Published) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.published(published)

    def ended(self, error: BaseException | None) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.ended(error)
