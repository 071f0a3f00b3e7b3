"""PairMessages and ComputeKpis of an unbounded graph: the kernels of a result that grows, with Beam's state and timers.

    (bucket, (watermark, rows)) -> PairStreams -> changes of keys, and differences of statistics
    (group, difference)         -> AddUpKpis   -> changes of windows

Rows wait in state until a moment of processing time, so that one firing takes many. When a firing comes decides nothing
but how often the same is said: see transforms.restating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.timestamp import Timestamp

from transforms import metrics
from transforms.buckets import Bucket, decode_rows, encode_rows, join_rows
from transforms.key_changes import KEYS_KIND, LETTERS_KIND, WINDOWS_KIND, encode_change
from transforms.restating import restate
from transforms.settings import Settings
from transforms.shuffle import split_by_key, with_plain_ids
from transforms.stream_settings import SECOND, StreamSettings
from transforms.tables import CONVERSATIONS, TURNS
from transforms.window_groups import Difference, restate_group, split_by_group

DIFFERENCES = "differences"
"""Name of the side output of PairStreams."""

Clock = Callable[[], float]
"""Tells the processing time, seconds since the epoch."""

_CHUNKS = 8
"""So many pieces of rows a bucket may have before they are put together."""

_WAKE_TICK = SECOND
"""Moments at which time alone changes something are rounded up to this; their buckets are looked at together."""


class SplitByBucket(beam.PTransform):
    """(watermark, events) -> (bucket, (watermark, rows)): all events of a conversation key are in one bucket.

    Exists so that a key is decided in one place.
    """

    def __init__(self, buckets: int) -> None:
        """Takes the number of buckets; it must not change while a stream goes on."""
        super().__init__()
        self._buckets = buckets

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        split = beam.FlatMap(_split, self._buckets)
        return events | split.with_output_types(tuple[int, tuple[int, pa.Table]])


def _split(element: tuple[int, pa.Table], buckets: int) -> Iterator[tuple[int, tuple[int, pa.Table]]]:
    watermark, events = element
    for bucket, rows in split_by_key(events, buckets):
        yield bucket, (watermark, with_plain_ids(rows))


class PairStreams(beam.PTransform):
    """(bucket, (watermark, rows)) -> (shard, change) (main) and DIFFERENCES (group, difference).

    Exists to decide which message is answered by which reply while events go on coming.
    """

    def __init__(
        self, settings: Settings, stream: StreamSettings, clock: Clock, every: float = 1.0, shards: int = 1
    ) -> None:
        """Takes the settings, the clock, how long rows wait for others (seconds), and the number of shards."""
        super().__init__()
        self._fn = _PairFn(settings, stream, clock, every, shards)

    def expand(self, rows: beam.PCollection) -> Any:
        """Applies the step."""
        return rows | beam.ParDo(self._fn).with_outputs(DIFFERENCES, main="changes")


def _typed(elements: beam.PCollection, kind: Any) -> beam.PCollection:
    """The same elements, of a type whose coder gives equal keys equal bytes."""
    return elements | "Typed" >> beam.Map(_as_it_is).with_output_types(kind)


def _as_it_is(element: Any) -> Any:
    return element


class _Buffered(beam.DoFn):
    """Sets a timer to the next multiple of some seconds, so that what comes till then is worked on together.

    Each class has timers of other names: Beam's FnApiRunner mixes those of one name up.
    """

    def __init__(self, clock: Clock, every: float) -> None:
        self._clock, self._every = clock, max(every, 0.001)

    def next_flush(self) -> Timestamp:
        """The next multiple; setting a timer to the same moment again changes nothing."""
        every = int(self._every * SECOND)
        return Timestamp(micros=(int(self._clock() * SECOND) // every + 1) * every)


class _PairFn(_Buffered):
    ROWS = BagStateSpec("rows", BytesCoder())
    NEW = BagStateSpec("new", BytesCoder())
    REST = ReadModifyWriteStateSpec("rest", BytesCoder())
    FLUSH = TimerSpec("pair", TimeDomain.REAL_TIME)
    WAKE = TimerSpec("wake", TimeDomain.WATERMARK)

    def __init__(self, settings: Settings, stream: StreamSettings, clock: Clock, every: float, shards: int) -> None:
        super().__init__(clock, every)
        self._settings, self._stream, self._shards = settings, stream, shards

    def process(
        self,
        element: tuple[int, tuple[int, pa.Table]],
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
        flush: Any = beam.DoFn.TimerParam(FLUSH),  # noqa: B008
    ) -> None:
        watermark, rows = element[1]
        metrics.count("PairMessages", rows_in=rows.num_rows)
        new.add(watermark.to_bytes(8, "big") + encode_rows(rows))
        flush.set(self.next_flush())

    @on_timer(FLUSH)
    def flush(
        self,
        key: int = beam.DoFn.KeyParam,
        rows: Any = beam.DoFn.StateParam(ROWS),  # noqa: B008
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
        rest: Any = beam.DoFn.StateParam(REST),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[Any]:
        """Takes the rows that came."""
        yield from self._fire(key, 0, rows, new, rest, wake)

    @on_timer(WAKE)
    def wake(
        self,
        key: int = beam.DoFn.KeyParam,
        at: Timestamp = beam.DoFn.TimestampParam,
        rows: Any = beam.DoFn.StateParam(ROWS),  # noqa: B008
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
        rest: Any = beam.DoFn.StateParam(REST),  # noqa: B008
        wake: Any = beam.DoFn.TimerParam(WAKE),  # noqa: B008
    ) -> Iterator[Any]:
        """Does what time alone does."""
        yield from self._fire(key, at.micros, rows, new, rest, wake)

    def _fire(self, key: int, passed: int, rows: Any, new: Any, rest: Any, wake: Any) -> Iterator[Any]:
        arrived, chunks = list(new.read()), list(rows.read())
        new.clear()
        watermark = max((int.from_bytes(piece[:8], "big") for piece in arrived), default=0)
        bucket = Bucket.load(rest.read(), chunks)
        came = join_rows([decode_rows(piece[8:]) for piece in arrived])
        done = restate(bucket, came, watermark, passed, self._settings, self._stream)
        if done is None:
            return
        rest.write(done.bucket.save())
        if done.dropped or len(chunks) >= _CHUNKS:
            rows.clear()
            if done.bucket.rows.num_rows:
                rows.add(encode_rows(done.bucket.rows))
        elif done.came.num_rows:
            rows.add(encode_rows(done.came))
        if done.wake_at is None:
            wake.clear()
        else:
            wake.set(Timestamp(micros=-(-done.wake_at // _WAKE_TICK) * _WAKE_TICK))
        if not done.keys.num_rows:
            return
        metrics.count("PairMessages", rows_out=done.came.num_rows, conversations_revised=done.conversations.num_rows)
        tables = (done.keys, done.conversations, done.turns, done.letters)
        change = dict(zip((KEYS_KIND, CONVERSATIONS.name, TURNS.name, LETTERS_KIND), tables, strict=True))
        yield key % self._shards, encode_change(change)
        for group, difference in split_by_group(Difference(done.statistics, done.marks), self._settings.timezone):
            yield TaggedOutput(DIFFERENCES, (group, difference.save()))


class AddUpKpis(beam.PTransform):
    """(group, difference) -> (shard, change): the windows that differences fell into.

    Exists so that what a window says is made of what was added up, never of all events again.
    """

    def __init__(self, timezone: str, clock: Clock, every: float = 2.0, shards: int = 1) -> None:
        """Takes the zone, the clock, how long differences wait for others (seconds), and the number of shards."""
        super().__init__()
        self._fn = _AddUpFn(timezone, clock, every, shards)

    def expand(self, differences: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return _typed(differences, tuple[str, bytes]) | beam.ParDo(self._fn)


class _AddUpFn(_Buffered):
    TOTAL = ReadModifyWriteStateSpec("total", BytesCoder())
    NEW = BagStateSpec("new", BytesCoder())
    FLUSH = TimerSpec("add_up", TimeDomain.REAL_TIME)

    def __init__(self, timezone: str, clock: Clock, every: float, shards: int) -> None:
        super().__init__(clock, every)
        self._timezone, self._shards = timezone, shards

    def process(
        self,
        element: tuple[str, bytes],
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
        flush: Any = beam.DoFn.TimerParam(FLUSH),  # noqa: B008
    ) -> None:
        new.add(element[1])
        flush.set(self.next_flush())

    @on_timer(FLUSH)
    def flush(
        self,
        key: str = beam.DoFn.KeyParam,
        total: Any = beam.DoFn.StateParam(TOTAL),  # noqa: B008
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
    ) -> Iterator[tuple[int, bytes]]:
        """Adds up what came."""
        saved, differences = total.read(), [Difference.load(piece) for piece in new.read()]
        new.clear()
        before = Difference() if saved is None else Difference.load(saved)
        after, windows = restate_group(key, before, differences, self._timezone)
        total.write(after.save())
        if windows.num_rows:
            metrics.count("ComputeKpis", rows_out=windows.num_rows)
            yield _shard_of(key, self._shards), encode_change({WINDOWS_KIND: windows})


def _shard_of(group: str, shards: int) -> int:
    """A shard that is the same in every process."""
    return int(np.frombuffer(group.encode(), np.uint8).astype(np.int64).sum()) % shards


class GatherChanges(beam.PTransform):
    """(shard, change) -> what `write` makes of the changes that came within some seconds.

    Exists so that few files are written.
    """

    def __init__(self, write: Callable[[Sequence[bytes]], Any], clock: Clock, every: float = 10.0) -> None:
        """Takes what writes, the clock, and how long changes wait for others (seconds)."""
        super().__init__()
        self._fn = _GatherFn(write, clock, every)

    def expand(self, changes: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return _typed(changes, tuple[int, bytes]) | beam.ParDo(self._fn)


class _GatherFn(_Buffered):
    NEW = BagStateSpec("new", BytesCoder())
    FLUSH = TimerSpec("gather", TimeDomain.REAL_TIME)

    def __init__(self, write: Callable[[Sequence[bytes]], Any], clock: Clock, every: float) -> None:
        super().__init__(clock, every)
        self._write = write

    def process(
        self,
        element: tuple[int, bytes],
        new: Any = beam.DoFn.StateParam(NEW),  # noqa: B008
        flush: Any = beam.DoFn.TimerParam(FLUSH),  # noqa: B008
    ) -> None:
        new.add(element[1])
        flush.set(self.next_flush())

    @on_timer(FLUSH)
    def flush(self, new: Any = beam.DoFn.StateParam(NEW)) -> Iterator[Any]:  # noqa: B008
        """Writes what came."""
        changes = list(new.read())
        new.clear()
        if changes:
            yield self._write(changes)
