"""How much there is, held against what there was before: what deserves a look, without being wrong for sure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd

from pipelines.audit.measures import escaped
from pipelines.report.comparison import BY_NAME, WEEKS, by_day, usual_ranges
from pipelines.report.period import first_instant
from pipelines.report.series import ALL, read_series
from pipelines.report.warehouse import Filters, Warehouse, open_warehouse
from transforms.tables import RUNS

VOLUME = "volume"
MEASURE = "message_count"
DAYS = 31
"""Days looked at, at most, where a run completes many."""

EARLIER_RUNS, RUNS_AT_LEAST = 20, 3
"""Runs before that the share of dead letters is held against, and how many there have to be."""

SHARE_AT_LEAST, TIMES = 1.0, 3.0
"""Dead letters are many from so many in 100 rows on, and so many times what is usual."""

KEPT = 0.9
"""A result that has less than this part of the conversations before has lost some."""


def volume_frame(snapshot: Path) -> pd.DataFrame:
    """Measured values with the limits that history gives them.

    Args:
      snapshot: folder of a result, or of one in the making.

    Returns:
      Columns what, value, low and high; low and high are missing where there is no such limit, or too little history.
    """
    warehouse = open_warehouse(snapshot, Filters())
    with warehouse.connection:
        rows = [*_days(warehouse), *_of_runs(warehouse)]
    found = pd.DataFrame(rows, columns=["what", "value", "low", "high"])
    return found.astype({"what": object, "value": float, "low": float, "high": float})


def _days(warehouse: Warehouse) -> Iterator[tuple[str, float, float, float]]:
    """Messages of each day that this commit completed, and of each channel that is usually there."""
    as_of, known = warehouse.run["as_of"], warehouse.known_from
    if as_of is None or known is None:
        return
    zone = warehouse.zone
    last = as_of.astimezone(ZoneInfo(zone)).date() - timedelta(days=1)
    first = max(_first_new(warehouse, last), last - timedelta(days=DAYS - 1), known)
    if first > last:
        return
    since = first_instant(first - timedelta(weeks=WEEKS), zone)
    series = read_series(warehouse, "day", since, first_instant(last + timedelta(days=1), zone))
    for channel in dict.fromkeys(series.index.get_level_values("channel")):
        days = by_day(series, zone, str(channel))
        ranges = usual_ranges(days, BY_NAME[MEASURE])
        for day in (first + timedelta(days=place) for place in range((last - first).days + 1)):
            if day not in days.index or math.isnan(ranges.loc[day, "low"]):
                continue
            value, low, high = float(days.loc[day, MEASURE]), *map(float, ranges.loc[day, ["low", "high"]])
            if channel == ALL:
                yield f"messages on {day}", value, low, high
            else:
                # A single channel is told of where it is silent only: a few more or less are nobody's concern.
                yield f"messages on {day} in channel {escaped(str(channel))}", value, min(low, 1.0), math.nan


def _first_new(warehouse: Warehouse, last: date) -> date:
    """The first day that was not complete at the commit before; the last one where there is none before."""
    before = warehouse.rows(f"SELECT as_of FROM {RUNS.name} ORDER BY commit_id DESC LIMIT 1 OFFSET 1")
    if not before or before[0]["as_of"] is None:
        return last
    return before[0]["as_of"].astimezone(ZoneInfo(warehouse.zone)).date()


def _of_runs(warehouse: Warehouse) -> Iterator[tuple[str, float, float, float]]:
    """The share of dead letters, and the number of conversations, against the runs before."""
    runs: list[dict[str, Any]] = warehouse.rows(
        f"SELECT commit_id, rows_read_count, dead_letter_count, conversation_count FROM {RUNS.name} "
        f"ORDER BY commit_id DESC LIMIT {EARLIER_RUNS + 1}"
    )
    now, before = runs[0], runs[1:]
    shares = [_share(run) for run in before if run["rows_read_count"] > 0]
    if now["rows_read_count"] > 0:
        limit = max(SHARE_AT_LEAST, TIMES * median(shares)) if len(shares) >= RUNS_AT_LEAST else math.nan
        yield "dead letters in 100 rows", _share(now), math.nan, limit
    was = math.nan if not before else float(before[0]["conversation_count"])
    yield "conversations", float(now["conversation_count"]), KEPT * was, math.nan


def _share(run: dict[str, Any]) -> float:
    return 100.0 * float(run["dead_letter_count"]) / float(run["rows_read_count"])
