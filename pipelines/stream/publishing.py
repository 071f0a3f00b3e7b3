"""Publishing what a stream has committed, beside the cycles that go on: in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import duckdb

from pipelines.memory import give_freed_memory_back
from pipelines.stream.publisher_process import ProcessEnded, PublisherProcess
from pipelines.stream.restating import KEYS_FILE, Request
from pipelines.stream.store import LiveStore
from sinks.filling import said_clearly
from sinks.sql import sql_text
from transforms.errors import UserError
from transforms.settings import Settings

ATTEMPTS = 3
"""So many processes may end amid a publish."""


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
      cycle: the last cycle that is in it.
      commit_id: its number.
      seconds: how long it took.
    """

    cycle: int
    commit_id: int
    seconds: float


class Publisher:
    """Publishes one result at a time; a context manager."""

    def __init__(self, output: Path, settings: Settings, lock: int, tell: Callable[[str], None]) -> None:
        """Takes the output folder, the descriptor of its lock, and who is told what goes wrong and is tried again."""
        self._output, self._settings, self._tell = output, settings, tell
        self._process = PublisherProcess(lock)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._running: Future[Published] | None = None
        self._request: Request | None = None
        self._ended = 0

    def __enter__(self) -> Publisher:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is under way; where the stream is to end at once, not even for that."""
        if isinstance(error, KeyboardInterrupt):
            self._process.kill()
        self._thread.shutdown()
        self._process.close()

    @property
    def is_running(self) -> bool:
        """Whether a result is in the making."""
        return self._running is not None

    def begin(self, store: LiveStore) -> None:
        """Begins to publish what is committed at this moment."""
        assert self._running is None and store.state is not None
        live = store.cursor()
        live.begin()
        # From the first query on it sees the store as it is now.
        live.execute("SELECT said FROM state").fetchall()
        self._request = Request(
            self._output,
            self._settings,
            replace(store.state, pending=()),
            store.pending_paths(),
            store.row_paths(),
            store.folder / KEYS_FILE,
        )
        self._ended = 0
        self._running = self._thread.submit(self._save_and_publish, live, self._request)

    def finish(self, store: LiveStore, wait: bool = False) -> Published | None:
        """Tells the store what has been published; None where nothing is ready.

        Raises:
          UserError: the disk is full; nothing has changed for readers, and the store keeps what is pending.
        """
        while self._running is not None and (wait or self._running.done()):
            running, self._running = self._running, None
            try:
                published = running.result()
            except ProcessEnded as error:
                self._try_again(error)
                continue
            store.forget_pending(published.cycle)
            store.checkpoint()
            give_freed_memory_back()
            return published
        return None

    def _try_again(self, error: ProcessEnded) -> None:
        self._ended += 1
        if self._ended == ATTEMPTS:
            raise UserError(
                f"Expected the process that publishes to go on, but {error}, {ATTEMPTS} times: what was committed "
                "stays; look for what ends it (too little memory?) and start the stream again."
            ) from error
        self._tell(f"The process that publishes did not: {error}; another one does")
        assert self._request is not None
        self._running = self._thread.submit(self._publish, self._request)

    def _save_and_publish(self, live: duckdb.DuckDBPyConnection, request: Request) -> Published:
        started = time.monotonic()
        with live:
            _save_keys(live, request.keys)
        return self._publish(request, started)

    def _publish(self, request: Request, started: float | None = None) -> Published:
        started = time.monotonic() if started is None else started
        commit_id = self._process.publish(request)
        request.keys.unlink(missing_ok=True)
        return Published(request.state.cycle, commit_id, time.monotonic() - started)


def _save_keys(live: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Saves when each key wakes (null: never) and ends; however many there are, they are not in memory together."""
    # A file of this name may be one of a result, by a hard link.
    path.unlink(missing_ok=True)
    with said_clearly(path):
        live.execute(f"COPY keys TO {sql_text(str(path))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 100_000)")
