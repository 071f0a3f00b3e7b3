"""Runs the unbounded graph on a runner until it is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions

from pipelines.failures import named_runner, said_clearly
from pipelines.flink.master import on_cluster
from pipelines.unbounded.graph import GraphOptions, build
from sinks.change_files import begin_changes


def run(options: GraphOptions, beam_options: Any, beam_args: Sequence[str]) -> None:
    """Runs the graph.

    Args:
      options: what it does.
      beam_options: Beam's options, checked.
      beam_args: the same as they were typed.

    Raises:
      UserError: something that the user can mend.
      KeyboardInterrupt: it was stopped.
    """
    beam_options.view_as(StandardOptions).streaming = True
    begin_changes(options.output, options.about())
    with said_clearly(Path(options.output), named_runner(beam_args)), on_cluster(beam_options):
        with beam.Pipeline(options=beam_options) as pipeline:
            build(pipeline, options)
