"""Counting: what falls into the cells of a shard is collected group by group and added up once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transforms.histograms import Bins, bins_of, count_bins
from transforms.statistics import HISTOGRAM_NAMES, SUM_NAMES, SUM_PLACES, Integers, Statistics


class StatisticsBuilder:
    """Collects what falls into the cells of a shard, group by group, and adds it up once.

    Args:
      slice_starts: first instants of the slices, seconds.
      accounts: accounts by code + 1; the first is null.
      channels: channels by code.
    """

    def __init__(self, slice_starts: Integers, accounts: Sequence[str | None], channels: Sequence[str]) -> None:
        """Begins with nothing."""
        self._slice_starts = slice_starts
        self._accounts, self._channels = tuple(accounts), tuple(channels)
        self._pairs = len(self._accounts) * len(self._channels)
        self._added: dict[int, tuple[Integers, list[tuple[str, Integers | None]]]] = {}
        self._cells: list[Integers] = []

    def cells(
        self, basis: int, slices: npt.NDArray[np.int32], account: npt.NDArray[np.int32], channel: npt.NDArray[np.int32]
    ) -> Integers:
        """Cells of things that happened: one for each of n slices, account codes (-1 is null) and channel codes."""
        pair = (account.astype(np.int64) + (1 + basis * len(self._accounts))) * len(self._channels) + channel
        cells = pair * len(self._slice_starts) + slices
        self._cells.append(cells)
        return cells

    def count(self, name: str, cells: Integers) -> None:
        """Counts one for each cell."""
        self._add(name, cells, None)

    def add(self, name: str, cells: Integers, values: Integers) -> None:
        """Adds whole values that are not negative."""
        self._add(name, cells, values)

    def add_seconds(self, what: str, cells: Integers, micros: Integers, histogram: bool = True) -> None:
        """Adds durations to sum_<what>_seconds and, where there is one, to <what>_histogram."""
        self.add(f"sum_{what}_seconds", cells, micros)
        if histogram:
            self._add(f"{what}_histogram", cells, micros)

    def _add(self, name: str, cells: Integers, values: Integers | None) -> None:
        self._added.setdefault(id(cells), (cells, []))[1].append((name, values))

    def build(self) -> Statistics:
        """Adds everything up."""
        space = 2 * len(self._slice_starts) * self._pairs
        if space <= 1 << 25:
            seen = np.zeros(space, bool)
            for cells in self._cells:
                seen[cells] = True
            used = np.flatnonzero(seen)
            place = np.cumsum(seen) - 1

            def places_of(cells: Integers) -> Integers:
                return place.take(cells)

        else:
            every = np.sort(np.concatenate(self._cells)) if self._cells else np.empty(0, np.int64)
            used = every[np.append(True, np.diff(every) != 0)] if len(every) else every

            def places_of(cells: Integers) -> Integers:
                return np.searchsorted(used, cells)

        # Many statistics share their cells; places are held of some cells at a time only.
        sums = np.zeros((len(SUM_NAMES), len(used)), np.int64)
        bins: dict[str, list[Bins]] = {name: [] for name in HISTOGRAM_NAMES}
        for cells, added in self._added.values():
            places = places_of(cells)
            for name, values in added:
                if name in bins:
                    assert values is not None
                    bins[name].append(bins_of(places, values, len(used)))
                else:
                    sums[SUM_PLACES[name]] += exact_sums(places, values, len(used))
        histograms = tuple(count_bins(bins[name]) for name in HISTOGRAM_NAMES)
        pair, slices = np.divmod(used, max(len(self._slice_starts), 1))
        pair, channel = np.divmod(pair, max(len(self._channels), 1))
        basis, account = np.divmod(pair, len(self._accounts))
        empty = replace(Statistics.zero(), accounts=self._accounts, channels=self._channels)
        cell = empty.pack(basis, account, channel, self._slice_starts[slices])
        return Statistics(self._accounts, self._channels, cell, sums, histograms)


def exact_sums(places: Integers, values: Integers | None, count: int) -> Integers:
    """Sums whole values by place, exactly: doubles hold whole numbers up to 2 ** 53."""
    if values is None:
        return np.bincount(places, minlength=count)
    if not len(values) or int(values.max()) * len(values) < 1 << 53:
        return np.bincount(places, weights=values, minlength=count).astype(np.int64)
    low = np.bincount(places, weights=values & 0x3FFFFFF, minlength=count).astype(np.int64)
    high = np.bincount(places, weights=values >> 26, minlength=count).astype(np.int64)
    return (high << 26) + low
