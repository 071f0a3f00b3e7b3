"""How far a run is: what the pipeline calls, and how a terminal or a log shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display
from rich.text import Text


class Progress(Protocol):
    """What a run tells while it goes; every method is cheap and may be called from any thread."""

    def stage(self, name: str, total_rows: int | None = None) -> None:
        """A new stage begins, the one before it is done.

        Args:
          name: what it does, as a reader would say it ("Reading events").
          total_rows: rows it will go through, where that is known.
        """

    def advance(self, rows: int) -> None:
        """This many more rows went through the present stage."""


class SilentProgress:
    """Shows nothing."""

    def stage(self, name: str, total_rows: int | None = None) -> None:
        """Shows nothing."""

    def advance(self, rows: int) -> None:
        """Shows nothing."""


class LineProgress:
    """One line per stage once it is done, for logs: "Reading events: 1,211 rows, 0.2 s"."""

    def __init__(self, console: Console) -> None:
        """Writes to a console that is no terminal."""
        self._console = console
        self._lock = threading.Lock()
        self._name: str | None = None
        self._rows = 0
        self._started = 0.0

    def stage(self, name: str, total_rows: int | None = None) -> None:
        """Writes the line of the stage before, and starts the next."""
        with self._lock:
            self._write()
            self._name, self._rows, self._started = name, 0, time.monotonic()

    def advance(self, rows: int) -> None:
        """Counts rows."""
        with self._lock:
            self._rows += rows

    def close(self) -> None:
        """Writes the line of the last stage."""
        with self._lock:
            self._write()
            self._name = None

    def _write(self) -> None:
        if self._name is not None:
            rows = f"{self._rows:,} rows, " if self._rows else ""
            line = f"{self._name}: {rows}{time.monotonic() - self._started:.1f} s"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarProgress:
    """A live display with one row per stage, for terminals; it goes away when the run is done."""

    def __init__(self, console: Console) -> None:
        """Draws on a terminal from the first stage on, until `close`."""
        self._display = Display(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _RowsColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._lock = threading.Lock()
        self._task: TaskID | None = None

    def stage(self, name: str, total_rows: int | None = None) -> None:
        """Marks the stage before as done, and shows the next."""
        with self._lock:
            self._finish()
            self._display.start()
            self._task = self._display.add_task(name, total=total_rows)

    def advance(self, rows: int) -> None:
        """Moves the bar."""
        with self._lock:
            if self._task is not None:
                self._display.advance(self._task, rows)

    def close(self) -> None:
        """Takes the display away."""
        with self._lock:
            self._finish()
            self._display.stop()

    def _finish(self) -> None:
        if self._task is not None:
            # Without a total the bar of a stage that is done would go on moving.
            completed = next(task.completed for task in self._display.tasks if task.id == self._task)
            self._display.update(self._task, total=completed, completed=completed)
            self._task = None


class _RowsColumn(ProgressColumn):
    """Rows so far; nothing for a stage that counts none."""

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed):,} rows" if task.completed else "")


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """A progress display for as long as the block runs: live on a terminal, one line per stage elsewhere.

    Args:
      console: where to show it; standard error, so that standard output stays the results'.
    """
    progress = BarProgress(console) if console.is_terminal else LineProgress(console)
    try:
        yield progress
    finally:
        progress.close()
