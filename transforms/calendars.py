"""Windows in a time zone: hours, days, weeks and months of an IANA zone, cut exactly at changes of clocks.

An hour is a whole local hour at the offset in force. A day begins at the first instant of its local date, so that it
has 23 or 25 hours around a change of clocks; weeks begin on Monday (ISO), months on the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.int64]

GRAINS = ("hour", "day", "week", "month")
_HOUR = 3600
_STEP = 6 * _HOUR
"""Changes of clocks are looked for in steps of this: no zone has changed twice within one."""


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a zone over a range of time; all instants in whole seconds since the epoch.

    A *slice* is the longest stretch of time within one hour window and one offset; every window is made of slices.

    Attributes:
      slice_starts: first instant of each slice, ascending.
      hour_starts: window_start of the hour of each slice.
      day_starts: first instant of each local date, ascending.
      days: local date of each of day_starts, as days since the epoch.
    """

    slice_starts: Seconds
    hour_starts: Seconds
    day_starts: Seconds
    days: Seconds

    @cached_property
    def _first_slice(self) -> tuple[int, npt.NDArray[np.int32], int]:
        """First UTC hour, the slice in force at the start of each UTC hour, and the most that begin within one."""
        low = int(self.slice_starts[0]) // _HOUR + 1
        high = int(self.slice_starts[-1]) // _HOUR
        hours = np.arange(low, high + 1) * _HOUR
        place = np.searchsorted(self.slice_starts, hours, side="right") - 1
        last = np.searchsorted(self.slice_starts, hours + _HOUR - 1, side="right") - 1
        return low, place.astype(np.int32), int((last - place).max(initial=0))

    def slices_of(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The slice of each instant.

        Args:
          at: microseconds since the epoch, within the range of the grid.

        Returns:
          Places in slice_starts.
        """
        low, place, most = self._first_slice
        # (Exact: within the range of occurred_at a microsecond before an hour is more than a rounding error.)
        found = place.take((at / (_HOUR * 1e6)).astype(np.int64) - low)
        if not most:
            return found
        seconds = at // 1_000_000
        starts = np.append(self.slice_starts, np.iinfo(np.int64).max)
        for _ in range(most):
            found = found + (starts[found + 1] <= seconds)
        return found

    def windows_of(self, grain: str, slice_start: Seconds) -> tuple[Seconds, Seconds]:
        """window_start and window_end of the windows of a grain that slices lie in, in seconds.

        Args:
          grain: one of GRAINS.
          slice_start: first instants of slices.
        """
        if grain == "hour":
            start = self.hour_starts[np.searchsorted(self.slice_starts, slice_start)]
            return start, start + _HOUR
        day = np.searchsorted(self.day_starts, slice_start, side="right") - 1
        date_of = self.days[day]
        if grain == "day":
            first, after = date_of, date_of + 1
        elif grain == "week":
            first = date_of - (date_of + 3) % 7
            after = first + 7
        else:
            months = date_of.astype("datetime64[D]").astype("datetime64[M]")
            first = months.astype("datetime64[D]").astype(np.int64)
            after = (months + 1).astype("datetime64[D]").astype(np.int64)
        return self._start_of_date(first), self._start_of_date(after)

    def _start_of_date(self, dates: Seconds) -> Seconds:
        """First instant of each date, or of the next one where a zone skipped it."""
        return self.day_starts[np.searchsorted(self.days, dates)]


def make_grid(timezone: str, first: int, last: int) -> WindowGrid:
    """Makes the windows that cover a range of time.

    Args:
      timezone: IANA zone.
      first: earliest instant, microseconds since the epoch.
      last: latest instant, microseconds since the epoch.
    """
    return _grid(timezone, first // 1_000_000 // 86_400, last // 1_000_000 // 86_400)


@lru_cache(maxsize=8)
def _grid(timezone: str, first_day: int, last_day: int) -> WindowGrid:
    """The grid from a month before a UTC day to a month after another."""
    low, high = (first_day - 33) * 86_400, (last_day + 34) * 86_400
    changes, offsets = _offsets(timezone, low, high)
    slices, hours, day_starts, days = [], [], [], []
    bounds = [*changes[1:], high]
    for start, end, offset in zip(changes, bounds, offsets, strict=True):
        first_hour = (start + offset) // _HOUR * _HOUR - offset
        local = np.arange(first_hour, end, _HOUR, dtype=np.int64)
        hours.append(local)
        slices.append(np.maximum(local, start))
        dates = np.arange((start + offset) // 86_400, (end - 1 + offset) // 86_400 + 1, dtype=np.int64)
        days.append(dates)
        day_starts.append(np.maximum(dates * 86_400 - offset, start))
    all_days, all_starts = np.concatenate(days), np.concatenate(day_starts)
    known, place = np.unique(all_days, return_index=True)
    return WindowGrid(np.concatenate(slices), np.concatenate(hours), np.maximum.accumulate(all_starts[place]), known)


def _offsets(timezone: str, low: int, high: int) -> tuple[list[int], list[int]]:
    """Instants at which the offset of a zone changes within [low, high), low first, and the offsets from them on."""
    zone = ZoneInfo(timezone)

    def offset_at(second: int) -> int:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        delta = moment.astimezone(zone).utcoffset()
        return int(delta.total_seconds()) if delta is not None else 0

    changes, offsets = [low], [offset_at(low)]
    for step in range(low + _STEP, high + _STEP, _STEP):
        if offset_at(step) != offsets[-1]:
            before, after = step - _STEP, step
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset_at(middle) == offsets[-1] else (before, middle)
            changes.append(after)
            offsets.append(offset_at(after))
    if changes[-1] >= high:
        changes.pop()
        offsets.pop()
    return changes, offsets


def month_of(at: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Months since January 1970 (UTC) of instants in microseconds."""
    return at.astype("datetime64[us]").astype("datetime64[M]").astype(np.int32)


def month_name(month: int) -> str:
    """YYYY-MM of a month since January 1970."""
    return date(1970 + month // 12, month % 12 + 1, 1).strftime("%Y-%m")
