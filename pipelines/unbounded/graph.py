"""The unbounded graph: from topics to change files.

ReadEvents -> SplitByBucket -> PairMessages -> ComputeKpis -> WriteChanges
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam

from pipelines.settings import settings_record
from pipelines.unbounded.source import CHANGES, ReadEvents, ReadOptions
from pipelines.unbounded.writing import WriteChanges
from transforms.settings import Settings
from transforms.stateful_steps import DIFFERENCES, AddUpKpis, GatherChanges, PairStreams, SplitByBucket


@dataclass(frozen=True)
class GraphOptions:
    """What the graph does.

    Attributes:
      read: what is read.
      settings: of the run.
      output: where change files go, a URL that Beam has a file system for.
      buckets: parts that conversation keys are in.
      shards: writers of change files.
      pair_every: seconds that rows wait for others.
      write_every: seconds that changes wait for others.
    """

    read: ReadOptions
    settings: Settings
    output: str
    buckets: int
    shards: int
    pair_every: float
    write_every: float

    def about(self) -> dict[str, Any]:
        """What must not change while the stream goes on, as JSON values."""
        return {
            "settings": settings_record(self.settings),
            "stream": asdict(self.read.stream),
            "topics": list(self.read.kafka.topics),
            "buckets": self.buckets,
        }


def build(pipeline: beam.Pipeline, options: GraphOptions) -> None:
    """Puts the steps together."""
    settings, shards = options.settings, options.shards
    read = pipeline | "ReadEvents" >> ReadEvents(options.read)
    rows = read.events | "SplitByBucket" >> SplitByBucket(options.buckets)
    pair = PairStreams(settings, options.read.stream, time.time, options.pair_every, shards)
    paired = rows | "PairMessages" >> pair
    add_up = AddUpKpis(settings.timezone, time.time, options.pair_every, shards)
    windows = paired[DIFFERENCES] | "ComputeKpis" >> add_up
    changes = (read[CHANGES], paired.changes, windows) | "Changes" >> beam.Flatten()
    changes | "WriteChanges" >> GatherChanges(WriteChanges(options.output), time.time, options.write_every)
