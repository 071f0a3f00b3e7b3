"""The steps of every pipeline as Beam transforms: thin shells around the kernels of the same words.

    rows -> ParseEvents -> ShuffleEvents -> PairMessages -> ComputeKpis

Rows travel as Arrow tables, or as the names of files of them; one element is a block of rows or a shard of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput
from apache_beam.typehints.decorators import no_annotations

from transforms import metrics
from transforms.batches import ThreadedFn
from transforms.dead_letters import letters_by_reason
from transforms.events import ParsedEvents, parse_events
from transforms.kpis import StoredStatistics, compute_kpis
from transforms.raw_rows import RawRows
from transforms.shuffle import NO_ROWS, ShardFile, write_shards
from transforms.statistics import Statistics, add_statistics

DEAD_LETTERS, COUNTS, LATEST, LATE = "dead_letters", "counts", "latest", "late"
"""Names of side outputs; COUNTS are dicts of numbers of rows, to be added up."""


class ParseEvents(beam.PTransform):
    """Blocks of rows -> events (main), DEAD_LETTERS, COUNTS, LATEST, and of a stream LATE.

    Exists so that everything after it sees valid events only, in the contract's types. LATEST are the source of a block
    and the latest occurred_at in it.
    """

    def __init__(
        self, read: Callable[[Any], list[RawRows]], split: Callable[[pa.Table], tuple[pa.Table, pa.Table]] | None = None
    ) -> None:
        """Takes the function that reads a block, and of a stream the one that tells events from rows of LATE_EVENTS."""
        super().__init__()
        self._read, self._split = read, split

    def expand(self, blocks: beam.PCollection) -> Any:
        """Applies the step."""
        return blocks | "Parse" >> beam.ParDo(_ParseFn(self._read, self._split)).with_outputs(
            DEAD_LETTERS, COUNTS, LATEST, LATE, main="events"
        )


@dataclass(frozen=True)
class _Parsed:
    """A block: what its rows came to, the events that are not late, the late ones, and the latest occurred_at."""

    source: str
    parsed: ParsedEvents
    events: pa.Table
    late: pa.Table | None
    latest: int | None


class _ParseFn(ThreadedFn):
    def __init__(
        self, read: Callable[[Any], list[RawRows]], split: Callable[[pa.Table], tuple[pa.Table, pa.Table]] | None
    ) -> None:
        super().__init__()
        self._read, self._split = read, split

    def work(self, block: Any, side: None) -> _Parsed:
        parsed = parse_events(self._read(block))
        events, late = parsed.events, None
        latest = pc.max(events["occurred_at"].cast(pa.int64())).as_py() if events.num_rows else None
        if self._split is not None:
            events, late = self._split(events)
        return _Parsed(block.source, parsed, events, late, latest)

    def emit(self, result: _Parsed) -> Iterator[Any]:
        parsed, source = result.parsed, result.source
        dead = parsed.dead_letters.num_rows
        metrics.count("ParseEvents", rows_in=parsed.rows_read, rows_out=result.events.num_rows, dead_letters=dead)
        counts = Counter({"rows_read": parsed.rows_read, f"rows of {source}": parsed.rows_read})
        counts.update({f"unknown column {name}": 1 for name in parsed.unknown_columns})
        counts.update(letters_by_reason(parsed.dead_letters))
        if dead:
            yield TaggedOutput(DEAD_LETTERS, parsed.dead_letters)
        if result.late is not None and result.late.num_rows:
            counts["late_events"] = result.late.num_rows
            yield TaggedOutput(LATE, result.late)
        yield TaggedOutput(COUNTS, counts)
        if result.latest is not None:
            yield TaggedOutput(LATEST, (source, result.latest))
        if result.events.num_rows:
            yield result.events


class ShuffleEvents(beam.PTransform):
    """Events -> (shard, its files): all events of a conversation key are in one shard.

    Exists so that a key is decided in one place, and only file names go through Beam's shuffle.
    """

    def __init__(self, shards: int, folder: Path, all_shards: bool = False) -> None:
        """Takes the number of shards, a folder that every worker sees, and whether shards without events come too."""
        super().__init__()
        self._shards, self._folder, self._all_shards = shards, str(folder), all_shards

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        written = events | "Write" >> beam.ParDo(ShuffleFn(self._shards, self._folder))
        if self._all_shards:
            nothing = [(shard, NO_ROWS) for shard in range(self._shards)]
            written = (written, events.pipeline | "Shards" >> beam.Create(nothing)) | beam.Flatten()
        return written | "ByShard" >> beam.GroupByKey()


class ShuffleFn(ThreadedFn):
    """Events -> (shard, its part of a file), as ShuffleEvents does it."""

    def __init__(self, shards: int, folder: str) -> None:
        """Takes the number of shards, and a folder that every worker sees."""
        super().__init__()
        self._shards, self._folder = shards, folder

    def work(self, element: pa.Table, side: None) -> list[tuple[int, ShardFile]]:
        """Writes one block."""
        return write_shards(element, self._shards, self._folder)

    def emit(self, result: list[tuple[int, ShardFile]]) -> Iterator[Any]:
        """Yields each part."""
        return iter(result)


class ComputeKpis(beam.PTransform):
    """Statistics by slice (or names of files of them) -> one tuple of tables: those of compute_kpis.

    Exists so that means, rates and percentiles are computed last, of what was added up.
    """

    def __init__(
        self,
        timezone: str,
        as_of: beam.PCollection,
        first: beam.PTransform | None = None,
        stored: StoredStatistics | None = None,
    ) -> None:
        """Takes the zone, as_of (a PCollection of one value or None), a step to do first, and what is stored."""
        super().__init__()
        self._timezone, self._as_of, self._stored = timezone, as_of, stored
        self._first = first or beam.Map(_as_it_is)

    def expand(self, statistics: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return (
            statistics
            | "Together" >> Gather(list)
            | "First" >> self._first
            | "Values" >> beam.Map(_kpi_tables, self._timezone, self._stored, AsSingleton(self._as_of))
        )


def _as_it_is(element: Any) -> Any:
    return element


def _kpi_tables(
    parts: list[Statistics | str], timezone: str, stored: StoredStatistics | None, as_of: int | None
) -> tuple[pa.Table, ...]:
    return compute_kpis(add_statistics(parts), timezone, as_of or 0, stored)


class Gather(beam.PTransform):
    """All elements -> one, by a function of them; also where there are none.

    Exists because few small elements need no combiner, which is several steps.
    """

    def __init__(self, function: Callable[..., Any], *others: Any) -> None:
        """Takes a function of an iterable of the elements, and what further arguments it has (side inputs too)."""
        super().__init__()
        self._function, self._others = function, others

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        once = elements.pipeline | "Once" >> beam.Impulse()
        return once | "All" >> beam.Map(_gathered, self._function, AsIter(elements), *self._others)


@no_annotations  # type: ignore[untyped-decorator]  # (Beam would take "*others: Any" for a tuple.)
def _gathered(once: bytes, function: Callable[..., Any], elements: Iterable[Any], *others: Any) -> Any:
    return function(elements, *others)
