"""Reads ranges of offsets, exactly, and fast: consumers stay where they are from one call to the next.

A consumer fetches ahead. What it has of later offsets when a range ends is kept for the next call, so that a stream
that goes on where it stopped waits for nothing; whoever goes somewhere else is put there.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from pipelines.kafka.client import Client, Failures, Offsets, Place
from pipelines.kafka.faults import LostOffsets, as_exception, is_gone
from pipelines.kafka.positions import Position, runs_of
from pipelines.kafka.settings import KafkaOptions, made
from transforms.errors import UserError
from transforms.raw_rows import Rows

Ranges = Mapping[Place, tuple[int, int]]
"""First offset, and the one after the last, of partitions."""

CHUNK_MESSAGES = 50_000
CHUNK_BYTES = 16 << 20
SECONDS_WITHOUT_MESSAGE = 30.0

_STEP = 0.05
_SECONDS_WHEN_DOWN = 10.0
_FIRST_BATCH = 500
_BATCH_BYTES = 4 << 20
_BATCH_MESSAGES = 10_000
_AHEAD_BYTES = 32 << 20

_LOST = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)

_DEFAULTS = {
    "group.id": "care-kpis",
    "isolation.level": "read_committed",
    # A full queue is looked at again soon, not after a second.
    "fetch.queue.backoff.ms": 5,
    "queued.min.messages": 1_000_000,
    "queued.max.messages.kbytes": 65_536,
    # So long a request is out that does not know yet of a partition that has just been added.
    "fetch.wait.max.ms": 50,
    "fetch.error.backoff.ms": 100,
}
_FIXED = {
    "auto.offset.reset": "error",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
}


class Chunk(NamedTuple):
    """Messages of one partition, in order.

    Attributes:
      topic: name of the topic.
      partition: number of the partition.
      offsets: int64, offset of each message.
      values: value of each message; None where it has none.
    """

    topic: str
    partition: int
    offsets: Rows
    values: list[bytes | None]


def read_ranges(
    options: KafkaOptions,
    ranges: Ranges,
    chunk_messages: int = CHUNK_MESSAGES,
    chunk_bytes: int = CHUNK_BYTES,
    seconds: float = SECONDS_WITHOUT_MESSAGE,
) -> Iterator[Chunk]:
    """Reads every message whose offset lies in a range, once.

    Offsets that have no message (deleted by compaction, marks of transactions) are passed over. Ends when all ranges
    are read; where the caller ends earlier, the next call starts its consumers anew.

    Args:
      options: the Kafka.
      ranges: first offset, and the one after the last, of each partition; see `Client.offsets`.
      chunk_messages: so many messages are gathered before they are given out, of all partitions together.
      chunk_bytes: so many bytes of values, likewise.
      seconds: after so long without a message Kafka is said to be away.

    Raises:
      LostOffsets: a range begins outside of what the partition has.
      BrokerAway: Kafka does not answer.
      UserError: Kafka does not let us in.
    """
    wanted = {place: (start, stop) for place, (start, stop) in ranges.items() if start < stop}
    if not wanted:
        return
    reader = _take(options, wanted)
    try:
        yield from reader.read(wanted, chunk_messages, chunk_bytes, seconds)
    except BaseException:
        # Nobody knows what of it was used.
        reader.forget()
        raise
    finally:
        _give_back(options, reader)


class _Reader:
    """A consumer and where it is."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._failures = Failures()
        configuration = {**options.configuration(_DEFAULTS), **_FIXED, "error_cb": self._failures}
        self._consumer: Consumer = made(options, lambda: Consumer(configuration))
        self._positions: dict[Place, Position] = {}
        self._paused: set[Place] = set()
        self._average = float(_BATCH_BYTES // _FIRST_BATCH)

    def fits(self, wanted: Ranges) -> int:
        """In how many partitions it goes on where it is."""
        at = self._positions
        return sum(place in at and at[place].goes_on_at(start) for place, (start, _) in wanted.items())

    def forget(self) -> None:
        """Leaves all partitions."""
        self._positions = {}
        self._consumer.unassign()

    def close(self) -> None:
        """Ends the consumer."""
        self._consumer.close()

    def read(self, wanted: Ranges, chunk_messages: int, chunk_bytes: int, seconds: float) -> Iterator[Chunk]:
        """See `read_ranges`."""
        self._failures.clear()
        self._go_to({place: start for place, (start, _) in wanted.items()})
        due = self._due(wanted)
        while True:
            count, size, last = 0, 0, time.monotonic()
            while due and count < chunk_messages and size < chunk_bytes:
                received, more = self._receive(due, wanted)
                count, size = count + received, size + more
                if received:
                    last = time.monotonic()
                    due = self._due(due)
                else:
                    self._check(due, time.monotonic() - last, seconds)
            for place, (_, stop) in wanted.items():
                offsets, values = self._positions[place].take(stop)
                if values:
                    yield Chunk(*place, np.concatenate(offsets), values)
            if not due:
                break
        for place, (_, stop) in wanted.items():
            self._positions[place].given = stop

    def _due(self, wanted: Ranges) -> Ranges:
        """What the consumer has not given yet."""
        return {place: (start, stop) for place, (start, stop) in wanted.items() if self._positions[place].next < stop}

    def _go_to(self, starts: Mapping[Place, int]) -> None:
        """Goes to these offsets, where it is not there."""
        at = self._positions
        new = {place: start for place, start in starts.items() if place not in at or not at[place].goes_on_at(start)}
        left = [TopicPartition(*place) for place in new if place in at]
        if left:
            self._consumer.incremental_unassign(left)
        if new:
            self._consumer.incremental_assign([TopicPartition(*place, start) for place, start in new.items()])
            at.update({place: Position(start, start) for place, start in new.items()})
        resumed = self._paused & starts.keys()
        if resumed:
            self._consumer.resume([TopicPartition(*place) for place in resumed])
            self._paused -= resumed

    def _receive(self, due: Ranges, wanted: Ranges) -> tuple[int, int]:
        """Takes some messages from the consumer: how many, and of how many bytes."""
        left = sum(stop - self._positions[place].next for place, (_, stop) in due.items())
        fitting = int(_BATCH_BYTES / self._average)
        messages = self._consumer.consume(max(1, min(left, fitting, _BATCH_MESSAGES)), _STEP)
        if self._failures.users is not None:
            raise as_exception(self._failures.users, self._options)
        # Most often none has an error: then nothing else is done for each.
        failed = [message for message in messages if message.error() is not None]
        if failed:
            messages = [message for message in messages if message.error() is None]
        size = 0
        for place, offsets, values in runs_of(messages, len({topic for topic, _ in self._positions}) > 1):
            position = self._positions.get(place)
            if position is not None:
                size += position.put(offsets, values)
                if place not in due:
                    self._hold_back(place, position)
        if messages:
            self._failures.clear()
            self._average = max(1.0, size / len(messages))
        # An end comes after the messages before it, which may have come with it.
        ends = sum(self._note(message, wanted) for message in failed)
        return len(messages) + ends, size

    def _hold_back(self, place: Place, position: Position) -> None:
        """Pauses a partition that is not asked for and comes all the same."""
        ahead = sum(size for _, _, size in position.ahead)
        if place not in self._paused and ahead > _AHEAD_BYTES // len(self._positions):
            self._consumer.pause([TopicPartition(*place)])
            self._paused.add(place)

    def _note(self, message: Message, wanted: Ranges) -> bool:
        """Takes in what is no message; whether it is the end of a partition."""
        error: KafkaError = message.error()
        place = message.topic(), message.partition()
        position = self._positions.get(place)
        if position is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:
            position.next = max(position.next, message.offset())
            return True
        if error.code() in _LOST or is_gone(error):
            if place in wanted:
                raise self._lost(place)
            # Whoever asks for it is told.
            del self._positions[place]
            self._consumer.incremental_unassign([TopicPartition(*place)])
        elif not error.retriable():
            raise as_exception(error, self._options)
        else:
            self._failures(error)
        return False

    def _there(self, place: Place) -> Offsets | None:
        """What there is of a partition; None where there is no such partition."""
        try:
            return Client(replace(self._options, topics=(place[0],))).offsets().get(place)
        except UserError:
            return None

    def _lost(self, place: Place) -> LostOffsets:
        found = self._there(place)
        low, high = (None, None) if found is None else (found.low, found.high)
        return LostOffsets(*place, self._positions[place].next, low, high)

    def _check(self, due: Ranges, silent: float, seconds: float) -> None:
        """Raises what is wrong where no message comes."""
        last = self._failures.last
        if last is not None and is_gone(last):
            # It does not say which.
            self._failures.clear()
            for place in due:
                if self._there(place) is None:
                    raise self._lost(place)
        elif silent > (seconds if last is None else min(seconds, _SECONDS_WHEN_DOWN)):
            raise as_exception(last or TimeoutError(), self._options)


_IDLE: dict[tuple[int, KafkaOptions], list[_Reader]] = {}
_LOCK = threading.Lock()


def _take(options: KafkaOptions, wanted: Ranges) -> _Reader:
    """A reader that nobody uses, best one that is where it is wanted; those of a parent process are left alone."""
    with _LOCK:
        idle = _IDLE.get((os.getpid(), options), [])
        if idle:
            best = max(range(len(idle)), key=lambda place: idle[place].fits(wanted))
            return idle.pop(best)
    return _Reader(options)


def _give_back(options: KafkaOptions, reader: _Reader) -> None:
    with _LOCK:
        _IDLE.setdefault((os.getpid(), options), []).append(reader)


@atexit.register
def close_consumers() -> None:
    """Ends the consumers that are kept; the next call makes new ones."""
    with _LOCK:
        for (process, _), readers in list(_IDLE.items()):
            while process == os.getpid() and readers:
                readers.pop().close()
