"""Additive statistics: zero, plus and minus of what the KPIs are made of, per basis, slice, account and channel.

Durations are summed as whole microseconds and scores as whole millionths, so that sums are exact, shards merge in any
order, and what is taken away again leaves nothing behind. Values are counted in log-histograms: a bucket is the
exponent and the first six bits of the mantissa of the value as a double, so that its middle is within 0.8 % of every
value in it, on every machine alike.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
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
_PLACE_BITS = 25
_HISTOGRAM_BITS = _BUCKET_BITS + _PLACE_BITS
_COUNT_BITS = 63 - 3 - _HISTOGRAM_BITS


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
      bins: packed (histogram, place of the cell, bucket), ascending.
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

    def save(self, path: str) -> None:
        """Writes the statistics to a file that `load` reads."""
        with open(path, "wb") as file:
            pickle.dump((self.accounts, self.channels), file)
            for values in (self.cell, self.sums, self.bins, self.counts):
                np.save(file, values)

    @staticmethod
    def load(path: str) -> Statistics:
        """Reads what `save` wrote."""
        with open(path, "rb") as file:
            names = pickle.load(file)
            return Statistics(*names, *(np.load(file) for _ in range(4)))

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
        place = HISTOGRAM_PLACES[name]
        first, last = np.searchsorted(self.bins, [place << _HISTOGRAM_BITS, (place + 1) << _HISTOGRAM_BITS])
        bins = self.bins[first:last]
        return _place_of(bins), bins & ((1 << _BUCKET_BITS) - 1), self.counts[first:last]

    @property
    def cell_of_bins(self) -> Integers:
        """Place of the cell of each of bins."""
        return _place_of(self.bins)

    def moved_to(self, seconds: Integers) -> Statistics:
        """The same statistics with other instants; cells that become equal are added up."""
        basis, account, channel, _ = self.unpack()
        return self.moved_to_cells(basis, account, channel, seconds)

    def moved_to_cells(self, basis: Integers, account: Integers, channel: Integers, seconds: Integers) -> Statistics:
        """The same statistics in other cells, given by their codes; cells that become equal are added up."""
        return _gather(self.accounts, self.channels, self.pack(basis, account, channel, seconds), self)

    def pack(self, basis: Integers, account: Integers, channel: Integers, seconds: Integers) -> Integers:
        """Packed cells of bases, account codes, channel codes and instants (seconds since the epoch)."""
        key = (basis * max(len(self.accounts), 1) + account) * max(len(self.channels), 1) + channel
        return (key << _TIME_BITS) | (seconds + _TIME_ZERO)


def pack_bins(histogram: str, place: Integers, values: Integers) -> Integers:
    """The bins that values fall into: of a histogram, in cells by their place; values in whole microseconds."""
    return (HISTOGRAM_PLACES[histogram] << _HISTOGRAM_BITS) | (place << _BUCKET_BITS) | bucket_of(values)


def _place_of(bins: Integers) -> Integers:
    """Place of the cell of each bin."""
    return (bins >> _BUCKET_BITS) & ((1 << _PLACE_BITS) - 1)


def _with_place(bins: Integers, place: Integers) -> Integers:
    """The bins in other cells."""
    return (bins & ~(((1 << _PLACE_BITS) - 1) << _BUCKET_BITS)) | (place << _BUCKET_BITS)


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
    cells = []
    for part in parts:
        basis, account, channel, seconds = part.unpack()
        account = np.array([account_codes[a] for a in part.accounts], np.int64)[account]
        channel = np.array([channel_codes[c] for c in part.channels], np.int64)[channel]
        cells.append(union.pack(basis, account, channel, seconds))
    cell = np.sort(np.concatenate(cells))
    cell = cell[np.append(True, np.diff(cell) != 0)]
    sums = np.zeros((len(SUM_NAMES), len(cell)), np.int64)
    bins = []
    for part, own in zip(parts, cells, strict=True):
        place = np.searchsorted(cell, own)
        for total, row in zip(sums, part.sums, strict=True):
            total[place] += row
        bins.append(_with_place(part.bins, place[_place_of(part.bins)]))
    counts = np.concatenate([part.counts for part in parts])
    return _without_nothing(Statistics(accounts, channels, cell, sums, *_add_up(np.concatenate(bins), counts)))


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
    if len(cell) >= 1 << _PLACE_BITS:
        raise ValueError(f"expected fewer than {1 << _PLACE_BITS:,} cells, got {len(cell):,}")
    if not len(cell) or bool(np.all(cell[1:] > cell[:-1])):
        return _without_nothing(replace(given, accounts=accounts, channels=channels, cell=cell))
    sums, bins, counts = given.sums, given.bins, given.counts
    order = np.arange(len(cell))
    if not bool(np.all(cell[1:] >= cell[:-1])):
        order = np.argsort(cell, kind="stable")
        cell, sums = cell[order], sums[:, order]
    first = np.append(True, np.diff(cell) != 0)
    starts = np.flatnonzero(first)
    new_place = np.empty(len(cell), np.int64)
    new_place[order] = np.cumsum(first) - 1
    bins, counts = _add_up(_with_place(bins, new_place[_place_of(bins)]), counts)
    sums = np.stack([np.add.reduceat(row, starts) for row in sums])
    return _without_nothing(Statistics(accounts, channels, cell[starts], sums, bins, counts))


def _without_nothing(given: Statistics) -> Statistics:
    """The cells in which something is left."""
    kept = given.sums.any(axis=0)
    if kept.all():
        return given
    place = np.cumsum(kept) - 1
    bins = _with_place(given.bins, place[_place_of(given.bins)])
    return replace(given, cell=given.cell[kept], sums=given.sums[:, kept], bins=bins)


def _add_up(bins: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Adds the counts of equal bins; what is left of none is dropped."""
    if not len(bins):
        return bins, counts
    if 0 < int(counts.min()) and int(counts.max()) < 1 << _COUNT_BITS:
        # The count rides in the low bits: sorting plain integers is many times faster than sorting places.
        packed = np.sort((bins << _COUNT_BITS) | counts)
        bins, counts = packed >> _COUNT_BITS, packed & ((1 << _COUNT_BITS) - 1)
    else:
        order = np.argsort(bins, kind="stable")
        bins, counts = bins[order], counts[order]
    starts = np.flatnonzero(np.append(True, np.diff(bins) != 0))
    counts = np.add.reduceat(counts, starts)
    some = counts != 0
    return bins[starts][some], counts[some]
