"""The day, week or month that a report is about."""

from __future__ import annotations

import calendar
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

Grain = Literal["day", "week", "month"]


@dataclass(frozen=True)
class Period:
    """Whole local days.

    Attributes:
      grain: day, week (from Monday) or month, as in the table `kpis`.
      first: its first day.
      zone: IANA zone in which days are cut.
    """

    grain: Grain
    first: date
    zone: str

    @property
    def after(self) -> date:
        """The first day after it."""
        if self.grain == "month":
            return self.first + timedelta(days=calendar.monthrange(self.first.year, self.first.month)[1])
        return self.first + timedelta(days=7 if self.grain == "week" else 1)

    @property
    def last(self) -> date:
        """Its last day."""
        return self.after - timedelta(days=1)

    @property
    def start_at(self) -> datetime:
        """Its first instant, UTC."""
        return first_instant(self.first, self.zone)

    @property
    def end_at(self) -> datetime:
        """The first instant after it, UTC."""
        return first_instant(self.after, self.zone)

    @property
    def before(self) -> Period:
        """The period of the same grain that ends where this one begins."""
        last = self.first - timedelta(days=1)
        return replace(self, first=period_of(last, self.grain, self.zone).first)

    @property
    def name(self) -> str:
        """As in file names: 2026-01-14, 2026-W03 or 2026-01; names of one grain sort by time."""
        if self.grain == "week":
            return "{}-W{:02}".format(*self.first.isocalendar()[:2])
        return self.first.isoformat()[: 7 if self.grain == "month" else None]


def first_instant(day: date, zone: str) -> datetime:
    """The first instant of a local day, UTC; a midnight that the clocks leave out is the moment of their change."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def period_of(day: date, grain: Grain, zone: str) -> Period:
    """The period of a grain that a day lies in."""
    first = {
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
    }[grain]
    return Period(grain, first, zone)
