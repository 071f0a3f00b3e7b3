"""What a stream needs of Beam's options on Flink."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.failures import named_runner

NEEDED = ("--finish_bundle_before_checkpointing",)
"""Without it, what a bundle gives while a checkpoint is made is kept back until something else comes the same way: at
the end of all events, or after a resume, for ever."""

DEFAULTS = {"--checkpointing_interval": "2000", "--max_bundle_size": "20", "--max_bundle_time_mills": "200"}
"""Milliseconds between checkpoints; and elements and milliseconds of a bundle, on which the latency depends."""


def stream_args(beam_args: Sequence[str]) -> list[str]:
    """Beam's options as they were typed, and on Flink what a stream needs beside them.

    Args:
      beam_args: as they were typed.

    Returns:
      Those options; for another runner, what came.
    """
    runner = (named_runner(beam_args) or "").lower().removesuffix("runner")
    if runner.rpartition(".")[2] != "flink":
        return list(beam_args)
    given = {word.partition("=")[0] for word in beam_args}
    defaults = [f"{name}={value}" for name, value in DEFAULTS.items() if name not in given]
    return [*beam_args, *defaults, *(name for name in NEEDED if name not in given)]
