"""Windows of a stream in groups: differences go to the group that holds their windows, and are added up there."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from transforms.calendars import GRAINS, WindowGrid, make_grid
from transforms.hashing import hash_column
from transforms.histograms import add_histograms
from transforms.key_facts import EFFECT_SUM, ROW_SUM
from transforms.schema import TIMESTAMP
from transforms.statistics import BASES, SUM_NAMES, Integers, Statistics, add_statistics
from transforms.stored_statistics import statistic_columns
from transforms.tables import KPI_STATISTICS

PARTS = 8
"""Accounts and channels are in so many parts, each with groups of its own."""

_DAY = 86_400
_PERIOD = {"hour": 2 * _DAY, "day": 64 * _DAY, "week": 512 * _DAY, "month": 2048 * _DAY}
"""Windows of a group begin within so many seconds: about fifty of each account and channel."""

_MICROS = 1_000_000
_YEAR = 366 * _DAY * _MICROS

WINDOWS = pa.schema(
    [*KPI_STATISTICS.schema.remove_metadata(), *((name, pa.int64()) for name in ("row_count", "effect_count"))]
)
"""Rows of `kpi_statistics` with their version, the marks of the window; one in which nothing fell is all zeros."""


@dataclass(frozen=True)
class Difference:
    """What is added to statistics, and to the marks of the cells they may lie in."""

    statistics: Statistics = field(default_factory=Statistics.zero)
    marks: Statistics = field(default_factory=Statistics.zero)

    def save(self) -> bytes:
        """As bytes."""
        return pickle.dumps(self, protocol=5)

    @staticmethod
    def load(saved: bytes) -> Difference:
        """Reads what `save` wrote."""
        loaded = pickle.loads(saved)
        assert isinstance(loaded, Difference)
        return loaded

    @staticmethod
    def sum(parts: Sequence[Difference]) -> Difference:
        """All together."""
        return Difference(add_statistics([p.statistics for p in parts]), add_statistics([p.marks for p in parts]))


def split_by_group(difference: Difference, timezone: str) -> Iterator[tuple[str, Difference]]:
    """Rolls a difference by slice up to windows and splits it by their groups.

    Args:
      difference: by slice; every cell with statistics has marks.
      timezone: IANA zone of the windows.

    Yields:
      The name of a group, and the part of the difference that lies in its windows.
    """
    if not len(difference.marks.cell):
        return
    grid = _grid(timezone, difference.marks.unpack()[3])
    for grain in GRAINS:
        rolled = [_roll(side, grid, grain) for side in (difference.statistics, difference.marks)]
        groups = [_groups_of(side, grain) for side in rolled]
        for code in np.unique(groups[1]).tolist():
            parts = [side.only(group == code) for side, group in zip(rolled, groups, strict=True)]
            period, part = divmod(code, PARTS)
            yield json.dumps([grain, period, part]), Difference(*map(_compact, parts))


def restate_group(
    group: str, before: Difference, differences: Sequence[Difference], timezone: str
) -> tuple[Difference, pa.Table]:
    """Adds differences up in a group.

    Args:
      group: its name.
      before: all that fell into its windows so far.
      differences: what is new.
      timezone: IANA zone of the windows.

    Returns:
      All that fell into its windows, and the rows of the windows that were marked, schema WINDOWS.
    """
    new = Difference.sum(differences)
    after = Difference.sum([before, new])
    if not len(new.marks.cell):
        return after, WINDOWS.empty_table()
    marks = after.marks.only(np.isin(after.marks.cell, _cells_among(new.marks, after.marks)))
    statistics = _filled(after.statistics, marks)
    return after, _window_rows(json.loads(group)[0], statistics, marks, timezone)


def _grid(timezone: str, seconds: Integers) -> WindowGrid:
    """Windows that cover some instants; of whole years, so that most of the time it is there already."""
    first, last = int(seconds.min()) * _MICROS, int(seconds.max()) * _MICROS
    return make_grid(timezone, first // _YEAR * _YEAR, -(-last // _YEAR) * _YEAR)


def _roll(side: Statistics, grid: WindowGrid, grain: str) -> Statistics:
    if not len(side.cell):
        return side
    return side.moved_to(grid.windows_of(grain, side.unpack()[3])[0])


def _groups_of(side: Statistics, grain: str) -> Integers:
    """The group of each cell, as a number: period * PARTS + part."""
    _, account, channel, seconds = side.unpack()
    hashes = [hash_column(pa.array(words, pa.string())) for words in (side.accounts, side.channels)]
    if not len(side.cell):
        return np.empty(0, np.int64)
    part = (hashes[0][account] * np.uint64(31) + hashes[1][channel]) % np.uint64(PARTS)
    return seconds // _PERIOD[grain] * PARTS + part.astype(np.int64)


def _compact(side: Statistics) -> Statistics:
    """With the accounts and channels that occur only."""
    if not len(side.cell):
        return Statistics.zero()
    basis, account, channel, seconds = side.unpack()
    accounts, account = np.unique(account, return_inverse=True)
    channels, channel = np.unique(channel, return_inverse=True)
    words = replace(
        side,
        accounts=tuple(side.accounts[code] for code in accounts),
        channels=tuple(side.channels[code] for code in channels),
    )
    return replace(words, cell=words.pack(basis, account, channel, seconds))


def _cells_among(given: Statistics, others: Statistics) -> Integers:
    """The cells of given with the codes of others, which have all of its accounts and channels."""
    if not len(given.cell):
        return given.cell
    basis, account, channel, seconds = given.unpack()
    accounts, channels = (
        np.array([theirs.index(word) for word in ours], np.int64)
        for ours, theirs in ((given.accounts, others.accounts), (given.channels, others.channels))
    )
    return others.pack(basis, accounts[account], channels[channel], seconds)


def _filled(given: Statistics, marks: Statistics) -> Statistics:
    """The statistics in the cells of marks, zero where there are none; other cells are left out."""
    own = _cells_among(given, marks)
    place = np.searchsorted(marks.cell, own)
    is_wanted = np.append(marks.cell, -1)[place] == own
    some, place = given.only(is_wanted), place[is_wanted]
    sums = np.zeros((len(SUM_NAMES), len(marks.cell)), np.int64)
    sums[:, place] = some.sums
    histograms = tuple(add_histograms([(histogram, place)]) for histogram in some.histograms)
    return replace(marks, sums=sums, histograms=histograms)


def _window_rows(grain: str, statistics: Statistics, marks: Statistics, timezone: str) -> pa.Table:
    """The rows of windows, schema WINDOWS."""
    basis, account, channel, start = marks.unpack()
    count = len(start)
    columns = {
        "basis": pa.array(BASES).take(pa.array(basis)),
        "grain": pa.repeat(grain, count),
        "window_start": pa.array(start * _MICROS).cast(TIMESTAMP),
        "window_end": pa.array(window_ends(grain, start, timezone) * _MICROS).cast(TIMESTAMP),
        "account_id": pa.array(marks.accounts, pa.string()).take(pa.array(account)),
        "channel": pa.array(marks.channels, pa.string()).take(pa.array(channel)),
        **statistic_columns(statistics),
        "row_count": pa.array(marks.sums[ROW_SUM]),
        "effect_count": pa.array(marks.sums[EFFECT_SUM]),
    }
    return pa.table(columns).select(WINDOWS.names).cast(WINDOWS)


def window_ends(grain: str, start: Integers, timezone: str) -> Integers:
    """The ends of windows of a grain that begin at some instants, both in seconds."""
    grid = _grid(timezone, start)
    return start + 3600 if grain == "hour" else grid.windows_of(grain, start)[1]
