"""Files of open rows of a stream: one a cycle, put together as they pile up, without the keys that have ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from pipelines.keeping import MANY_FILES, SMALL_ROWS
from pipelines.stream.store import LiveStore
from sinks.manifest import sync
from transforms.hashing import Hashes
from transforms.open_rows import count_rows, key_hashes_in_order, merge_rows

_MUCH_OF_A_FILE = 0.3
"""A large file is written anew where so much of it belongs to keys that have ended."""

_SECONDS_BETWEEN_SWEEPS = 60.0

_AT_ONCE_ROWS = 50_000
"""So many rows are put together while the cycle waits; more are beside the cycles that follow."""


class RowFiles:
    """The files of open rows of a live store; a context manager. What it says becomes true with the next commit."""

    def __init__(self, store: LiveStore, allowed_lateness: int) -> None:
        """Takes the store, and how late an event may be, microseconds."""
        self._store, self._lateness = store, allowed_lateness
        self._swept = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="open-rows")
        self._merging: tuple[list[str], Future[dict[str, int]]] | None = None

    def __enter__(self) -> RowFiles:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is under way."""
        self._pool.shutdown()

    def take(self, folder: Path, cycle: int) -> dict[str, int]:
        """Takes the new files of a cycle.

        Args:
          folder: where they are.
          cycle: number of the cycle.

        Returns:
          The files that there are from then on, with their rows; every one is complete and on disk.
        """
        state = self._store.state
        assert state is not None
        files = dict(state.row_files)
        for path in sorted(folder.glob("*.arrow")) if folder.is_dir() else ():
            name = path.name
            sync(path)
            target = self._store.row_path(name)
            path.rename(target)
            files[name] = count_rows(target)
        if self._merging is not None and self._merging[1].done():
            gone, merging = self._merging
            self._merging = None
            files = {name: rows for name, rows in files.items() if name not in gone} | merging.result()
        files = self._put_together(files)
        if self._merging is None and time.monotonic() - self._swept >= _SECONDS_BETWEEN_SWEEPS:
            self._swept = time.monotonic()
            self._sweep(files)
        return files

    def _put_together(self, files: dict[str, int]) -> dict[str, int]:
        """Merges files of about the same size, so that their number grows with the logarithm of what came."""
        busy = set(self._merging[0]) if self._merging is not None else set()
        for size in range(SMALL_ROWS.bit_length() // 3 + 1):
            alike = [
                name
                for name, rows in files.items()
                if rows < SMALL_ROWS and rows.bit_length() // 3 <= size and name not in busy
            ]
            if len(alike) < MANY_FILES:
                continue
            if sum(files[name] for name in alike) <= _AT_ONCE_ROWS:
                merged = self._merge(alike, self._ended())
                files = {name: rows for name, rows in files.items() if name not in alike} | merged
            elif self._merging is None:
                self._merging = alike, self._pool.submit(self._merge, alike, self._ended())
                busy = set(alike)
        return files

    def _sweep(self, files: Mapping[str, int]) -> None:
        """Begins to write a large file anew where much of it has ended; forgets keys of which no row is left."""
        ended = self._ended()
        if not len(ended):
            return
        left = np.zeros(len(ended), bool)
        for name, count in files.items():
            hashes = key_hashes_in_order(self._store.row_path(name))
            first, after = (np.searchsorted(hashes, ended, side) for side in ("left", "right"))
            left |= after > first
            if self._merging is None and count >= SMALL_ROWS and (after - first).sum() >= _MUCH_OF_A_FILE * count:
                self._merging = [name], self._pool.submit(self._merge, [name], ended)
        self._store.forget_keys(ended[~left], self._moment())

    def _moment(self) -> int:
        state = self._store.state
        return -1 if state is None or state.watermark is None else state.watermark - self._lateness

    def _ended(self) -> Hashes:
        """Hashes of the keys that no event in time can join.

        Their rows may go, all of them or some, now or later: what they came to is final, so that whatever is left of
        them counts the same before a cycle and after it.
        """
        return self._store.ended_keys(self._moment())

    def _merge(self, names: Sequence[str], ended: Hashes) -> dict[str, int]:
        name = f"{uuid.uuid4().hex}.arrow"
        paths = [self._store.row_path(each) for each in names]
        rows = merge_rows(paths, self._store.row_path(name), without=ended)
        if not rows:
            self._store.row_path(name).unlink()
            return {}
        sync(self._store.row_path(name))
        return {name: rows}
