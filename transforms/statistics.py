"""Additive statistics: zero, plus and minus of what the KPIs are made of, per basis, slice, account and channel.

Durations are summed as whole microseconds and scores as whole millionths, so that sums are exact, shards merge in any
order, and what is taken away again leaves nothing behind. Values are counted in log-histograms: a bucket is the
exponent and the first six bits of the mantissa of the value as a double, so that its middle is within 0.8 % of every
value in it, on every machine alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transforms.definitions import STATISTICS

Integers = npt.NDArray[np.int64]

SUM_NAMES = tuple(s.name for s in STATISTICS if s.kind != "histogram")
SUM_PLACES = {name: place for place, name in enumerate(SUM_NAMES)}
HISTOGRAM_NAMES = tuple(s.name for s in STATISTICS if s.kind == "histogram")
HISTOGRAM_PLACES = {name: place for place, name in enumerate(HISTOGRAM_NAMES)}

BASES = ("activity", "opened")
ACTIVITY, OPENED = range(2)

_TIME_BITS = 34
_TIME_ZERO = 1 << 32
_BUCKET_BITS = 12
_BIN_BITS = _BUCKET_BITS + 3


def bucket_of(values: Integers) -> Integers:
    """The histogram bucket of each value: 0 for 0, else 1 + 64 * exponent + first six bits of the mantissa.

    Args:
      values: whole microseconds, not negative.
    """
    bits = values.astype(np.float64).view(np.int64) >> 46
    return np.where(values > 0, bits - (1023 << 6) + 1, 0)


def bucket_middle(buckets: Integers) -> npt.NDArray[np.float64]:
    """The middle of each bucket, in microseconds."""
    exponent, mantissa = np.divmod(buckets - 1, 64)
    return np.where(buckets > 0, np.ldexp(1 + (mantissa + 0.5) / 64, exponent), 0.0)


@dataclass(frozen=True)
class Statistics:
    """Statistics of k cells; a cell is a basis, an instant (slice or window), an account and a channel.

    Attributes:
      accounts: the accounts, by code.
      channels: the channels, by code.
      cell: k packed cells, ascending.
      sums: counts and sums, one row for each of SUM_NAMES, k columns.
      bins: packed (place of the cell, histogram, bucket), ascending.
      counts: how many values lie in each of bins.
    """

    accounts: tuple[str | None, ...]
    channels: tuple[str, ...]
    cell: Integers
    sums: Integers
    bins: Integers
    counts: Integers

    @staticmethod
    def zero() -> Statistics:
        """No statistics."""
        none = np.empty(0, np.int64)
        return Statistics((), (), none, np.empty((len(SUM_NAMES), 0), np.int64), none, none)

    def __neg__(self) -> Statistics:
        """What takes these statistics away when it is added."""
        return replace(self, sums=-self.sums, counts=-self.counts)

    def __add__(self, other: Statistics) -> Statistics:
        """Both together."""
        return add_statistics([self, other])

    def unpack(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Basis, account code, channel code and instant (seconds since the epoch) of each cell."""
        key, seconds = self.cell >> _TIME_BITS, (self.cell & ((1 << _TIME_BITS) - 1)) - _TIME_ZERO
        key, channel = np.divmod(key, max(len(self.channels), 1))
        basis, account = np.divmod(key, max(len(self.accounts), 1))
        return basis, account, channel, seconds

    def histogram(self, name: str) -> tuple[Integers, Integers, Integers]:
        """The bins of one histogram: place of the cell, bucket, count; ascending by the first two."""
        chosen = np.flatnonzero((self.bins >> _BUCKET_BITS) & 7 == HISTOGRAM_PLACES[name])
        bins = self.bins[chosen]
        return bins >> _BIN_BITS, bins & ((1 << _BUCKET_BITS) - 1), self.counts[chosen]

    @property
    def cell_of_bins(self) -> Integers:
        """Place of the cell of each of bins."""
        return self.bins >> _BIN_BITS

    def moved_to(self, seconds: Integers) -> Statistics:
        """The same statistics with other instants; cells that become equal are added up."""
        basis, account, channel, _ = self.unpack()
        return self.moved_to_cells(basis, account, channel, seconds)

    def moved_to_cells(self, basis: Integers, account: Integers, channel: Integers, seconds: Integers) -> Statistics:
        """The same statistics in other cells, given by their codes; cells that become equal are added up."""
        return _gather(self.accounts, self.channels, self._pack(basis, account, channel, seconds), self)

    def _pack(self, basis: Integers, account: Integers, channel: Integers, seconds: Integers) -> Integers:
        key = (basis * max(len(self.accounts), 1) + account) * max(len(self.channels), 1) + channel
        return (key << _TIME_BITS) | (seconds + _TIME_ZERO)


def add_statistics(parts: Iterable[Statistics]) -> Statistics:
    """Adds statistics up; what adds up to nothing is gone.

    Args:
      parts: statistics over any accounts, channels and cells.
    """
    parts = [part for part in parts if len(part.cell)]
    if not parts:
        return Statistics.zero()
    accounts = tuple(sorted({a for p in parts for a in p.accounts}, key=lambda a: (a is not None, a or "")))
    channels = tuple(sorted({c for p in parts for c in p.channels}))
    account_codes = {account: code for code, account in enumerate(accounts)}
    channel_codes = {channel: code for code, channel in enumerate(channels)}
    union = replace(Statistics.zero(), accounts=accounts, channels=channels)
    cells, first_place, offset = [], [], 0
    for part in parts:
        basis, account, channel, seconds = part.unpack()
        account = np.array([account_codes[a] for a in part.accounts], np.int64)[account]
        channel = np.array([channel_codes[c] for c in part.channels], np.int64)[channel]
        cells.append(union._pack(basis, account, channel, seconds))
        first_place.append(part.bins + (offset << _BIN_BITS))
        offset += len(part.cell)
    stacked = Statistics(
        accounts,
        channels,
        np.concatenate(cells),
        np.concatenate([p.sums for p in parts], axis=1),
        np.concatenate(first_place),
        np.concatenate([p.counts for p in parts]),
    )
    return _gather(accounts, channels, stacked.cell, stacked)


def _gather(
    accounts: tuple[str | None, ...], channels: tuple[str, ...], cell: Integers, given: Statistics
) -> Statistics:
    """Adds up the statistics of equal cells.

    Args:
      accounts: the accounts.
      channels: the channels.
      cell: the new cell of each cell of given, in any order.
      given: the statistics.
    """
    order = np.argsort(cell, kind="stable")
    ordered = cell[order]
    first = np.append(True, np.diff(ordered) != 0) if len(cell) else np.empty(0, bool)
    starts = np.flatnonzero(first)
    if not len(starts):
        return replace(Statistics.zero(), accounts=accounts, channels=channels)
    new_place = np.empty(len(cell), np.int64)
    new_place[order] = np.cumsum(first) - 1
    sums = np.stack([np.add.reduceat(row[order], starts) for row in given.sums])
    bins = (new_place[given.cell_of_bins] << _BIN_BITS) | (given.bins & ((1 << _BIN_BITS) - 1))
    bins, counts = _add_up(bins, given.counts)
    kept = sums.any(axis=0)
    if not kept.all():
        place = np.cumsum(kept) - 1
        bins = (place[bins >> _BIN_BITS] << _BIN_BITS) | (bins & ((1 << _BIN_BITS) - 1))
    return Statistics(accounts, channels, ordered[starts][kept], sums[:, kept], bins, counts)


def _add_up(bins: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Adds the counts of equal bins; what is left of none is dropped."""
    if not len(bins):
        return bins, counts
    order = np.argsort(bins, kind="stable")
    bins, counts = bins[order], counts[order]
    starts = np.flatnonzero(np.append(True, np.diff(bins) != 0))
    counts = np.add.reduceat(counts, starts)
    some = counts != 0
    return bins[starts][some], counts[some]


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
        self._sums: list[tuple[Integers, str, Integers | None]] = []
        self._bins: list[tuple[Integers, str, Integers]] = []
        self._cells: list[Integers] = []

    def cells(
        self, basis: int, slices: npt.NDArray[np.int32], account: npt.NDArray[np.int32], channel: npt.NDArray[np.int32]
    ) -> Integers:
        """Cells of things that happened: one for each of n slices, account codes (-1 is null) and channel codes."""
        pair = (account.astype(np.int64) + 1) * len(self._channels) + channel
        cells = (slices.astype(np.int64) + basis * len(self._slice_starts)) * self._pairs + pair
        self._cells.append(cells)
        return cells

    def count(self, name: str, cells: Integers) -> None:
        """Counts one for each cell."""
        self._sums.append((cells, name, None))

    def add(self, name: str, cells: Integers, values: Integers) -> None:
        """Adds whole values that are not negative."""
        self._sums.append((cells, name, values))

    def add_seconds(self, what: str, cells: Integers, micros: Integers, histogram: bool = True) -> None:
        """Adds durations to sum_<what>_seconds and, where there is one, to <what>_histogram."""
        self.add(f"sum_{what}_seconds", cells, micros)
        if histogram:
            self._bins.append((cells, f"{what}_histogram", micros))

    def build(self) -> Statistics:
        """Adds everything up."""
        space = 2 * len(self._slice_starts) * self._pairs
        if space <= 1 << 25:
            seen = np.zeros(space, bool)
            for cells in self._cells:
                seen[cells] = True
            used = np.flatnonzero(seen)
            place = np.cumsum(seen) - 1
            places = [place[cells] for cells, _, _ in self._sums]
            bin_places = [place[cells] for cells, _, _ in self._bins]
        else:
            used = np.unique(np.concatenate([np.unique(cells) for cells in self._cells] or [np.empty(0, np.int64)]))
            places = [np.searchsorted(used, cells) for cells, _, _ in self._sums]
            bin_places = [np.searchsorted(used, cells) for cells, _, _ in self._bins]
        sums = np.zeros((len(SUM_NAMES), len(used)), np.int64)
        for at, (_, name, values) in zip(places, self._sums, strict=True):
            sums[SUM_PLACES[name]] += _exact_sums(at, values, len(used))
        bins = [
            (at << _BIN_BITS) | (HISTOGRAM_PLACES[name] << _BUCKET_BITS) | bucket_of(values)
            for at, (_, name, values) in zip(bin_places, self._bins, strict=True)
        ]
        sorted_bins = np.sort(np.concatenate(bins)) if bins else np.empty(0, np.int64)
        starts = np.flatnonzero(np.append(True, np.diff(sorted_bins) != 0)) if len(sorted_bins) else sorted_bins
        counts = np.diff(starts, append=len(sorted_bins))
        slices, pair = np.divmod(used, self._pairs) if self._pairs else (used, used)
        basis, slices = np.divmod(slices, len(self._slice_starts))
        account, channel = np.divmod(pair, max(len(self._channels), 1))
        empty = replace(Statistics.zero(), accounts=self._accounts, channels=self._channels)
        cell = empty._pack(basis, account, channel, self._slice_starts[slices])
        given = Statistics(self._accounts, self._channels, cell, sums, sorted_bins[starts], counts)
        return _gather(self._accounts, self._channels, cell, given)


def _exact_sums(places: Integers, values: Integers | None, count: int) -> Integers:
    """Sums whole values by place, exactly: doubles hold whole numbers up to 2 ** 53."""
    if values is None:
        return np.bincount(places, minlength=count)
    if not len(values) or int(values.max()) * len(values) < 1 << 53:
        return np.bincount(places, weights=values, minlength=count).astype(np.int64)
    low = np.bincount(places, weights=values & 0x3FFFFFF, minlength=count).astype(np.int64)
    high = np.bincount(places, weights=values >> 26, minlength=count).astype(np.int64)
    return (high << 26) + low
