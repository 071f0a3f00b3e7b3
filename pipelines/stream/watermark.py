"""The watermark: the moment up to which time is taken to have passed in a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from pipelines.stream.sources import Range
from transforms.stream_settings import StreamSettings

Clock = Callable[[], int]
"""Gives the time of day, microseconds since the epoch."""


def clock() -> int:
    """The system's time of day."""
    return time.time_ns() // 1_000


class Idleness:
    """Tells which partitions have had nothing new for idle_timeout, by the clock of this process."""

    def __init__(self, timeout: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Takes the timeout in microseconds."""
        self._timeout, self._monotonic = timeout / 1e6, monotonic
        self._since: dict[str, float] = {}

    def look(self, ranges: Mapping[str, Range]) -> frozenset[str]:
        """Takes notice of what there is to read; gives the idle partitions."""
        now = self._monotonic()
        for name, each in ranges.items():
            if each.stop > each.start or each.lag or name not in self._since:
                self._since[name] = now
        return frozenset(
            name
            for name, each in ranges.items()
            if each.stop == each.start and not each.lag and now - self._since[name] >= self._timeout
        )


def find_watermark(
    before: int | None,
    latest: Mapping[str, int | None],
    idle: Collection[str],
    settings: StreamSettings,
    now: int,
) -> int | None:
    """The least over the partitions of (latest event time - out_of_orderness), those apart that are idle.

    Where all are idle, time goes on by the clock: nothing older than idle_timeout can be on its way.

    Args:
      before: the watermark so far, microseconds; it never goes back. None before the first event.
      latest: latest occurred_at of each partition, microseconds; None before its first event.
      idle: partitions without anything new.
      settings: of the stream.
      now: the time of day, microseconds.
    """
    active = [moment for name, moment in latest.items() if name not in idle]
    found: int | None = None
    if active:
        moments = [moment for moment in active if moment is not None]
        # A partition of which nothing is known yet may have anything.
        found = min(moments) - settings.out_of_orderness if len(moments) == len(active) else None
    elif any(moment is not None for moment in latest.values()) or before is not None:
        found = now - max(settings.out_of_orderness, settings.idle_timeout)
    return max((moment for moment in (before, found) if moment is not None), default=None)
