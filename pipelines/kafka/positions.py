"""Where a consumer is in a partition, and the messages that it has from there on."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import Message

from pipelines.kafka.client import Place
from transforms.raw_rows import Rows


@dataclass
class Position:
    """Where a consumer is in a partition.

    Attributes:
      given: offset after the last one that was given out.
      next: no message below this one is to come from the consumer.
      ahead: messages that came and are not given out yet: offsets, values, and bytes of these.
    """

    given: int
    next: int
    ahead: deque[tuple[Rows, list[bytes | None], int]] = field(default_factory=deque)

    def goes_on_at(self, start: int) -> bool:
        """Whether the next message given out would be the first one from an offset on."""
        return self.given <= start <= (int(self.ahead[0][0][0]) if self.ahead else self.next)

    def put(self, offsets: Rows, values: list[bytes | None]) -> int:
        """Takes in what came; how many bytes of it are new."""
        known = int(np.searchsorted(offsets, self.next))
        if known < len(offsets):
            size = sum(map(len, filter(None, values)))
            self.ahead.append((offsets[known:], values[known:], size))
            self.next = int(offsets[-1]) + 1
            return size
        return 0

    def take(self, stop: int) -> tuple[list[Rows], list[bytes | None]]:
        """Gives out what came of offsets below one."""
        offsets: list[Rows] = []
        values: list[bytes | None] = []
        while self.ahead and self.ahead[0][0][0] < stop:
            found, texts, size = self.ahead.popleft()
            count = int(np.searchsorted(found, stop))
            if count < len(found):
                self.ahead.appendleft((found[count:], texts[count:], size * (len(found) - count) // len(found)))
            offsets.append(found[:count])
            values += texts[:count]
            self.given = int(found[count - 1]) + 1
        return offsets, values


def runs_of(messages: Sequence[Message], has_topics: bool) -> Iterator[tuple[Place, Rows, list[bytes | None]]]:
    """Messages of one partition that came together."""
    if not messages:
        return
    offsets = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
    partitions = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
    values = list(map(Message.value, messages))
    changes = partitions[1:] != partitions[:-1]
    if has_topics:
        names = np.array(list(map(Message.topic, messages)))
        changes |= names[1:] != names[:-1]
    starts = [0, *(np.flatnonzero(changes) + 1).tolist()]
    for start, stop in itertools.pairwise([*starts, len(messages)]):
        yield (messages[start].topic(), int(partitions[start])), offsets[start:stop], values[start:stop]
