"""Topics of Kafka as an unbounded source: one restriction for all partitions, so that they have one watermark.

ParseEvents happens here, since the watermark is made of the events' own times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from pipelines.kafka.client import Client, Place, Topic
from pipelines.kafka.faults import BrokerAway, LostOffsets
from pipelines.kafka.messages import read_messages
from pipelines.kafka.reading import Chunk, read_ranges
from pipelines.kafka.settings import KafkaOptions
from pipelines.unbounded.merging import PROGRESS, PROGRESS_KIND
from pipelines.unbounded.positions import PartitionPosition, Positions
from transforms import metrics
from transforms.errors import UserError
from transforms.events import parse_events
from transforms.key_changes import encode_change
from transforms.late_events import late_rows
from transforms.stream_settings import StreamSettings
from transforms.tables import DEAD_LETTERS, LATE_EVENTS

CHANGES = "changes"
"""Name of the side output: dead letters, late events and progress, as changes."""

_LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_TOPICS = 1.0
_SECONDS_OF_A_BUNDLE = 0.2
_SECONDS_WITHOUT_ROWS = 0.1


class _Clients:
    """Clients of this process, and what they last knew of the topics: a DoFn is copied, a connection is not."""

    known: dict[KafkaOptions, tuple[Client, dict[str, Topic], float]] = {}  # noqa: RUF012

    @classmethod
    def of(cls, options: KafkaOptions) -> tuple[Client, dict[str, Topic]]:
        """The client and the topics."""
        client, topics, looked = cls.known.get(options) or (Client(options), {}, -1e9)
        if time.monotonic() - looked > _SECONDS_BETWEEN_TOPICS:
            topics = client.topics()
            cls.known[options] = client, topics, time.monotonic()
        return client, topics


@dataclass(frozen=True)
class ReadOptions:
    """What is read, and how much at a time.

    Attributes:
      kafka: the Kafka.
      stream: of the stream.
      rows: messages of one poll.
    """

    kafka: KafkaOptions
    stream: StreamSettings
    rows: int = 20_000


class ReadEvents(beam.PTransform):
    """A pipeline -> (watermark, events) (main) and CHANGES (shard 0, change).

    Exists so that everything after it sees valid events only, and one time for all partitions.
    """

    def __init__(self, options: ReadOptions) -> None:
        """Takes what is read."""
        super().__init__()
        self._options = options

    def expand(self, pipeline: beam.Pipeline) -> Any:
        """Applies the step."""
        read = beam.ParDo(_ReadFn(self._options)).with_outputs(CHANGES, main="events")
        start = pipeline | "Start" >> beam.Create([(b"", b"")]).with_output_types(tuple[bytes, bytes])
        return start | "Read" >> read


class _ReadFn(beam.DoFn):
    """Reads in a loop of timers.

    Not as a splittable DoFn: what each bundle of one leaves to be read, Beam's runner for Flink keeps for ever. The
    input of this step is one element at the beginning of time and has ended, so a timer of event time fires as soon as
    it is set; until then it holds the watermark of the output at its own time, which is that of the source.
    """

    POSITIONS = ReadModifyWriteStateSpec("positions", BytesCoder())
    NEXT = TimerSpec("next", TimeDomain.WATERMARK)

    def __init__(self, options: ReadOptions) -> None:
        self._options = options

    def process(self, element: tuple[bytes, bytes], again: Any = beam.DoFn.TimerParam(NEXT)) -> None:  # noqa: B008
        """Begins."""
        again.set(Timestamp(0))

    @on_timer(NEXT)
    def read(
        self,
        state: Any = beam.DoFn.StateParam(POSITIONS),  # noqa: B008
        again: Any = beam.DoFn.TimerParam(NEXT),  # noqa: B008
    ) -> Iterator[Any]:
        """Polls for a moment."""
        saved, until = state.read(), time.monotonic() + _SECONDS_OF_A_BUNDLE
        positions = Positions() if saved is None else Positions.from_bytes(saved)
        while True:
            polled = _poll_if_there(self._options, positions)
            moment = Timestamp(micros=positions.watermark)
            for name, value in polled.outputs():
                stamped = TimestampedValue(value, moment)
                yield TaggedOutput(name, stamped) if name else stamped
            positions = polled.positions
            if not polled.rows or time.monotonic() > until:
                break
        if not polled.rows:
            time.sleep(_SECONDS_WITHOUT_ROWS)
        state.write(positions.to_bytes())
        again.set(Timestamp(micros=positions.watermark))


@dataclass(frozen=True)
class Polled:
    """What one look brought.

    Attributes:
      positions: from where to go on.
      rows: rows that were read.
      events: schema PARSED_EVENTS; none of them late.
      changes: dead letters and late events by kind; and how far each partition is.
    """

    positions: Positions
    rows: int
    events: list[pa.Table]
    changes: Mapping[str, pa.Table]

    def outputs(self) -> Iterator[tuple[str | None, Any]]:
        """Elements, with the name of the side output."""
        for events in self.events:
            metrics.count("ParseEvents", rows_out=events.num_rows)
            yield None, (self.positions.watermark, events)
        if self.changes:
            yield CHANGES, (0, encode_change(self.changes))


def _poll_if_there(options: ReadOptions, positions: Positions) -> Polled:
    """Nothing has come where Kafka does not answer: its client goes on trying, and a restart would not help."""
    try:
        return poll(options, positions)
    except BrokerAway as away:
        _LOGGER.warning("%s", away)
        return Polled(positions, 0, [], {})


def poll(options: ReadOptions, before: Positions) -> Polled:
    """Reads what has come.

    Raises:
      UserError: messages that are due are gone, or Kafka does not let us in.
      BrokerAway: Kafka does not answer.
    """
    client, topics = _Clients.of(options.kafka)
    now, offsets = time.time(), client.offsets(topics)
    partitions = dict(before.partitions)
    ranges: dict[Place, tuple[int, int]] = {}
    for place, there in offsets.items():
        name, identity = f"{place[0]}/{place[1]}", topics[place[0]].identity
        at = partitions.setdefault(name, PartitionPosition(there.low, seen_at=now, identity=identity))
        if not there.low <= at.next_offset <= there.high or at.identity != identity:
            raise UserError(f"{LostOffsets(*place, at.next_offset, there.low, there.high)} Begin a new output folder.")
        ranges[place] = at.next_offset, there.high
    due = sum(high - low for low, high in ranges.values())
    share = min(1.0, options.rows / due) if due else 1.0
    ranges = {place: (low, min(high, low + max(1, int((high - low) * share)))) for place, (low, high) in ranges.items()}
    events, letters, late, rows_read = [], [DEAD_LETTERS.schema.empty_table()], [LATE_EVENTS.schema.empty_table()], 0
    for chunk in read_ranges(options.kafka, ranges):
        name = f"{chunk.topic}/{chunk.partition}"
        parsed, is_late, at = _parse(chunk, partitions[name], before.watermark, now, options.stream)
        rows_read += parsed.rows_read
        partitions[name] = partitions[name].after(int(chunk.offsets[-1]) + 1, parsed.rows_read, at, now)
        letters.append(parsed.dead_letters)
        if is_late.any():
            late.append(late_rows(parsed.events.filter(pa.array(is_late)).combine_chunks()))
        if not is_late.all():
            events.append(parsed.events.filter(pa.array(~is_late)) if is_late.any() else parsed.events)
    for place, (_, stop) in ranges.items():
        name = f"{place[0]}/{place[1]}"
        partitions[name] = replace(partitions[name], next_offset=max(stop, partitions[name].next_offset))
    after = Positions(partitions, before.watermark).at(time.time(), options.stream)
    tables = {DEAD_LETTERS.name: pa.concat_tables(letters), LATE_EVENTS.name: pa.concat_tables(late)}
    metrics.count(
        "ParseEvents", rows_in=rows_read, **{name: tables[name].num_rows for name in ("dead_letters", "late_events")}
    )
    changes = {name: table for name, table in tables.items() if table.num_rows}
    if rows_read or after.watermark > before.watermark:
        changes[PROGRESS_KIND] = _progress(after)
    return Polled(after, rows_read, events, changes)


def _parse(chunk: Chunk, at: PartitionPosition, watermark: int, now: float, stream: StreamSettings) -> Any:
    """The rows of some messages, which of the events are late, and the times of those that are."""
    not_after = int(now * 1e6) + stream.max_future
    parsed = parse_events([replace(part, not_after=not_after) for part in read_messages(*chunk)])
    times = np.asarray(parsed.events["occurred_at"].combine_chunks().cast(pa.int64()))
    # (What is late is older than what moves the time, so all times may be told.)
    return parsed, at.late(times, watermark, stream), times


def _progress(positions: Positions) -> pa.Table:
    rows = [
        {
            "topic": name.rpartition("/")[0],
            "partition": int(name.rpartition("/")[2]),
            "next_offset": each.next_offset,
            "rows_read": each.rows_read,
            "watermark": positions.watermark,
        }
        for name, each in positions.partitions.items()
    ]
    return pa.Table.from_pylist(rows, schema=PROGRESS)
