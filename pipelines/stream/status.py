"""The status of a stream as a file beside its live store, for whoever watches it, and whether the stream is running."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from pipelines.stream.figures import Figures
from pipelines.stream.today import today
from pipelines.stream.watcher import Watcher

if TYPE_CHECKING:
    from pipelines.stream.store import LiveStore

STATUS = Path(".live", "status.json")
"""In an output folder."""

FORMAT = 1
"""Of the file; one of another format is not read."""

SECONDS_BETWEEN_WRITES = 0.5
SECONDS_BETWEEN_READS = 2.0
"""So often today's KPIs are read, where anything is new."""

_SECONDS_OF_REST = 1.0
"""While nothing is new it is written so often: a sign of life."""

_SECONDS_OF_SILENCE = 5.0
"""A process of another machine that has given no sign of life for so long is taken to be gone."""


class StatusFile(Watcher):
    """Keeps the file, in a thread of its own."""

    def __init__(self, output: Path, figures: Figures) -> None:
        """Takes the output folder, and the figures that it writes."""
        self._path, self._figures = output / STATUS, figures
        self._stop = threading.Event()
        self._process = process_identity(os.getpid())
        self._thread: threading.Thread | None = None
        self._read_cycle = -1

    def began(self, store: LiveStore) -> None:
        """Writes the first one, and begins."""
        live = store.cursor()
        live.execute("SET TimeZone = 'UTC'")
        self._read(store, live)
        self._write()
        self._thread = threading.Thread(target=self._keep, args=(store, live), name="status", daemon=True)
        self._thread.start()

    def ended(self, error: BaseException | None) -> None:
        """Writes the last one."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self, store: LiveStore, live: duckdb.DuckDBPyConnection) -> None:
        read = written = time.monotonic()
        seen: Any = None
        with live:
            while not self._stop.wait(SECONDS_BETWEEN_WRITES):
                now = time.monotonic()
                if now - read >= SECONDS_BETWEEN_READS:
                    self._read(store, live)
                    read = now
                if self._figures.cycle != seen or now - written >= _SECONDS_OF_REST:
                    seen, written = self._figures.cycle, now
                    self._write()
            self._read(store, live)
        self._write()

    def _read(self, store: LiveStore, live: duckdb.DuckDBPyConnection) -> None:
        cycle, watermark = self._figures.cycle, self._figures.watermark
        if cycle == self._read_cycle:
            return
        # It is only looked at: whatever is wrong with the store, the stream will find it.
        with contextlib.suppress(duckdb.Error):
            keys = live.execute("SELECT count(*) FROM keys").fetchall()[0][0]
            found = None
            if watermark is not None:
                found = today(live, store.recent.all_rows(live), self._figures.timezone, watermark)
            self._figures.take({"key_count": keys, "today": found})
            self._read_cycle = cycle

    def _write(self) -> None:
        said = {"format": FORMAT, **self._figures.current(), "process": self._process}
        unfinished = self._path.with_suffix(".json.tmp")
        # A full disk ends the stream at its next commit, in a sentence.
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
            unfinished.replace(self._path)


def read_status(output: Path) -> dict[str, Any] | None:
    """What the last stream into an output folder said of itself last; None where there was none of this version."""
    try:
        said = json.loads((output / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("format") == FORMAT else None


def is_running(status: dict[str, Any], seconds_ago: float) -> bool:
    """Whether the stream that a status is of is running.

    Args:
      status: what it said.
      seconds_ago: when it said so.
    """
    if status["ended_at"] is not None:
        return False
    there, here = status["process"], process_identity(status["process_id"])
    if there is None or here is None or there[0] != here[0]:
        return seconds_ago < _SECONDS_OF_SILENCE
    return bool(there == list(here))


def process_identity(process: int) -> tuple[str, str] | None:
    """Where a process runs (start of the system, space of process ids), and when it was started, in ticks.

    A process id alone may belong to another one by now. None where the system does not tell.
    """
    proc = Path("/proc")
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        place = f"{boot} {os.readlink(proc / 'self/ns/pid')}"
    except OSError:
        return None
    try:
        # (The name of the program may hold spaces and parentheses.)
        told = (proc / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        started = "" if told[0] == "Z" else told[19]
    except OSError:
        started = ""
    return place, started
