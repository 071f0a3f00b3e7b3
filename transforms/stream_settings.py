"""The settings of a stream, as the kernels see them: whole microseconds."""

from __future__ import annotations

from dataclasses import dataclass

from transforms.settings import DAY, HOUR

SECOND = 1_000_000


@dataclass(frozen=True)
class StreamSettings:
    """How a stream tells what time it is, and what comes too late; durations in microseconds.

    Attributes:
      allowed_lateness: an event older than the watermark by more is late; state is kept for as long after its end.
      out_of_orderness: the watermark of a partition lies so far behind its latest event.
      idle_timeout: a partition without events for so long does not hold the watermark up any more.
      max_future: an event further ahead of the clock is a dead letter.
    """

    allowed_lateness: int = 7 * DAY
    out_of_orderness: int = 10 * SECOND
    idle_timeout: int = 60 * SECOND
    max_future: int = HOUR
