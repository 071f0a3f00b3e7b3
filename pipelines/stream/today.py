"""Today's KPIs per channel, from the statistics in a live store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np

from transforms.calendars import make_grid
from transforms.definitions import KPIS
from transforms.kpis import compute_totals
from transforms.stored_statistics import read_statistics
from transforms.tables import KPI_STATISTICS

_RUNNING = {kpi.name: kpi.numerator for kpi in KPIS if kpi.kind == "running"}
_CHANGES = {kpi.name: (kpi.numerator, kpi.denominator) for kpi in KPIS if kpi.kind == "change"}
_OF_DAYS = "WHERE basis = 'activity' AND grain = 'day' AND epoch_us(window_start)"


def today(live: duckdb.DuckDBPyConnection, statistics: str, timezone: str, watermark: int) -> dict[str, Any]:
    """The KPIs of the local day in which the watermark lies, on the activity basis, all accounts together.

    Args:
      live: a cursor of a live store, with UTC as its zone.
      statistics: SQL of all rows of kpi_statistics (`recent.all_rows` of the store).
      timezone: IANA zone in which days are cut.
      watermark: microseconds since the epoch.

    Returns:
      `date`, `timezone`, `window_start`, `window_end`, and `kpis`: a mapping of every KPI for each channel, the busiest
      first, and one for all channels together (`channel` is None).
    """
    start, end = _day(timezone, watermark)
    rows = live.sql(f"SELECT * FROM {statistics} {_OF_DAYS} = {start * 1_000_000}").to_arrow_table()
    totals = compute_totals(read_statistics(rows.cast(KPI_STATISTICS.schema)))
    values = {row["channel"]: row for row in totals.to_pylist()}
    running = _running(live, statistics, start)
    # In a channel without anything today somebody may still wait; all of them together are the last row.
    still = [channel for channel, sums in running.items() if channel is not None and any(sums.values())]
    channels = [*dict.fromkeys([*(channel for channel in values if channel is not None), *still])]
    nothing = {kpi.name: 0 if kpi.kind in ("count", "change", "running") else None for kpi in KPIS}
    kpis = [
        {**nothing, **values.get(channel, {}), **running.get(channel, {}), "channel": channel}
        for channel in (*channels, *([None] if running else []))
    ]
    first = datetime.fromtimestamp(start, UTC)
    return {
        "date": first.astimezone(ZoneInfo(timezone)).date().isoformat(),
        "timezone": timezone,
        "window_start": first.isoformat(),
        "window_end": datetime.fromtimestamp(end, UTC).isoformat(),
        "kpis": [{name: row[name] for name in ("channel", *nothing)} for row in kpis],
    }


def _day(timezone: str, moment: int) -> tuple[int, int]:
    """First instant of the local day of a moment, and of the next, seconds since the epoch."""
    grid = make_grid(timezone, moment, moment)
    slices = grid.slice_starts[grid.slices_of(np.array([moment]))]
    starts, ends = grid.windows_of("day", slices)
    return int(starts[0]), int(ends[0])


def _running(live: duckdb.DuckDBPyConnection, statistics: str, start: int) -> dict[str | None, dict[str, int]]:
    """The running sums up to the end of a day, by channel; None: all together."""
    sums = ", ".join(
        f"CAST(sum({into}) - sum({out}) AS BIGINT)" for into, out in (_CHANGES[name] for name in _RUNNING.values())
    )
    found = live.execute(
        f"SELECT channel, {sums} FROM {statistics} {_OF_DAYS} <= ? GROUP BY GROUPING SETS ((channel), ()) "
        "HAVING count(*) > 0 ORDER BY channel NULLS LAST",
        [start * 1_000_000],
    ).fetchall()
    return {channel: dict(zip(_RUNNING, values, strict=True)) for channel, *values in found}
