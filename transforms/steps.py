"""The steps of every pipeline as Beam transforms: thin shells around the kernels of the same words.

    rows -> ParseEvents -> ShuffleEvents -> OrderEvents -> PairMessages -> ComputeKpis

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
import numpy as np
import pyarrow as pa
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
from transforms.schema import PARSED_EVENTS
from transforms.settings import Settings
from transforms.shuffle import SHUFFLED_EVENTS, ShardFile, read_shard, write_shards
from transforms.statistics import Statistics, add_statistics

DEAD_LETTERS, COUNTS, LATEST, TURNS, STATISTICS = "dead_letters", "counts", "latest", "turns", "statistics"
"""Names of side outputs; COUNTS are dicts of numbers of rows, to be added up."""


@dataclass(frozen=True)
class OrderedShard:
    """A shard whose order is known: where its rows are, and the file that holds the order."""

    shard: int
    files: tuple[ShardFile, ...]
    order: str


class ParseEvents(beam.PTransform):
    """Blocks of rows -> events (main), DEAD_LETTERS and COUNTS.

    Exists so that everything after it sees valid events only, in the contract's types.
    """

    def __init__(self, read: Callable[[Any], list[RawRows]]) -> None:
        """Takes the function that reads a block."""
        super().__init__()
        self._read = read

    def expand(self, blocks: beam.PCollection) -> Any:
        """Applies the step."""
        return blocks | "Parse" >> beam.ParDo(_ParseFn(self._read)).with_outputs(DEAD_LETTERS, COUNTS, main="events")


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
        return (
            events
            | "Write" >> beam.FlatMap(write_shards, shards=self._shards, folder=self._folder)
            | "ByShard" >> beam.GroupByKey()
        )


class OrderEvents(beam.PTransform):
    """Shards -> OrderedShard (main), DEAD_LETTERS, COUNTS and LATEST (the latest occurred_at of the events kept).

    Exists as a step of its own because as_of, which pairing needs, is known only once every copy is dropped.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the folder for the files that hold the order."""
        super().__init__()
        self._folder = str(folder)

    def expand(self, shards: beam.PCollection) -> Any:
        """Applies the step."""
        outputs = beam.ParDo(_OrderFn(self._folder)).with_outputs(DEAD_LETTERS, COUNTS, LATEST, main="ordered")
        return shards | "Order" >> outputs


class _OrderFn(ThreadedFn):
    COLUMNS = ("event_id", "event_type", "occurred_at", "channel", "account_id", "conversation_id", "customer_id")

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def work(
        self, element: tuple[int, Iterable[ShardFile]], side: None
    ) -> tuple[OrderedShard, OrderedEvents, pa.Table, int | None]:
        shard, parts = element
        files = tuple(sorted(parts, key=lambda f: f.path))
        whole = read_shard(files, SHUFFLED_EVENTS.names)
        key_hash, event_hash = (whole[name].to_numpy() for name in ("key_hash", "event_hash"))
        ordered = order_events(whole.select(PARSED_EVENTS.names), key_hash, event_hash)
        path = f"{self._folder}/order-{shard:05}.npy"
        np.save(path, np.stack([ordered.rows, ordered.key]))
        letters = conflict_letters(whole.take(pa.array(ordered.conflicts)))
        kept = whole["occurred_at"].cast(pa.int64()).to_numpy()[ordered.rows]
        latest = int(kept.max()) if len(kept) else None
        return OrderedShard(shard, files, path), ordered, letters, latest

    def emit(self, result: tuple[OrderedShard, OrderedEvents, pa.Table, int | None]) -> Iterator[Any]:
        shard, ordered, letters, latest = result
        metrics.count("OrderEvents", rows_out=len(ordered.rows), dead_letters=letters.num_rows)
        if letters.num_rows:
            yield TaggedOutput(DEAD_LETTERS, letters)
        counts = Counter({"events_kept": len(ordered.rows), "exact_duplicates": ordered.exact_duplicate_count})
        counts.update(_letters_by_reason(letters))
        yield TaggedOutput(COUNTS, counts)
        if latest is not None:
            yield TaggedOutput(LATEST, latest)
            yield shard


class PairMessages(beam.PTransform):
    """OrderedShard -> (shard, conversations) (main), TURNS, STATISTICS (or names of files of them) and COUNTS.

    Exists to decide which message is answered by which reply, once, for every number that is made of it.
    """

    def __init__(self, settings: Settings, latest: beam.PCollection, folder: Path) -> None:
        """Takes the settings, the latest occurred_at (a PCollection of one value or None) and a folder for files."""
        super().__init__()
        self._settings, self._latest, self._folder = settings, latest, str(folder)

    def expand(self, shards: beam.PCollection) -> Any:
        """Applies the step."""
        pair = beam.ParDo(_PairFn(self._settings, self._folder), AsSingleton(self._latest))
        paired = shards | "Pair" >> pair.with_outputs(TURNS, STATISTICS, COUNTS, main="conversations")
        if self._settings.repeat_contact is None:
            return paired
        conversations, taken = paired.conversations | "RepeatContacts" >> FindRepeatContacts(self._settings)
        statistics = (paired[STATISTICS], taken) | "TakeBack" >> beam.Flatten()
        return {"conversations": conversations, TURNS: paired[TURNS], STATISTICS: statistics, COUNTS: paired[COUNTS]}


class _PairFn(ThreadedFn):
    COLUMNS = tuple(name for name in PARSED_EVENTS.names if not name.startswith("source") and name != "event_id")

    def __init__(self, settings: Settings, folder: str) -> None:
        super().__init__()
        self._settings, self._folder = settings, folder

    def work(self, element: OrderedShard, side: int | None) -> tuple[int, PairedShard, str, float]:
        started = time.monotonic()
        events = read_shard(element.files, self.COLUMNS).combine_chunks()
        rows, key = np.load(element.order)
        ordered = OrderedEvents(rows, key.astype(np.int32), np.empty(0, np.int64), 0)
        as_of = max(v for v in (self._settings.as_of, side) if v is not None)
        paired = pair_messages(events, ordered, self._settings, as_of)
        path = f"{self._folder}/statistics-{element.shard:05}"
        paired.statistics.save(path)
        return element.shard, replace(paired, statistics=Statistics.zero()), path, time.monotonic() - started

    def emit(self, result: tuple[int, PairedShard, str, float]) -> Iterator[Any]:
        shard, paired, path, seconds = result
        metrics.count("PairMessages", rows_out=paired.conversations.num_rows)
        metrics.observe_millis("PairMessages", seconds)
        yield TaggedOutput(STATISTICS, path)
        counts = {
            "stray_events": paired.stray_event_count,
            "conversations": paired.conversations.num_rows,
            "turns": paired.turns.num_rows,
        }
        yield TaggedOutput(COUNTS, Counter(counts))
        yield TaggedOutput(TURNS, (shard, paired.turns))
        yield shard, paired.conversations


class ComputeKpis(beam.PTransform):
    """Statistics by slice (or names of files of them) -> one tuple of tables: kpis, kpi_statistics, totals.

    Exists so that means, rates and percentiles are computed last, of what was added up.
    """

    def __init__(self, timezone: str, as_of: beam.PCollection) -> None:
        """Takes the zone of the windows and as_of, a PCollection of one value or None."""
        super().__init__()
        self._timezone, self._as_of = timezone, as_of

    def expand(self, statistics: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return (
            statistics
            | "Together" >> beam.combiners.ToList()
            | "Values" >> beam.Map(_kpi_tables, self._timezone, AsSingleton(self._as_of))
        )


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
