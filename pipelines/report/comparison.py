"""What is usual: a period against those before it, and days against the same weekday of the weeks before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from pipelines.report.period import Period
from pipelines.report.series import ALL, basis_of
from transforms.definitions import KPIS, Kpi

HEADLINE = (
    "conversation_count",
    "message_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "p50_reply_seconds",
    "p90_reply_seconds",
    "avg_handle_seconds",
    "first_contact_resolution_rate",
    "response_rate",
    "resolution_rate",
    "backlog_count",
    "waiting_count",
    "avg_csat",
    "csat_rate",
)
"""KPIs that a report begins with, in this order; those that are watched for unusual days."""

RANGE_DAYS, RANGE_AT_LEAST = 28, 7
"""The normal range is the middle 80 % of that many days before; of fewer days with a value there is none."""

WEEKS, WEEKS_AT_LEAST = 8, 4
"""A day is compared with the same weekday of that many weeks before; with fewer that have a value it is not."""

CASES_AT_LEAST = 20
"""A mean, rate or percentile of fewer cases is never called unusual."""

_WIDTH = 3.5 * 1.4826
"""Median absolute deviations from the median: 3.5 standard deviations where values are normally distributed."""

SETTLING = ("first_contact_resolution_rate", "response_rate", "resolution_rate")
"""Rates that go on changing after the day while its conversations go on."""

SETTLED_AFTER = timedelta(days=14)
"""How long after a day its rates are compared with those of days long past."""

BY_NAME = {kpi.name: kpi for kpi in KPIS}


@dataclass(frozen=True)
class Comparison:
    """One KPI of a period; NaN for what is not known.

    Attributes:
      kpi: its definition.
      value: of the period.
      before: of the period before: the day before, the week before, the month before.
      week_ago: of the same weekday a week ago; NaN but for a day.
      low: below it only a tenth of the 28 days before; NaN but for a day.
      high: above it only a tenth of them; NaN but for a day.
    """

    kpi: Kpi
    value: float
    before: float
    week_ago: float
    low: float
    high: float


@dataclass(frozen=True)
class Unusual:
    """A day on which a KPI was outside of what the same weekday of the weeks before would have one expect.

    Attributes:
      kpi: its definition.
      day: the local day.
      value: of that day.
      low: least usual value.
      high: greatest usual value.
      weeks: how many days it was compared with.
    """

    kpi: Kpi
    day: date
    value: float
    low: float
    high: float
    weeks: int

    @property
    def is_high(self) -> bool:
        """Above what is usual, not below."""
        return self.value > self.high


def by_day(series: pd.DataFrame, zone: str, channel: str = ALL) -> pd.DataFrame:
    """The days of one channel by local date, without holes; empty where the channel is not there."""
    if channel not in series.index.get_level_values("channel"):
        return series.iloc[:0].set_axis(dates_index(()), axis=0)
    days = series.loc[channel]
    return days.set_axis(dates_index(at.astimezone(ZoneInfo(zone)).date() for at in days.index), axis=0)


def dates_index(days: Iterable[date]) -> pd.Index:
    """Local dates as an index that stays dates, of which there are none of an hour."""
    return pd.Index(list(days), dtype=object, name="day")


def compare(days: pd.DataFrame, windows: pd.DataFrame, period: Period) -> list[Comparison]:
    """Every KPI of a period against what was before.

    Args:
      days: of all channels together, by local date, the 28 days before the period among them.
      windows: of all channels together and the period's grain, by window_start.
      period: the report's.
    """
    first, is_day = period.first, period.grain == "day"
    before = [first - timedelta(days=back) for back in range(1, RANGE_DAYS + 1)]
    past = days.reindex(dates_index(before)) if is_day else days.iloc[:0]
    compared = []
    for kpi in KPIS:
        known = past[kpi.name].astype(float).dropna()
        low, high = np.quantile(known, (0.1, 0.9)) if len(known) >= RANGE_AT_LEAST else (np.nan, np.nan)
        week_ago = past[kpi.name].iloc[6] if is_day else np.nan
        value, one_before = (_at(windows, at, kpi.name) for at in (period.start_at, period.before.start_at))
        compared.append(Comparison(kpi, value, one_before, float(week_ago), float(low), float(high)))
    return compared


def _at(windows: pd.DataFrame, moment: object, name: str) -> float:
    return float(windows[name].get(moment, np.nan))


def usual_ranges(days: pd.DataFrame, kpi: Kpi) -> pd.DataFrame:
    """What each day would be expected to say, from the same weekday of the weeks before.

    The range is the median and 3.5 robust standard deviations (of the median absolute deviation) to both sides, but at
    least what chance alone would do to so many cases.

    Args:
      days: of one channel, by local date, as far back as there is.
      kpi: which one.

    Returns:
      By local date: low, high, weeks (values compared with); low and high are missing where those are too few.
    """
    if not len(days):
        return pd.DataFrame({"low": [], "high": [], "weeks": []})
    count = (days.index[-1] - days.index[0]).days + 1
    every = dates_index(days.index[0] + timedelta(days=place) for place in range(count))
    values = days[kpi.name].reindex(every).astype(float)
    past = np.stack([values.shift(7 * week).to_numpy() for week in range(1, WEEKS + 1)])
    known = np.sum(~np.isnan(past), axis=0)
    enough = known >= WEEKS_AT_LEAST
    middle, spread = np.full(len(every), np.nan), np.full(len(every), np.nan)
    if enough.any():
        middle[enough] = np.nanmedian(past[:, enough], axis=0)
        spread[enough] = np.nanmedian(np.abs(past[:, enough] - middle[enough]), axis=0)
    basis = basis_of(kpi)
    cases = days[basis].reindex(every).to_numpy(float) if basis else None
    width = np.maximum(_WIDTH * spread, _by_chance(kpi, middle, cases))
    top = 1.0 if kpi.unit == "rate" else np.inf
    found = {"low": np.clip(middle - width, 0, None), "high": np.clip(middle + width, None, top), "weeks": known}
    return pd.DataFrame(found, index=every)


def _by_chance(kpi: Kpi, middle: np.ndarray, cases: np.ndarray | None) -> np.ndarray:
    """Half the least width of a range: what nobody should be woken for."""
    if cases is None:
        return np.maximum(0.1 * middle, 3 * np.sqrt(np.maximum(middle, 1)))
    root = np.sqrt(np.maximum(np.nan_to_num(cases), 1))
    if kpi.unit == "rate":
        return np.maximum(0.03, 3 * np.sqrt(np.clip(middle * (1 - middle), 0.01, None)) / root)
    if kpi.unit == "score":
        return np.maximum(0.2, 3 * 1.3 / root)
    return middle * np.maximum(0.25, 5 / root)


def is_settled(name: str, end_at: datetime, as_of: datetime | None) -> bool:
    """Whether a KPI of a day that ended at a moment can be compared with those of days long past."""
    return name not in SETTLING or (as_of is not None and end_at + SETTLED_AFTER <= as_of)


def unusual_days(
    days: pd.DataFrame, first: date, last: date, as_of: datetime | None, names: tuple[str, ...] = HEADLINE
) -> list[Unusual]:
    """The unusual days from one to another, all KPIs of a day together, the latest day first.

    Args:
      days: of all channels together, by local date, with the weeks before `first`.
      first: first day to look at.
      last: last day to look at; days that are not complete are left out.
      as_of: the moment up to which time has passed; rates of days shortly before it are left out.
      names: KPIs to look at.
    """
    found = []
    for name in names:
        kpi, ranges = BY_NAME[name], usual_ranges(days, BY_NAME[name])
        chosen = days.loc[[day for day in days.index if first <= day <= last]]
        values, limits = chosen[name].astype(float), ranges.reindex(chosen.index)
        outside = (values < limits["low"]) | (values > limits["high"])
        basis = basis_of(kpi)
        if basis:
            outside &= chosen[basis].fillna(0) >= CASES_AT_LEAST
        for day in chosen.index[outside & chosen["is_complete"]]:
            if not is_settled(name, chosen["window_end"][day], as_of):
                continue
            low, high, weeks = limits.loc[day, ["low", "high", "weeks"]]
            found.append(Unusual(kpi, day, float(values[day]), float(low), float(high), int(weeks)))
    return sorted(found, key=lambda one: one.day, reverse=True)
