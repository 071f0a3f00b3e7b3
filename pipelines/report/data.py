"""Everything that a report says, read once from a published result."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd

from pipelines.audit.results import Mark
from pipelines.report import facts
from pipelines.report.comparison import WEEKS, Comparison, Unusual, by_day, compare, dates_index, unusual_days
from pipelines.report.period import Period, first_instant
from pipelines.report.series import ALL, read_series
from pipelines.report.warehouse import PARTS, Filters, Warehouse
from transforms.tables import RUNS

TREND_DAYS = 28
RESTATED_KPIS = (
    "conversation_count",
    "message_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "first_contact_resolution_rate",
    "response_rate",
    "resolution_rate",
    "avg_csat",
)
"""KPIs of which a restated window shows what it said and says."""


@dataclass(frozen=True)
class ReportData:
    """What a report says, without words.

    Attributes:
      period: which days.
      filters: which accounts and channels.
      run: the latest row of `runs`.
      audit: the mark that the result was published with; None where none is on record.
      known: first and last local day that the result knows of; None where it knows of none.
      is_complete: time has passed the period's end.
      fell: anything fell into the period.
      compared: every KPI against what was before.
      unusual: unusual days in the period.
      unusual_in_trend: unusual days that trends show.
      trend_days: the days that trends show, the last one being the period's last.
      series: every KPI by channel and day, with the weeks before the trend.
      windows: every KPI by channel and window of the period's grain: the period and the one before.
      channels: those in which anything fell, the busiest in the trend first.
      bars: of a histogram, the number of values in each bar of facts.EDGES.
      hours: facts.by_hour over the trend's days.
      groups: facts.by_dimension of each dimension.
      waits: facts.longest_waits.
      scores: facts.scores.
      since: number of the commit that the report before was made of.
      restated: facts.restated.
      dead_letters: facts.dead_letters.
      runs: facts.runs.
      definitions: facts.definitions.
    """

    period: Period
    filters: Filters
    run: dict[str, Any]
    audit: Mark | None
    known: tuple[date, date] | None
    is_complete: bool
    fell: bool
    compared: list[Comparison]
    unusual: list[Unusual]
    unusual_in_trend: list[Unusual]
    trend_days: list[date]
    series: pd.DataFrame
    windows: pd.DataFrame
    channels: list[str]
    bars: dict[str, list[int]]
    hours: list[facts.Row]
    groups: dict[str, list[facts.Row]]
    waits: list[facts.Row]
    scores: list[facts.Row]
    since: int
    restated: list[facts.Row]
    dead_letters: list[facts.Row]
    runs: list[facts.Row]
    definitions: list[facts.Row]

    def trend(self, kpi: str, channel: str = ALL) -> np.ndarray:
        """A KPI of the trend's days; NaN where it has no value."""
        days = by_day(self.series, self.period.zone, channel)
        return days[kpi].reindex(dates_index(self.trend_days)).to_numpy(float)

    def now(self, channel: str) -> pd.Series | None:
        """Every KPI of a channel in the period; None where the result does not reach so far."""
        key = (channel, self.period.start_at)
        return self.windows.loc[key] if key in self.windows.index else None


def gather(warehouse: Warehouse, period: Period, filters: Filters, since: int | None) -> ReportData:
    """Reads everything.

    Args:
      warehouse: the result.
      period: which days.
      filters: which accounts and channels.
      since: number of the commit that the report before was made of; None: the one before the latest.
    """
    zone, last = period.zone, period.last
    count = max(TREND_DAYS, (period.after - period.first).days)
    trend_days = [last - timedelta(days=back) for back in range(count)][::-1]
    series = read_series(warehouse, "day", first_instant(trend_days[0] - timedelta(weeks=WEEKS), zone), period.end_at)
    windows = series
    if period.grain != "day":
        windows = read_series(warehouse, period.grain, period.before.start_at, period.end_at)
    days = by_day(series, zone)
    as_of = warehouse.run["as_of"]
    unusual = unusual_days(days, trend_days[0], last, as_of)
    trend_at = first_instant(trend_days[0], zone)
    recent = series[series.index.get_level_values("window_start") >= trend_at]
    busy = recent.groupby(level="channel")[["message_count", "reply_count"]].sum().sum(axis=1)
    channels = [str(name) for name in busy.sort_values(ascending=False, kind="stable").index if name != ALL]
    known = None
    if warehouse.known_from is not None and warehouse.known_to is not None:
        known = warehouse.known_from, warehouse.known_to
    latest = int(warehouse.run["commit_id"])
    commits = [int(row["commit_id"]) for row in warehouse.rows(f"SELECT commit_id FROM {RUNS.name} ORDER BY 1")]
    if since is None or since not in commits:
        since = max((commit for commit in commits if commit < latest), default=latest)
    fell = warehouse.rows(
        f"SELECT count(*) AS n FROM {PARTS} WHERE grain = ? AND window_start = ?", period.grain, period.start_at
    )
    whole = windows.loc[ALL] if ALL in windows.index.get_level_values("channel") else windows.droplevel("channel")
    return ReportData(
        period=period,
        filters=filters,
        run=warehouse.run,
        audit=warehouse.audit,
        known=known,
        is_complete=as_of is not None and as_of >= period.end_at,
        fell=fell[0]["n"] > 0,
        compared=compare(days, whole, period),
        unusual=[one for one in unusual if one.day >= period.first],
        unusual_in_trend=unusual,
        trend_days=trend_days,
        series=series,
        windows=windows,
        channels=channels,
        bars={
            name: facts.distribution(warehouse, period, name)
            for name in ("first_response_histogram", "reply_histogram")
        },
        hours=facts.by_hour(warehouse, trend_at, period.end_at),
        groups={column: facts.by_dimension(warehouse, period, column) for column in facts.DIMENSIONS},
        waits=facts.longest_waits(warehouse, period),
        scores=facts.scores(warehouse, period),
        since=since,
        restated=facts.restated(warehouse, period, since, RESTATED_KPIS),
        dead_letters=facts.dead_letters(warehouse),
        runs=facts.runs(warehouse, since),
        definitions=facts.definitions(warehouse),
    )
