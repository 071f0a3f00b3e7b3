"""The batch pipeline: files of raw events in, one published result out.

One run is one cycle: rows -> ParseEvents -> PairMessages -> ComputeKpis -> one commit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam

from pipelines.commit import Warehouse, begin_warehouse, commit_run
from pipelines.cycle import Cycle, NothingNew, begin_growth, latest_of
from pipelines.failures import named_runner, said_clearly
from pipelines.flink.master import on_cluster
from pipelines.growth import ROWS_FOLDER, STATE
from pipelines.memory import keep_freed_memory
from pipelines.options import BatchOptions, parse_beam_options
from pipelines.progress import Progress, SilentProgress
from pipelines.sources.ahead import taken
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile, list_files
from pipelines.sources.formats import blocks, estimate_rows, read_block
from pipelines.stages import Stages, Tell
from pipelines.summary import RunSummary
from pipelines.work_folder import (
    NOW_LETTERS_FOLDER,
    WAS_LETTERS_FOLDER,
    KeepChanges,
    KeepCounts,
    KeepLetters,
    KeepTables,
    KeepWakes,
    WriteTables,
    read_counts,
)
from sinks.duckdb import WarehouseLoader
from sinks.publish import open_snapshot
from transforms.pair_steps import CHANGES, STATISTICS, TURNS, WAKES, WAS_LATEST, WAS_LETTERS, Growing, PairMessages
from transforms.raw_rows import RawRows
from transforms.steps import COUNTS, DEAD_LETTERS, LATEST, ComputeKpis, Gather, ParseEvents, ShuffleEvents
from transforms.tables import CONVERSATIONS
from transforms.tables import TURNS as TURNS_TABLE

ADDING_UP = "Adding up KPIs"
"""The stage in which nothing but the statistics is left to be computed."""

WORK = "_work"
"""Folder of a snapshot in the making for what is not part of the result."""

SHUFFLED = "shuffled"
"""Folder of WORK for the shuffled events, which are most of it."""


def run(options: BatchOptions, progress: Progress | None = None) -> RunSummary | NothingNew:
    """Runs the batch pipeline and publishes its result.

    Args:
      options: what to read, where to write, and how.
      progress: is told how far the run is.

    Returns:
      What was read, what came of it and where it is; or that an appending run found nothing new.

    Raises:
      UserError: input, settings or output are not what they have to be; then nothing was published.
    """
    started = time.monotonic()
    keep_freed_memory()
    beam_options = parse_beam_options(options.beam_args)
    clearly = said_clearly(options.output, named_runner(options.beam_args))
    with clearly, Stages(progress or SilentProgress()) as stages, open_snapshot(options.output) as snapshot:
        files = list_files(options.inputs, options.format)
        growth = begin_growth(options, snapshot, files) if options.append else None
        if isinstance(growth, NothingNew):
            return growth
        files = files if growth is None else list(growth.plan.files)
        rows = sum(map(estimate_rows, files))
        cycle = Cycle(options, options.settings, files, rows, growth)
        while True:
            work = snapshot.path / WORK
            (work / SHUFFLED).mkdir(parents=True)
            stages.begin("Reading events", rows)
            with begin_warehouse(snapshot, cycle) as warehouse, ThreadPoolExecutor(1) as beside:
                stages.on_begin = partial(_paired, stages, warehouse, beside, work)
                with on_cluster(beam_options), beam.Pipeline(options=beam_options) as pipeline:
                    build(pipeline, cycle, snapshot.path, stages)
                beside.shutdown()
                again = cycle.again(read_counts(work))
                if again is None:
                    stages.begin("Writing the warehouse")
                    return commit_run(snapshot, work, cycle, stages, warehouse, started)
            cycle = again
            stages.files.clear()
            snapshot.clear()


def build(pipeline: beam.Pipeline, cycle: Cycle, root: Path, stages: Stages) -> None:
    """Puts the steps together.

    Args:
      pipeline: gets the steps.
      cycle: what to read, and what to add it to.
      root: snapshot in the making: tables of the result, and the folder WORK.
      stages: is told how far the run is.
    """
    work, options, settings, growth = root / WORK, cycle.options, cycle.settings, cycle.growth
    shards, before = cycle.shards, cycle.before
    growing = None if growth is None else Growing(root / STATE / ROWS_FOLDER, shards, before)
    sources = {} if growth is None else growth.plan.sources
    parsed = _blocks(pipeline, cycle.files, options) | "ParseEvents" >> ParseEvents(_Read(stages.token, sources))
    latest = parsed[LATEST] | "Moments" >> beam.Map(_moment)
    as_of = latest | "LatestRead" >> Gather(latest_of) | "AsOf" >> beam.Map(cycle.as_of)
    shuffled = parsed.events | "ShuffleEvents" >> ShuffleEvents(shards, work / SHUFFLED, all_shards=before is not None)
    told = shuffled | "TellPair" >> Tell(stages.token, "Pairing messages")
    paired = told | "PairMessages" >> PairMessages(settings, as_of, work, growing and growing.itself)
    first, stored = Tell(stages.token, ADDING_UP), None if before is None else before.statistics
    kpis = paired[STATISTICS] | "ComputeKpis" >> ComputeKpis(settings.timezone, as_of, first, stored)

    if before is None:
        for spec, rows in ((CONVERSATIONS, paired["conversations"]), (TURNS_TABLE, paired[TURNS])):
            rows | f"Write{spec.name}" >> WriteTables(root, spec, shards, stages.token)
    else:
        paired[CHANGES] | "KeepChanges" >> KeepChanges(work)
        paired[WAS_LETTERS] | "KeepWasLetters" >> KeepLetters(work, WAS_LETTERS_FOLDER)
    if growing is not None:
        paired[WAKES] | "KeepWakes" >> KeepWakes(work)
    kpis | "KeepKpis" >> KeepTables(work)
    parsed[DEAD_LETTERS] | "KeepLetters" >> KeepLetters(work)
    paired[DEAD_LETTERS] | "KeepPairLetters" >> KeepLetters(work, NOW_LETTERS_FOLDER)
    counts = (parsed[COUNTS], paired[COUNTS]) | "Counts" >> beam.Flatten()
    counts | "KeepCounts" >> KeepCounts(work, latest, paired[LATEST], paired[WAS_LATEST])


def _moment(latest: tuple[str, int]) -> int:
    return latest[1]


def _paired(stages: Stages, warehouse: Warehouse, beside: ThreadPoolExecutor, work: Path, stage: str) -> None:
    """Lets go of the shuffled events, and lets the warehouse take conversations and turns, while KPIs are added up.

    The commit adds what the warehouse missed.
    """
    if stage != ADDING_UP:
        return
    beside.submit(shutil.rmtree, work / SHUFFLED)
    if isinstance(warehouse, WarehouseLoader):
        for table, files in stages.files.items():
            warehouse.add_files(table, sorted(files))


def _blocks(pipeline: beam.Pipeline, files: list[InputFile], options: BatchOptions) -> beam.PCollection:
    """The blocks of all files; an adapter sees them all at once, since a thread may span files."""
    if options.source is None:
        return pipeline | "Files" >> beam.Create(files) | "Blocks" >> beam.FlatMap(blocks)
    return pipeline | "Files" >> beam.Create([files]) | "Adapt" >> beam.FlatMap(_adapted, options.source)


def _adapted(files: list[InputFile], source: str) -> Iterator[Block]:
    from pipelines.sources.adapted import read_adapter

    yield from read_adapter(files, source)


class _Read:
    """Reads a block, names the source of its rows, and tells how many there were."""

    def __init__(self, token: str, sources: Mapping[str, str]) -> None:
        self._token, self._sources = token, sources

    def __call__(self, block: Block) -> list[RawRows]:
        parts = taken(block) or read_block(block)
        Stages.advance(self._token, sum(len(part.positions) + len(part.unreadable.positions) for part in parts))
        if block.source in self._sources:
            parts = [replace(part, source=self._sources[block.source]) for part in parts]
        return parts


if __name__ == "__main__":
    import sys

    from pipelines.cli import main
    from pipelines.exits import run_process

    sys.exit(run_process(lambda: main(["batch", *sys.argv[1:]])))
