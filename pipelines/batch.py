"""The batch pipeline: files of raw events in, one published result out.

One run is one cycle: rows -> ParseEvents -> PairMessages -> ComputeKpis -> one commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam

from pipelines.commit import commit_run
from pipelines.failures import named_runner, said_clearly
from pipelines.memory import keep_freed_memory
from pipelines.options import BatchOptions, parse_beam_options
from pipelines.progress import Progress, SilentProgress
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile, list_files
from pipelines.sources.formats import blocks, estimate_rows, read_block
from pipelines.stages import Stages, Tell
from pipelines.summary import RunSummary
from pipelines.work_folder import KeepCounts, KeepLetters, KeepTables, WriteTables, read_counts
from sinks.duckdb import WarehouseLoader
from sinks.publish import WAREHOUSE, open_snapshot
from transforms.raw_rows import RawRows
from transforms.settings import Settings
from transforms.steps import (
    COUNTS,
    DEAD_LETTERS,
    LATEST,
    STATISTICS,
    TURNS,
    ComputeKpis,
    PairMessages,
    ParseEvents,
    ShuffleEvents,
)
from transforms.tables import CONVERSATIONS
from transforms.tables import TURNS as TURNS_TABLE

ROWS_A_SHARD = 1_400_000
"""Rows that are paired together in memory; two shards are under way at a time."""

FEW_ROWS = 200_000
"""Fewer rows than this are one shard."""

ADDING_UP = "Adding up KPIs"
"""The stage in which nothing but the statistics is left to be computed."""

WORK = "_work"
"""Folder of a snapshot in the making for what is not part of the result."""


def run(options: BatchOptions, progress: Progress | None = None) -> RunSummary:
    """Runs the batch pipeline and publishes its result.

    Args:
      options: what to read, where to write, and how.
      progress: is told how far the run is.

    Returns:
      What was read, what came of it and where it is.

    Raises:
      UserError: input, settings or output are not what they have to be; then nothing was published.
    """
    started = time.monotonic()
    keep_freed_memory()
    beam_options = parse_beam_options(options.beam_args)
    clearly = said_clearly(options.output, named_runner(options.beam_args))
    with clearly, Stages(progress or SilentProgress()) as stages, open_snapshot(options.output) as snapshot:
        files = list_files(options.inputs, options.format)
        settings, rows = options.settings, sum(map(estimate_rows, files))
        while True:
            work = snapshot.path / WORK
            work.mkdir()
            stages.begin("Reading events", rows)
            with WarehouseLoader(snapshot.path / WAREHOUSE) as loader:
                stages.on_begin = partial(_load_facts, stages, loader)
                with beam.Pipeline(options=beam_options) as pipeline:
                    build(pipeline, files, options, settings, snapshot.path, shard_count(rows), stages)
                left = read_counts(work)
                if settings.as_of is not None or left.latest_read == left.latest_kept:
                    stages.begin("Writing the warehouse")
                    return commit_run(snapshot, work, files, options, stages, loader, started)
            # The very latest event was a copy that lost to an earlier one: once more, with as_of known.
            settings = replace(settings, as_of=left.latest_kept)
            stages.files.clear()
            snapshot.clear()


def build(
    pipeline: beam.Pipeline,
    files: list[InputFile],
    options: BatchOptions,
    settings: Settings,
    root: Path,
    shards: int,
    stages: Stages,
) -> None:
    """Puts the steps together.

    Args:
      pipeline: gets the steps.
      files: what to read.
      options: of the run.
      settings: of the run; without as_of the latest event read is taken for it.
      root: snapshot in the making: tables of the result, and the folder WORK.
      shards: number of shards.
      stages: is told how far the run is.
    """
    work = root / WORK
    parsed = _blocks(pipeline, files, options) | "ParseEvents" >> ParseEvents(_Read(stages.token))
    read = parsed[LATEST] | "LatestRead" >> beam.CombineGlobally(_latest)
    as_of = read | "AsOf" >> beam.Map(_as_of, settings)
    shuffled = parsed.events | "ShuffleEvents" >> ShuffleEvents(shards, work)
    told = shuffled | "TellPair" >> Tell(stages.token, "Pairing messages")
    paired = told | "PairMessages" >> PairMessages(settings, as_of, work)
    kept = paired[LATEST] | "LatestKept" >> beam.CombineGlobally(_latest)
    kpis = paired[STATISTICS] | "ComputeKpis" >> ComputeKpis(settings.timezone, as_of, Tell(stages.token, ADDING_UP))

    paired["conversations"] | "WriteConversations" >> WriteTables(root, CONVERSATIONS, "started_at", stages.token)
    paired[TURNS] | "WriteTurns" >> WriteTables(root, TURNS_TABLE, "started_at", stages.token)
    kpis | "KeepKpis" >> KeepTables(work)
    (parsed[DEAD_LETTERS], paired[DEAD_LETTERS]) | "Letters" >> beam.Flatten() | "KeepLetters" >> KeepLetters(work)
    counts = (parsed[COUNTS], paired[COUNTS]) | "Counts" >> beam.Flatten()
    counts | "KeepCounts" >> KeepCounts(work, read, kept)


def shard_count(rows: int) -> int:
    """Number of shards: one for little, else an even number, for two are under way at a time."""
    return 1 if rows < FEW_ROWS else 2 * -(-rows // (2 * ROWS_A_SHARD))


def _load_facts(stages: Stages, loader: WarehouseLoader, stage: str) -> None:
    """Lets the warehouse take conversations and turns while the KPIs are added up; the commit adds what it missed."""
    if stage == ADDING_UP:
        for table, files in stages.files.items():
            loader.add_files(table, sorted(files))


def _blocks(pipeline: beam.Pipeline, files: list[InputFile], options: BatchOptions) -> beam.PCollection:
    """The blocks of all files; an adapter sees them all at once, since a thread may span files."""
    if options.source is None:
        return pipeline | "Files" >> beam.Create(files) | "Blocks" >> beam.FlatMap(blocks)
    return pipeline | "Files" >> beam.Create([files]) | "Adapt" >> beam.FlatMap(_adapted, options.source)


def _adapted(files: list[InputFile], source: str) -> Iterator[Block]:
    from pipelines.sources.adapted import read_adapter

    yield from read_adapter(files, source)


class _Read:
    """Reads a block and tells how many rows it had."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, block: Block) -> list[RawRows]:
        parts = read_block(block)
        Stages.advance(self._token, sum(len(part.positions) + len(part.unreadable.positions) for part in parts))
        return parts


def _latest(times: object) -> int | None:
    """The latest of some times; None where there is none."""
    return max((time for time in times if time is not None), default=None)  # type: ignore[attr-defined]


def _as_of(latest: int | None, settings: Settings) -> int | None:
    return settings.as_of if settings.as_of is not None else latest


if __name__ == "__main__":
    import sys

    from pipelines.cli import main

    sys.exit(main(["batch", *sys.argv[1:]]))
