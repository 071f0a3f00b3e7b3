"""Kafka as a stream's input: every partition of its topics, read from where the last commit was."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.growth import Taken
from pipelines.kafka.client import Client, Offsets, Place, Topic
from pipelines.kafka.faults import LostOffsets
from pipelines.kafka.messages import read_messages
from pipelines.kafka.reading import Chunk, close_consumers, read_ranges
from pipelines.kafka.settings import KafkaOptions
from pipelines.stream.sources import Range
from pipelines.stream.state import Partition, StreamState
from transforms.errors import UserError
from transforms.raw_rows import RawRows

SECONDS_BETWEEN_TOPICS = 1.0
"""New topics and partitions are looked for so often."""


def partition_name(place: Place) -> str:
    """What a partition is called: topic/number."""
    return f"{place[0]}/{place[1]}"


@dataclass(frozen=True)
class _Messages:
    """Some messages of one partition."""

    chunk: Chunk

    @property
    def source(self) -> str:
        return partition_name((self.chunk.topic, self.chunk.partition))


@dataclass(frozen=True)
class KafkaTaking:
    """Ranges of offsets; see Taking."""

    options: KafkaOptions
    ranges: Mapping[str, Range]
    places: Mapping[str, Place]
    topics: Mapping[str, Topic]
    rows: int = field(default=0)

    def pieces(self) -> Iterator[_Messages]:
        """Messages of one partition after another."""
        wanted = {self.places[name]: (each.start, each.stop) for name, each in self.ranges.items()}
        return map(_Messages, read_ranges(self.options, wanted))

    def read(self, piece: _Messages) -> list[RawRows]:
        """Rows of some messages."""
        return read_messages(*piece.chunk)

    def partition_of(self, source: str) -> str:
        """A partition is its own source."""
        return source

    def after(self, partition: str, latest: int | None) -> Partition:
        """The offset after the last one that is taken, and which topic that was."""
        topic = self.topics[self.places[partition][0]]
        return Partition(self.ranges[partition].stop, latest, topic.identity)

    def taken(self, rows: Mapping[str, int], cycle: int) -> tuple[Taken, ...]:
        """No files."""
        return ()

    def inputs(self, rows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Offsets and rows of each partition."""
        return {
            name: {"from": each.start, "to": each.stop, "rows": rows.get(f"rows of {name}", 0), "lost": each.lost}
            for name, each in self.ranges.items()
            if each.stop > each.start or each.lost
        }


class KafkaSource:
    """Topics of a Kafka; see Source."""

    def __init__(self, options: KafkaOptions, on_lost_offsets: Literal["fail", "earliest"], rows_a_cycle: int) -> None:
        """Takes the Kafka, what to do where messages that are due are gone, and how many messages a cycle may take."""
        self._options, self._on_lost, self._rows = options, on_lost_offsets, rows_a_cycle
        self._client = Client(options)
        self._topics: dict[str, Topic] = {}
        self._looked = 0.0

    def look(self, state: StreamState) -> KafkaTaking:
        """Offsets of all partitions, from where the state is, as many as a cycle should take.

        Raises:
          UserError: a topic is not there, Kafka does not let us in, or messages that are due are gone.
          BrokerAway: Kafka does not answer.
        """
        now = time.monotonic()
        if not self._topics or now - self._looked >= SECONDS_BETWEEN_TOPICS:
            self._topics = self._client.topics()
            self._looked = now
        offsets = self._client.offsets(self._topics)
        places = {partition_name(place): place for place in offsets}
        due = {name: self._due(place, offsets[place], state.partitions.get(name)) for name, place in places.items()}
        ranges = _share(due, self._rows)
        rows = sum(each.stop - each.start for each in ranges.values())
        return KafkaTaking(self._options, ranges, places, dict(self._topics), rows)

    def close(self) -> None:
        """Ends the consumers."""
        close_consumers()

    def _due(self, place: Place, offsets: Offsets, partition: Partition | None) -> Range:
        """All that is left of a partition."""
        if partition is None:
            return Range(offsets.low, offsets.high)
        is_another = partition.identity != self._topics[place[0]].identity
        if offsets.low <= partition.next <= offsets.high and not is_another:
            return Range(partition.next, offsets.high)
        if self._on_lost == "fail":
            lost = LostOffsets(*place, partition.next, offsets.low, offsets.high)
            made_anew = " The topic was deleted and made anew." if is_another else ""
            raise UserError(
                f"{lost}{made_anew} Nothing was changed: give --on-lost-offsets earliest to go on with the first "
                "message that there is (what was lost is counted), or stream into a new output folder."
            )
        return Range(offsets.low, offsets.high, 0 if is_another else max(0, offsets.low - partition.next))


def _share(due: Mapping[str, Range], rows: int) -> dict[str, Range]:
    """As many rows as a cycle should take; of each partition the same share, so that none runs ahead."""
    total = sum(each.stop - each.start for each in due.values())
    share = min(1.0, rows / total) if total else 1.0
    taken = {}
    for name, each in due.items():
        stop = min(each.stop, each.start + max(1, int((each.stop - each.start) * share)))
        taken[name] = Range(each.start, stop, each.lost, each.stop - stop)
    return taken
