"""The batch pipeline: files of raw events in, one published result out.

One run is one cycle: rows -> ParseEvents -> PairMessages -> ComputeKpis -> one commit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam

from pipelines.commit import commit_run
from pipelines.memory import keep_freed_memory
from pipelines.options import BatchOptions, parse_beam_options
from pipelines.progress import Progress, SilentProgress
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile, list_files
from pipelines.sources.formats import blocks, estimate_rows, read_block
from pipelines.stages import Stages, Tell
from pipelines.summary import RunSummary
from pipelines.work_folder import KeepCounts, KeepLetters, KeepTables, WriteTables
from sinks.publish import open_snapshot
from transforms.errors import UserError
from transforms.raw_rows import RawRows
from transforms.settings import Settings
from transforms.steps import (
    COUNTS,
    DEAD_LETTERS,
    LATEST,
    STATISTICS,
    TURNS,
    ComputeKpis,
    OrderEvents,
    PairMessages,
    ParseEvents,
    ShuffleEvents,
)
from transforms.tables import CONVERSATIONS
from transforms.tables import TURNS as TURNS_TABLE

ROWS_A_SHARD = 1_400_000
"""Rows that are paired together in memory; two shards are under way at a time."""

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
    with Stages(progress or SilentProgress()) as stages, open_snapshot(options.output) as snapshot:
        files = list_files(options.inputs, options.format)
        rows = sum(estimate_rows(file) for file in files)
        shards = max(1, -(-rows // ROWS_A_SHARD))
        stages.begin("Reading events", rows)
        work = snapshot.path / WORK
        work.mkdir()
        try:
            with beam.Pipeline(options=beam_options) as pipeline:
                build(pipeline, files, options, snapshot.path, shards, stages)
        except Exception as error:
            raise _user_error(error) or error from error
        stages.begin("Writing the warehouse")
        return commit_run(snapshot, work, files, options, stages, started)


def build(
    pipeline: beam.Pipeline, files: list[InputFile], options: BatchOptions, root: Path, shards: int, stages: Stages
) -> None:
    """Puts the steps together.

    Args:
      pipeline: gets the steps.
      files: what to read.
      options: of the run.
      root: snapshot in the making: tables of the result, and the folder WORK.
      shards: number of shards.
      stages: is told how far the run is.
    """
    settings, work = options.settings, root / WORK
    found = _blocks(pipeline, files, options)
    parsed = found | "ParseEvents" >> ParseEvents(_Read(stages.token))
    shuffled = parsed.events | "ShuffleEvents" >> ShuffleEvents(shards, work)
    told = shuffled | "TellOrder" >> Tell(stages.token, "Ordering events")
    ordered = told | "OrderEvents" >> OrderEvents(work)
    latest = ordered[LATEST] | "Latest" >> beam.CombineGlobally(_latest)
    as_of = latest | "AsOf" >> beam.Map(_as_of, settings)
    told = ordered.ordered | "TellPair" >> Tell(stages.token, "Pairing messages", after=latest)
    paired = told | "PairMessages" >> PairMessages(settings, latest, work)
    kpis = paired[STATISTICS] | "ComputeKpis" >> ComputeKpis(settings.timezone, as_of)

    paired["conversations"] | "WriteConversations" >> WriteTables(root, CONVERSATIONS, "started_at")
    paired[TURNS] | "WriteTurns" >> WriteTables(root, TURNS_TABLE, "started_at")
    kpis | "KeepKpis" >> KeepTables(work)
    (parsed[DEAD_LETTERS], ordered[DEAD_LETTERS]) | "Letters" >> beam.Flatten() | "KeepLetters" >> KeepLetters(work)
    counts = (parsed[COUNTS], ordered[COUNTS], paired[COUNTS]) | "Counts" >> beam.Flatten()
    counts | "KeepCounts" >> KeepCounts(work, latest)


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


def _user_error(error: BaseException) -> UserError | None:
    """The UserError behind an error of Beam's, which carries what a worker raised as the text of its traceback."""
    if isinstance(error, UserError):
        return error
    said = re.findall(
        r"^(?:transforms\.errors\.)?UserError: (.*?)(?: \[while running .*\])?$", str(error), re.MULTILINE
    )
    return UserError(said[-1]) if said else None


if __name__ == "__main__":
    import sys

    from pipelines.cli import main

    sys.exit(main(["batch", *sys.argv[1:]]))
