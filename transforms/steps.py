"""The steps of every pipeline as Beam transforms: thin shells around the kernels of the same words.

    rows -> ParseEvents -> ShuffleEvents -> PairMessages -> ComputeKpis

Rows travel as Arrow tables, or as the names of files of them; one element is a block of rows or a shard of keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton, TaggedOutput

from transforms import metrics
from transforms.batches import ThreadedFn
from transforms.dead_letters import conflict_letters
from transforms.events import ParsedEvents, parse_events
from transforms.kpis import compute_kpis
from transforms.ordering import OrderedEvents, order_events
from transforms.pairing import PairedShard, pair_messages
from transforms.raw_rows import RawRows
from transforms.repeat_steps import FindRepeatContacts
from transforms.settings import Settings
from transforms.shuffle import SHUFFLED_EVENTS, ShardFile, read_shard, write_shards
from transforms.statistics import Statistics, add_statistics

DEAD_LETTERS, COUNTS, LATEST, TURNS, STATISTICS = "dead_letters", "counts", "latest", "turns", "statistics"
"""Names of side outputs; COUNTS are dicts of numbers of rows, to be added up."""


class ParseEvents(beam.PTransform):
    """Blocks of rows -> events (main), DEAD_LETTERS, COUNTS and LATEST (the latest occurred_at of a block).

    Exists so that everything after it sees valid events only, in the contract's types.
    """

    def __init__(self, read: Callable[[Any], list[RawRows]]) -> None:
        """Takes the function that reads a block."""
        super().__init__()
        self._read = read

    def expand(self, blocks: beam.PCollection) -> Any:
        """Applies the step."""
        return blocks | "Parse" >> beam.ParDo(_ParseFn(self._read)).with_outputs(
            DEAD_LETTERS, COUNTS, LATEST, main="events"
        )


class _ParseFn(ThreadedFn):
    def __init__(self, read: Callable[[Any], list[RawRows]]) -> None:
        super().__init__()
        self._read = read

    def work(self, block: Any, side: None) -> tuple[str, ParsedEvents]:
        return block.source, parse_events(self._read(block))

    def emit(self, result: tuple[str, ParsedEvents]) -> Iterator[Any]:
        source, parsed = result
        dead = parsed.dead_letters.num_rows
        metrics.count("ParseEvents", rows_in=parsed.rows_read, rows_out=parsed.events.num_rows, dead_letters=dead)
        counts = Counter({"rows_read": parsed.rows_read, f"rows of {source}": parsed.rows_read})
        counts.update({f"unknown column {name}": 1 for name in parsed.unknown_columns})
        counts.update(_letters_by_reason(parsed.dead_letters))
        if dead:
            yield TaggedOutput(DEAD_LETTERS, parsed.dead_letters)
        yield TaggedOutput(COUNTS, counts)
        if parsed.events.num_rows:
            yield TaggedOutput(LATEST, pc.max(parsed.events["occurred_at"].cast(pa.int64())).as_py())
            yield parsed.events


def _letters_by_reason(letters: pa.Table) -> dict[str, int]:
    """Numbers of dead letters, under "dead letter <reason>"."""
    counted = letters["reason"].value_counts().to_pylist()
    return {f"dead letter {item['values']}": item["counts"] for item in counted}


class ShuffleEvents(beam.PTransform):
    """Events -> (shard, its files): all events of a conversation key are in one shard.

    Exists so that a key is decided in one place, and only file names go through Beam's shuffle.
    """

    def __init__(self, shards: int, folder: Path) -> None:
        """Takes the number of shards and a folder that every worker sees."""
        super().__init__()
        self._shards, self._folder = shards, str(folder)

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return events | "Write" >> beam.ParDo(_ShuffleFn(self._shards, self._folder)) | "ByShard" >> beam.GroupByKey()


class _ShuffleFn(ThreadedFn):
    def __init__(self, shards: int, folder: str) -> None:
        super().__init__()
        self._shards, self._folder = shards, folder

    def work(self, element: pa.Table, side: None) -> list[tuple[int, ShardFile]]:
        return write_shards(element, self._shards, self._folder)

    def emit(self, result: list[tuple[int, ShardFile]]) -> Iterator[Any]:
        return iter(result)


class PairMessages(beam.PTransform):
    """(shard, files) -> (shard, conversations) (main), TURNS, STATISTICS, COUNTS, DEAD_LETTERS and LATEST.

    Exists to decide which message is answered by which reply, once, for every number that is made of it. Orders the
    events of each shard and drops the copies first. LATEST is the latest occurred_at of the events kept; STATISTICS are
    names of files of them, or statistics.
    """

    def __init__(self, settings: Settings, as_of: beam.PCollection, folder: Path) -> None:
        """Takes the settings, as_of (a PCollection of one value or None) and a folder for files."""
        super().__init__()
        self._settings, self._as_of, self._folder = settings, as_of, str(folder)

    def expand(self, shards: beam.PCollection) -> Any:
        """Applies the step."""
        pair = beam.ParDo(_PairFn(self._settings, self._folder), AsSingleton(self._as_of))
        outputs = (TURNS, STATISTICS, COUNTS, DEAD_LETTERS, LATEST)
        paired = shards | "Pair" >> pair.with_outputs(*outputs, main="conversations")
        if self._settings.repeat_contact is None:
            return paired
        conversations, taken = paired.conversations | "RepeatContacts" >> FindRepeatContacts(self._settings)
        statistics = (paired[STATISTICS], taken) | "TakeBack" >> beam.Flatten()
        same = {name: paired[name] for name in outputs}
        return {**same, "conversations": conversations, STATISTICS: statistics}


@dataclass(frozen=True)
class _Paired:
    """What became of a shard, its statistics in a file."""

    shard: int
    ordered: OrderedEvents
    latest: int | None
    letters: pa.Table
    paired: PairedShard
    statistics: str
    seconds: float


class _PairFn(ThreadedFn):
    PLACE = ("source", "source_partition", "source_row")

    def __init__(self, settings: Settings, folder: str) -> None:
        super().__init__()
        self._settings, self._folder = settings, folder

    def work(self, element: tuple[int, Iterable[ShardFile]], side: int | None) -> _Paired:
        started = time.monotonic()
        shard, parts = element
        shuffled = read_shard(sorted(parts, key=lambda part: part.path), SHUFFLED_EVENTS.names)
        # (Where rows came from is wanted of the conflicting ones only.)
        events = shuffled.drop_columns(list(self.PLACE)).combine_chunks()
        ordered = order_events(events, *(events[name].to_numpy() for name in ("key_hash", "event_hash")))
        at = events["occurred_at"].cast(pa.int64()).to_numpy()[ordered.rows]
        letters = conflict_letters(shuffled.take(pa.array(ordered.conflicts)))
        paired = pair_messages(events, ordered, self._settings, side or 0)
        path = f"{self._folder}/statistics-{shard:05}"
        paired.statistics.save(path)
        paired = replace(paired, statistics=Statistics.zero())
        latest = int(at.max()) if len(at) else None
        return _Paired(shard, ordered, latest, letters, paired, path, time.monotonic() - started)

    def emit(self, result: _Paired) -> Iterator[Any]:
        paired, kept, letters = result.paired, len(result.ordered.rows), result.letters
        metrics.count(
            "PairMessages", rows_in=kept, rows_out=paired.conversations.num_rows, dead_letters=letters.num_rows
        )
        metrics.observe_millis("PairMessages", result.seconds)
        counts = {
            "events_kept": kept,
            "exact_duplicates": result.ordered.exact_duplicate_count,
            "stray_events": paired.stray_event_count,
            "conversations": paired.conversations.num_rows,
            "turns": paired.turns.num_rows,
        }
        yield TaggedOutput(COUNTS, Counter(counts | _letters_by_reason(letters)))
        if letters.num_rows:
            yield TaggedOutput(DEAD_LETTERS, letters)
        if result.latest is not None:
            yield TaggedOutput(LATEST, result.latest)
        yield TaggedOutput(STATISTICS, result.statistics)
        yield TaggedOutput(TURNS, (result.shard, paired.turns))
        yield result.shard, paired.conversations


class ComputeKpis(beam.PTransform):
    """Statistics by slice (or names of files of them) -> one tuple of tables: kpis, kpi_statistics, totals.

    Exists so that means, rates and percentiles are computed last, of what was added up.
    """

    def __init__(self, timezone: str, as_of: beam.PCollection, before: beam.PTransform | None = None) -> None:
        """Takes the zone, as_of (a PCollection of one value or None) and a step to do once all statistics are there."""
        super().__init__()
        self._timezone, self._as_of, self._before = timezone, as_of, before or beam.Map(_as_it_is)

    def expand(self, statistics: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return (
            statistics
            | "Together" >> beam.combiners.ToList()
            | "Before" >> self._before
            | "Values" >> beam.Map(_kpi_tables, self._timezone, AsSingleton(self._as_of))
        )


def _as_it_is(element: Any) -> Any:
    return element


def _kpi_tables(parts: list[Statistics | str], timezone: str, as_of: int | None) -> tuple[pa.Table, ...]:
    statistics = add_statistics(Statistics.load(part) if isinstance(part, str) else part for part in parts)
    return compute_kpis(statistics, timezone, as_of or 0)


class AddCountsCombineFn(beam.CombineFn):
    """Adds numbers of rows up by name."""

    def create_accumulator(self) -> Counter[str]:
        """Nothing counted."""
        return Counter()

    def add_input(self, accumulator: Counter[str], element: Counter[str]) -> Counter[str]:
        """Adds one."""
        accumulator.update(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counter[str]]) -> Counter[str]:
        """Adds all."""
        total: Counter[str] = Counter()
        for part in accumulators:
            total.update(part)
        return total

    def extract_output(self, accumulator: Counter[str]) -> Counter[str]:
        """The sums."""
        return accumulator
