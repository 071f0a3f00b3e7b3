"""Files of open rows of a stream: one a cycle, put together as they pile up, without the keys that have ended."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pipelines.keeping import MANY_FILES, SMALL_ROWS
from pipelines.stream.store import LiveStore, sync_file
from transforms.open_rows import count_rows, merge_rows

_AT_ONCE_ROWS = 50_000
"""So many rows are put together while the cycle waits; more are beside the cycles that follow."""


class RowFiles:
    """The files of open rows of a live store; a context manager. What it says becomes true with the next commit."""

    def __init__(self, store: LiveStore) -> None:
        """Takes the store."""
        self._store = store
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
            sync_file(path)
            target = self._store.row_path(name)
            path.rename(target)
            files[name] = count_rows(target)
        if self._merging is not None and self._merging[1].done():
            gone, merging = self._merging
            self._merging = None
            files = {name: rows for name, rows in files.items() if name not in gone} | merging.result()
        return self._put_together(files)

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
                merged = self._merge(alike, files)
                files = {name: rows for name, rows in files.items() if name not in alike} | merged
            elif self._merging is None:
                self._merging = alike, self._pool.submit(self._merge, alike, dict(files))
                busy = set(alike)
        return files

    def _merge(self, names: Sequence[str], files: dict[str, int]) -> dict[str, int]:
        name = f"{uuid.uuid4().hex}.arrow"
        paths = [self._store.row_path(each) for each in names]
        rows = merge_rows(paths, self._store.row_path(name))
        sync_file(self._store.row_path(name))
        return {name: rows}
