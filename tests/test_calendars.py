"""Windows of IANA zones against the standard library, moment by moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import reference

from transforms.calendars import make_grid, month_name, month_of

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Asia/Pyongyang",
    "Pacific/Apia",
    "Africa/Casablanca",
)
LOW, HIGH = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2005, 2019))


def moments(zone: str) -> np.ndarray:
    """Seconds all over the range, many of them around changes of clocks and of dates."""
    rng = np.random.default_rng(1)
    known = ZoneInfo(zone)
    days = range(LOW, HIGH, 86_400)
    offsets = [datetime.fromtimestamp(day, UTC).astimezone(known).utcoffset() for day in days]
    changes = [day for day, old, new in zip(days, offsets, offsets[1:], strict=False) if old != new]
    around = [change + rng.integers(0, 2 * 86_400, 60) for change in changes[:20]]
    return np.concatenate([rng.integers(LOW, HIGH, 300), *around])


@pytest.mark.parametrize("zone", ZONES)
def test_windows_are_those_of_the_reference(zone: str) -> None:
    """Start and end of every grain."""
    at = moments(zone)
    grid = make_grid(zone, int(at.min()) * 1_000_000, int(at.max()) * 1_000_000)
    slices = grid.slices_of(at * 1_000_000)
    found = {grain: grid.windows_of(grain, grid.slice_starts[slices]) for grain in ("hour", "day", "week", "month")}
    for place, second in enumerate(at.tolist()):
        for grain, (start, end) in reference.windows(zone, second * 1_000_000).items():
            ours = tuple(int(edge[place]) * 1_000_000 for edge in found[grain])
            assert ours == (start, end), (grain, datetime.fromtimestamp(second, UTC))


@pytest.mark.parametrize("zone", ZONES)
def test_days_follow_each_other_without_gap(zone: str) -> None:
    """Days are half-open and contiguous, 23 or 25 hours around a change of clocks."""
    grid = make_grid(zone, LOW * 1_000_000, HIGH * 1_000_000)
    inside = grid.slice_starts[(grid.slice_starts >= LOW) & (grid.slice_starts < HIGH)]
    starts, ends = grid.windows_of("day", inside)
    assert np.all((starts <= inside) & (inside < ends))
    hours = set((np.unique(np.diff(grid.day_starts[1:-1])) / 3600).tolist())
    assert hours <= {22.5, 23.0, 23.5, 24.0, 24.5, 25.0, 25.5}


def test_microseconds_at_the_edge_of_an_hour() -> None:
    """The last microsecond of an hour belongs to it, at both ends of the range of occurred_at."""
    for hour in (1, 1_148_326):
        at = np.array([hour * 3_600_000_000 - 1, hour * 3_600_000_000])
        grid = make_grid("UTC", int(at[0]), int(at[1]))
        assert np.diff(grid.slices_of(at)).tolist() == [1]


def test_month_names() -> None:
    """Months since January 1970."""
    first = datetime(1970, 1, 1, tzinfo=UTC)
    for moment in (first, datetime(2026, 12, 31, 23, 59, tzinfo=UTC), datetime(2000, 2, 29, tzinfo=UTC)):
        micros = np.array([(moment - first) // timedelta(microseconds=1)])
        assert month_name(int(month_of(micros)[0])) == moment.strftime("%Y-%m")
