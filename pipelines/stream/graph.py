"""The pipeline of a cycle: the steps of a batch run, over what came in and the open rows of the keys that it touches.

    pieces -> ParseEvents -> ShuffleEvents -> PairMessages -> ComputeKpis

It is built once and run for every cycle: to build and to translate it would take longer than what most cycles do. So
its steps carry a token, and find what differs from cycle to cycle under it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment
from apache_beam.transforms.window import GlobalWindows

from pipelines.options import parse_beam_options
from pipelines.work_folder import (
    LATE_FOLDER,
    NOW_LETTERS_FOLDER,
    WAS_LETTERS_FOLDER,
    KeepChanges,
    KeepLetters,
    KeepTables,
    KeepWakes,
    keep_counts,
)
from transforms.pair_steps import CHANGES, STATISTICS, WAKES, WAS_LETTERS, Growing, PairMessages
from transforms.raw_rows import RawRows
from transforms.settings import Settings
from transforms.shuffle import NO_ROWS
from transforms.steps import COUNTS, DEAD_LETTERS, LATE, LATEST, ComputeKpis, Gather, ParseEvents, ShuffleFn
from transforms.tables import LATE_EVENTS


class Piece(Protocol):
    """A part of what a cycle reads; `source` is the partition that it belongs to."""

    @property
    def source(self) -> str:
        """Name of the partition."""
        ...


@dataclass(frozen=True)
class CycleInput:
    """What differs from cycle to cycle.

    Attributes:
      pieces: reads what the cycle takes, part by part.
      read: the rows of a part.
      split: tells events from late ones (rows of LATE_EVENTS).
      not_after: an event after this moment is too far in the future, microseconds.
      as_of: the new watermark, by the latest occurred_at of each partition that has new rows.
      growing: the open rows, and where those of this cycle go.
    """

    pieces: Callable[[], Iterable[Piece]]
    read: Callable[[Any], list[RawRows]]
    split: Callable[[pa.Table], tuple[pa.Table, pa.Table]]
    not_after: int
    as_of: Callable[[Mapping[str, int]], int | None]
    growing: Growing


class CycleGraph:
    """The pipeline of a cycle, with some number of shards; a context manager."""

    _inputs: ClassVar[dict[str, CycleInput]] = {}

    def __init__(self, settings: Settings, shards: int, work: Path) -> None:
        """Takes the settings, the number of shards, and the folder in which a cycle leaves what it came to."""
        self.token = uuid.uuid4().hex
        self._settings, self._shards, self._work = settings, shards, work
        self._options = parse_beam_options(())
        self._runner = FnApiRunner()
        self._translated: Any = None

    def __enter__(self) -> CycleGraph:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forgets the last input."""
        self._inputs.pop(self.token, None)

    def run(self, cycle: CycleInput) -> None:
        """Runs one cycle."""
        self._inputs[self.token] = cycle
        if self._translated is None:
            pipeline = beam.Pipeline(self._runner, self._options)
            self._build(pipeline)
            environment = EmbeddedPythonEnvironment.default()
            self._translated = pipeline.to_runner_api(default_environment=environment)
        self._runner.run_via_runner_api(self._translated, self._options)

    def _build(self, pipeline: beam.Pipeline) -> None:
        token, work, settings = self.token, self._work, self._settings
        pieces = pipeline | "Cycle" >> beam.Impulse() | "Pieces" >> beam.FlatMap(_pieces, token)
        parsed = pieces | "ParseEvents" >> ParseEvents(partial(_read, token), partial(_split, token))
        as_of = parsed[LATEST] | "Watermark" >> Gather(partial(_watermark, token))
        written = parsed.events | "ShuffleEvents" >> beam.ParDo(_ShuffleFn(self._shards, str(work)))
        shuffled = written | "ByShard" >> beam.GroupByKey()
        paired = shuffled | "PairMessages" >> PairMessages(settings, as_of, work, partial(_growing, token))
        stored = partial(_stored, token)
        kpis = paired[STATISTICS] | "ComputeKpis" >> ComputeKpis(settings.timezone, as_of, stored=stored)
        paired[CHANGES] | "KeepChanges" >> KeepChanges(work)
        paired[WAS_LETTERS] | "KeepWasLetters" >> KeepLetters(work, WAS_LETTERS_FOLDER)
        paired[WAKES] | "KeepWakes" >> KeepWakes(work)
        kpis | "KeepKpis" >> KeepTables(work)
        parsed[DEAD_LETTERS] | "KeepLetters" >> KeepLetters(work)
        parsed[LATE] | "KeepLate" >> KeepLetters(work, LATE_FOLDER, LATE_EVENTS.key)
        paired[DEAD_LETTERS] | "KeepPairLetters" >> KeepLetters(work, NOW_LETTERS_FOLDER)
        # (As side inputs they take one step less than flattened.)
        parsed[COUNTS] | "KeepCounts" >> Gather(_keep_counts, work, AsIter(paired[COUNTS]), AsIter(paired[LATEST]))


class _ShuffleFn(ShuffleFn):
    """As ShuffleEvents, and tells of every shard, so that one without new events is looked at too.

    There is one bundle in a cycle; what it ends with takes two steps less than what is flattened into it.
    """

    def finish_bundle(self) -> Iterator[Any]:
        yield from super().finish_bundle()
        for shard in range(self._shards):
            yield GlobalWindows.windowed_value((shard, NO_ROWS))


def _input(token: str) -> CycleInput:
    return CycleGraph._inputs[token]


def _pieces(once: bytes, token: str) -> Iterator[Piece]:
    yield from _input(token).pieces()


def _read(token: str, piece: Piece) -> list[RawRows]:
    cycle = _input(token)
    return [replace(rows, not_after=cycle.not_after) for rows in cycle.read(piece)]


def _split(token: str, events: pa.Table) -> tuple[pa.Table, pa.Table]:
    return _input(token).split(events)


def _watermark(token: str, latest: Iterable[tuple[str, int]]) -> int | None:
    by_partition: dict[str, int] = {}
    for partition, moment in latest:
        by_partition[partition] = max(moment, by_partition.get(partition, moment))
    return _input(token).as_of(by_partition)


def _growing(token: str) -> Growing:
    return _input(token).growing


def _keep_counts(
    parsed: Iterable[Counter[str]], work: Path, paired: Iterable[Counter[str]], kept: Iterable[int]
) -> None:
    keep_counts(chain(parsed, paired), work, (), kept, ())


def _stored(token: str, windows: Mapping[str, list[int]]) -> pa.Table:
    before = _growing(token).before
    assert before is not None
    return before.statistics(windows)
