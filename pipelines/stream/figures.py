"""The figures of a running stream: what people and machines watch."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from pipelines.options import package_version
from pipelines.stream.watcher import Watcher
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.stream.live_tables import CycleResult
    from pipelines.stream.publishing import Published
    from pipelines.stream.sources import Range, Taking
    from pipelines.stream.state import StreamState
from pipelines.stream.store import LiveStore

SECONDS_OF_RATE = 60.0
"""rows_per_second is of so long."""

SECONDS_OF_CYCLES = 300.0
"""The percentiles of cycle_seconds are of so long."""

SENTENCES = 5
"""So many of the last sentences are kept."""

SECONDS_WITHOUT_LOOK = 30.0
"""A stream that has not looked for anything new for so long is not well."""

_COUNTED = {
    "rows_read": "rows_read_count",
    "events_kept": "events_kept_count",
    "exact_duplicates": "exact_duplicate_count",
    "late_events": "late_event_count",
    "stray_events": "stray_event_count",
}
"""What a cycle counts, and the column of `runs` that holds it."""


class Figures(Watcher):
    """Adds up what a stream tells; may be asked from any thread.

    Attributes:
      cycle_seconds: of the last cycle.
      cycle_rows: rows that it read.
      timezone: IANA zone in which days are cut.
    """

    def __init__(
        self,
        timezone: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the IANA zone in which days are cut, and the clocks."""
        self._clock, self._monotonic = clock, monotonic
        self.timezone = timezone
        self._lock = threading.Lock()
        self._started = self._clock()
        self._began = self._looked = self._monotonic()
        self._is_ready = False
        self._state: StreamState | None = None
        self._ranges: Mapping[str, Range] = {}
        self._counts: Counter[str] = Counter()
        self._letters: Counter[str] = Counter()
        self._new_letters: Counter[str] = Counter()
        self._rows: deque[tuple[float, int]] = deque()
        self._cycles: deque[tuple[float, float]] = deque()
        self._committed: float | None = None
        self._published: dict[str, Any] | None = None
        self._published_cycle = 0
        self._said: deque[tuple[float, str]] = deque(maxlen=SENTENCES)
        self._ended: dict[str, Any] = {"ended_at": None, "ended_by": None}
        self._from_store: dict[str, Any] = {"key_count": None, "today": None}
        self.cycle_seconds, self.cycle_rows = 0.0, 0

    @property
    def cycle(self) -> int:
        """Number of the last cycle that was committed."""
        return 0 if self._state is None else self._state.cycle

    @property
    def watermark(self) -> int | None:
        """Microseconds; None before the first event."""
        return None if self._state is None else self._state.watermark

    @property
    def lag(self) -> int | None:
        """What is left of all partitions; None before the first look."""
        return sum(each.lag for each in self._ranges.values()) if self._ranges else None

    def began(self, store: LiveStore) -> None:
        """Takes what there is."""
        pending = 0 if store.state is None else len(store.state.pending)
        with self._lock:
            self._state, self._is_ready = store.state, True
            self._published_cycle = self.cycle - pending
            self._began = self._looked = self._monotonic()

    def said(self, sentence: str) -> None:
        """Keeps the last few."""
        with self._lock:
            self._said.append((self._clock(), sentence))

    def looked(self, taking: Taking, store: LiveStore) -> None:
        """Keeps what is left to take."""
        self._ranges, self._looked = taking.ranges, self._monotonic()

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """Counts what the cycle did."""
        told = json.loads(result.counts)
        gone, came = (_by_reason(rows) for rows in result.letters)
        now = self._monotonic()
        with self._lock:
            self._state, self._ranges, self._committed = result.state, taking.ranges, self._clock()
            self._looked = now
            self.cycle_seconds, self.cycle_rows = told["seconds"], told["rows"].get("rows_read", 0)
            self._counts.update({name: told["rows"].get(name, 0) for name in _COUNTED})
            self._letters.update(came)
            self._letters.subtract(gone)
            self._new_letters.update(came)
            _add(self._rows, (now, self.cycle_rows), now - SECONDS_OF_RATE)
            _add(self._cycles, (now, self.cycle_seconds), now - SECONDS_OF_CYCLES)

    def published(self, published: Published) -> None:
        """Keeps the last one."""
        with self._lock:
            self._published_cycle = published.cycle
            self._published = {
                "commit_id": published.commit_id,
                "published_at": iso(self._clock()),
                "publish_seconds": round(published.seconds, 3),
                "cycle": published.cycle,
            }

    def ended(self, error: BaseException | None) -> None:
        """Keeps when and why."""
        with self._lock:
            self._ended = {"ended_at": iso(self._clock()), "ended_by": None if error is None else reason_of(error)}

    def take(self, from_store: Mapping[str, Any]) -> None:
        """Takes key_count and today, which somebody has read from the store."""
        with self._lock:
            self._from_store = dict(from_store)

    def new_letters(self) -> dict[str, int]:
        """Dead letters that came since the start, by reason; those apart that went again."""
        with self._lock:
            return dict(self._new_letters)

    def illness(self) -> str | None:
        """Why the stream is not well, as a sentence; None where it is."""
        seconds = self._monotonic() - self._looked
        if not self._is_ready:
            return "The stream is starting."
        if self._ended["ended_at"] is not None:
            return "The stream has ended."
        if seconds < SECONDS_WITHOUT_LOOK:
            return None
        with self._lock:
            recent = [text for at, text in self._said if self._clock() - at <= seconds]
        return f"The stream has not looked for anything new for {seconds:.0f} s" + (
            f": {recent[-1]}" if recent else "."
        )

    def current(self) -> dict[str, Any]:
        """All of them, as JSON values; counts are since the start."""
        with self._lock:
            now, clock = self._monotonic(), self._clock()
            rows = sum(count for at, count in self._rows if at > now - SECONDS_OF_RATE)
            cycles = sorted(seconds for at, seconds in self._cycles if at > now - SECONDS_OF_CYCLES)
            watermark = self.watermark
            return {
                "version": package_version(),
                "process_id": os.getpid(),
                "started_at": iso(self._started),
                "updated_at": iso(clock),
                **self._ended,
                "cycle": self.cycle,
                "committed_at": iso(self._committed),
                "looked_seconds_ago": round(now - self._looked, 3),
                "rows_per_second": round(rows / min(SECONDS_OF_RATE, max(now - self._began, 1.0)), 1),
                "cycle_seconds": {
                    "last": round(self.cycle_seconds, 3) if cycles else None,
                    "p50": _rank(cycles, 0.5),
                    "p99": _rank(cycles, 0.99),
                },
                **{column: self._counts[name] for name, column in _COUNTED.items()},
                "dead_letter_count": sum(self._letters.values()),
                "dead_letters_by_reason": {reason: n for reason, n in sorted(self._letters.items()) if n},
                "watermark": iso(None if watermark is None else watermark / 1e6),
                "watermark_delay_seconds": None if watermark is None else round(clock - watermark / 1e6, 3),
                "timezone": self.timezone,
                "lag": self.lag,
                "partitions": self._partitions(),
                "open_row_count": 0 if self._state is None else sum(self._state.row_files.values()),
                "pending_cycle_count": self.cycle - self._published_cycle,
                "published": self._published,
                "said": [{"at": iso(at), "sentence": text} for at, text in self._said],
                **self._from_store,
            }

    def _partitions(self) -> list[dict[str, Any]]:
        known = {} if self._state is None else self._state.partitions
        found = []
        for name in sorted({*known, *self._ranges}, key=_numbered):
            partition, taking = known.get(name), self._ranges.get(name)
            latest = None if partition is None or partition.latest is None else partition.latest / 1e6
            found.append(
                {
                    "partition": name,
                    "next_offset": partition.next if partition is not None else taking and taking.start,
                    "lag": None if taking is None else taking.lag,
                    "latest_at": iso(latest),
                }
            )
        return found


def iso(seconds: float | None) -> str | None:
    """A moment, given in seconds since the epoch, as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def reason_of(error: BaseException) -> str:
    """What ended a stream, on one line."""
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def _by_reason(letters: Any) -> dict[str, int]:
    counted = pc.value_counts(letters["reason"].combine_chunks()) if letters.num_rows else ()
    return {pair["values"].as_py(): pair["counts"].as_py() for pair in counted}


def _add(kept: deque[Any], entry: tuple[float, Any], since: float) -> None:
    kept.append(entry)
    while kept[0][0] <= since:
        kept.popleft()


def _rank(ordered: list[float], share: float) -> float | None:
    """Percentile by nearest rank."""
    return round(ordered[max(0, -int(-len(ordered) * share // 1) - 1)], 3) if ordered else None


def _numbered(name: str) -> tuple[str, int]:
    topic, _, number = name.rpartition("/")
    return (topic, int(number)) if number.isdigit() else (name, 0)
