"""How far a source has come in all its partitions, and what time it is by that: its one restriction, and its state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt

from transforms.stream_settings import StreamSettings

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartitionPosition:
    """How far one partition was read.

    Attributes:
      next_offset: the first offset not read.
      rows_read: rows before it.
      latest: latest occurred_at of its valid rows, microseconds; None before the first.
      seen_at: when it last brought something, seconds of processing time.
      identity: of the topic: another one of the same name has another.
    """

    next_offset: int
    rows_read: int = 0
    latest: int | None = None
    seen_at: float = 0.0
    identity: str = ""

    def late(self, at: Times, watermark: int, stream: StreamSettings) -> npt.NDArray[np.bool_]:
        """Which of some events of this partition, in the order of their offsets, are late.

        It is the partition's own time that decides: the latest event before each in it. So after a restart the same
        events are late, in whatever order partitions are read then. The watermark decides where the partition was idle.
        """
        before = np.maximum.accumulate(np.append(self.latest if self.latest is not None else -1, at))[:-1]
        own = before - stream.out_of_orderness
        late: npt.NDArray[np.bool_] = at < np.maximum(own, watermark) - stream.allowed_lateness
        return late

    def after(self, next_offset: int, rows: int, at: Times, now: float) -> PartitionPosition:
        """The position once some rows more were read."""
        found = [int(at.max())] if len(at) else []
        latest = max([*found, *([] if self.latest is None else [self.latest])], default=None)
        return replace(self, next_offset=next_offset, rows_read=self.rows_read + rows, latest=latest, seen_at=now)


@dataclass(frozen=True)
class Positions:
    """All partitions of a source.

    Attributes:
      partitions: by topic and partition, "care-events/3".
      watermark: events to come are taken not to be older, microseconds; it never goes back.
    """

    partitions: Mapping[str, PartitionPosition] = field(default_factory=dict)
    watermark: int = 0

    def at(self, now: float, stream: StreamSettings) -> Positions:
        """With the watermark that follows: the least of the partitions that are not idle.

        Args:
          now: processing time, seconds.
          stream: of the stream.
        """
        timed = {name: each for name, each in self.partitions.items() if each.latest is not None}
        busy = [p for p in self.partitions.values() if now - p.seen_at < stream.idle_timeout / 1e6]
        if not timed or any(each.latest is None for each in busy):
            return self
        chosen = busy or [max(timed.values(), key=lambda each: each.latest or 0)]
        least = min(each.latest or 0 for each in chosen) - stream.out_of_orderness
        return replace(self, watermark=max(self.watermark, least))

    def to_bytes(self) -> bytes:
        """For the state of the source."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @staticmethod
    def from_bytes(encoded: bytes) -> Positions:
        """What `to_bytes` wrote."""
        said = json.loads(encoded)
        partitions = {name: PartitionPosition(**each) for name, each in said.pop("partitions").items()}
        return Positions(partitions, **said)
