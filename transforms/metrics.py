"""Beam metrics: the same few names in every transform; the namespace is the transform's name."""

from __future__ import annotations

from apache_beam.metrics import Metrics

NAMES = ("rows_in", "rows_out", "dead_letters", "late_events", "conversations_revised")


def count(transform: str, **counts: int) -> None:
    """Adds to the counters of a transform.

    Args:
      transform: name of the transform.
      counts: amounts by one of NAMES.
    """
    for name, amount in counts.items():
        if name not in NAMES:
            raise ValueError(f"expected one of {', '.join(NAMES)}, got {name}")
        Metrics.counter(transform, name).inc(amount)


def observe_millis(transform: str, seconds: float) -> None:
    """Adds a duration to the one distribution of a transform, in whole milliseconds."""
    Metrics.distribution(transform, "work_millis").update(int(seconds * 1000))
