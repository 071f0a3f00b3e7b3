"""Log-histograms of whole microseconds, per cell: they add, take away and give percentiles.

A bucket is the exponent and the first six bits of the mantissa of the value as a double, so that its middle is within
0.8 % of every value in it, on every machine alike. Zero has a bucket of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

Bins = npt.NDArray[np.integer[Any]]
"""Packed places and buckets: half as wide where the places allow it, which halves the time it takes to sort them."""

Counts = npt.NDArray[np.signedinteger[Any]]
"""Numbers of values in any signed type: they are small nearly everywhere, and fresh memory costs more than adding."""

_BUCKET_BITS = 12
_BUCKETS = 1 << _BUCKET_BITS
_PLACE_BITS = 25
MAX_CELLS = 1 << _PLACE_BITS

_DENSE = 32
"""Histograms are added up in a table of all buckets where that has at most so many times as many places as bins."""

_TABLE_CELLS = 32
"""So many cells are in such a table at a time (a mebibyte), that it stays in the processor's cache."""

_UNORDERED_CELLS = 512
"""A table of at most so many cells (16 MiB) is filled in any order."""


def bucket_of(values: Integers) -> Integers:
    """The histogram bucket of each value: 0 for 0, else 1 + 64 * exponent + first six bits of the mantissa.

    Args:
      values: whole microseconds, not negative.
    """
    buckets = values.astype(np.float64).view(np.int64)
    buckets >>= 46
    buckets -= (1023 << 6) - 1
    return np.maximum(buckets, 0, out=buckets)


def bucket_middle(buckets: Integers) -> npt.NDArray[np.float64]:
    """The middle of each bucket, in microseconds."""
    exponent, mantissa = np.divmod(buckets - 1, 64)
    return np.where(buckets > 0, np.ldexp(1 + (mantissa + 0.5) / 64, exponent), 0.0)


def narrow(counts: Counts) -> Counts:
    """The same numbers in the narrowest signed type that holds them."""
    if not len(counts):
        return counts.astype(np.int8)
    farthest = min(int(counts.min()), -1 - int(counts.max()), -1)
    return counts.astype(np.min_scalar_type(farthest), copy=False)


@dataclass(frozen=True)
class Histogram:
    """How many values lie in which bucket of which cell; h bins.

    Attributes:
      bins: packed (place of the cell, bucket), ascending.
      counts: how many values lie in each bin; never 0.
    """

    bins: Bins
    counts: Counts

    @staticmethod
    def zero() -> Histogram:
        """No values."""
        return Histogram(np.empty(0, np.int64), np.empty(0, np.int64))

    @staticmethod
    def packed(place: Integers, bucket: Bins, counts: Counts) -> Histogram:
        """Bins given by the place of their cell and their bucket, ascending, and their counts."""
        return Histogram((place << _BUCKET_BITS) | bucket, counts)

    def __neg__(self) -> Histogram:
        """What takes these values away when it is added."""
        return Histogram(self.bins, -self.counts.astype(np.int64))

    @property
    def place(self) -> Integers:
        """Place of the cell of each bin."""
        return (self.bins >> _BUCKET_BITS).astype(np.int64, copy=False)

    @property
    def bucket(self) -> Bins:
        """Bucket of each bin."""
        return self.bins & (_BUCKETS - 1)

    def edges(self, cells: int) -> Integers:
        """Where the bins of each of so many cells begin, and where those of the last one end."""
        return self._edges(np.arange(cells + 1))

    def _edges(self, places: Integers) -> Integers:
        # (In the type of the bins, else they would be copied.)
        kind = self.bins.dtype
        return np.searchsorted(self.bins, np.minimum(places << _BUCKET_BITS, np.iinfo(kind).max).astype(kind))


def bins_of(place: Integers, values: Integers, cells: int) -> Bins:
    """The bin of each value.

    Args:
      place: of its cell.
      values: whole microseconds.
      cells: number of cells, at most MAX_CELLS.
    """
    bins = bucket_of(values)
    bins |= place << _BUCKET_BITS
    return bins.astype(_bin_type(cells), copy=False)


def count_bins(parts: Sequence[Bins]) -> Histogram:
    """Counts equal bins, which come in any order."""
    if not parts:
        return Histogram.zero()
    bins = np.concatenate(parts)
    bins.sort()
    starts = _starts(bins)
    counts = np.empty(len(starts), np.int32)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1], casting="unsafe")
    counts[-1:] = len(bins) - starts[-1:]
    return Histogram(bins.take(starts), narrow(counts))


def add_histograms(parts: Sequence[tuple[Histogram, Integers]]) -> Histogram:
    """Adds histograms up; bins in which nothing is left are gone.

    Args:
      parts: histograms, and for each the new place of each of its cells; places may coincide.
    """
    parts = [(part, places) for part, places in parts if len(part.bins)]
    if not parts:
        return Histogram.zero()
    cells, total = max(int(places.max()) for _, places in parts) + 1, sum(len(part.bins) for part, _ in parts)
    if cells << _BUCKET_BITS <= _DENSE * total:
        if cells <= _UNORDERED_CELLS:
            together = [_moved(part, places, np.int64) for part, places in parts]
            given = Histogram(np.concatenate(together), np.concatenate([part.counts for part, _ in parts]))
            return _tabulated(given, np.arange(cells), [(0, cells, 0, total)])
        if len(parts) == 1 and bool(np.all(parts[0][1][1:] >= parts[0][1][:-1])):
            return _tabulated(*parts[0], _pieces(*parts[0], cells))
    bins = [_moved(part, places, _bin_type(cells)) for part, places in parts]
    some = [np.flatnonzero(part.counts != 1) for part, _ in parts]
    more = [part.counts.take(rows) for (part, _), rows in zip(parts, some, strict=True)]
    repeats = sum(int(counts.sum(dtype=np.int64)) for counts in more)
    if all(int(counts.min(initial=1)) > 0 for counts in more) and repeats <= total:
        # Equal values side by side sort faster than values with counts, as long as they are not many more.
        bins += [
            np.repeat(own.take(rows), counts.astype(np.int64) - 1)
            for own, rows, counts in zip(bins, some, more, strict=True)
        ]
        return count_bins(bins)
    counts = np.concatenate([part.counts for part, _ in parts])
    every = np.concatenate(bins)
    order = np.argsort(every, kind="stable")
    every, counts = every[order], counts[order]
    starts = _starts(every)
    every, counts = every.take(starts), np.add.reduceat(counts, starts, dtype=np.int64)
    left = np.flatnonzero(counts)
    return Histogram(every, counts) if len(left) == len(counts) else Histogram(every.take(left), counts.take(left))


def _pieces(part: Histogram, places: Integers, cells: int) -> list[tuple[int, int, int, int]]:
    """Cuts a histogram, with ascending new places of its cells, into pieces of _TABLE_CELLS new cells.

    Returns:
      Of each piece the first cell and the end of the cells, and the first bin and the end of the bins.
    """
    firsts = np.arange(0, cells + _TABLE_CELLS, _TABLE_CELLS)
    edges = part._edges(np.searchsorted(places, firsts))
    return list(zip(firsts[:-1].tolist(), firsts[1:].tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _tabulated(given: Histogram, places: Integers, pieces: list[tuple[int, int, int, int]]) -> Histogram:
    """Adds bins up in tables of all buckets.

    Args:
      given: bins and counts.
      places: the new place of each cell.
      pieces: see _pieces.
    """
    low, high = int(given.bucket.min()), int(given.bucket.max())
    width, kind = high - low + 1, _bin_type(pieces[-1][1])
    rows = places * width - low
    bins, counts = [], []
    for first, cells_end, begin, end in pieces:
        own = given.bins[begin:end]
        keys = rows.take(own >> _BUCKET_BITS, mode="clip")
        keys += own & (_BUCKETS - 1)
        keys -= first * width
        # (Exact: doubles hold whole numbers up to 2 ** 53.)
        table = np.bincount(keys, weights=given.counts[begin:end], minlength=(cells_end - first) * width)
        found = np.flatnonzero(table != 0)
        counts.append(table.take(found).astype(np.int64))
        place, bucket = np.divmod(found, width)
        bins.append((((place + first) << _BUCKET_BITS) + (bucket + low)).astype(kind))
    return Histogram(np.concatenate(bins), narrow(np.concatenate(counts)))


def percentile_buckets(histogram: Histogram, cells: int, percents: Sequence[int]) -> dict[int, Integers]:
    """Nearest-rank percentiles: the smallest bucket that at least so many per cent of a cell's values do not exceed.

    Args:
      histogram: of `cells` cells; its counts are positive.
      cells: number of cells.
      percents: ranks, 1 to 100.

    Returns:
      By rank, the bucket of each cell; -1 for a cell without values.
    """
    edges, bins = histogram.edges(cells), histogram.bins
    cumulated = np.zeros(len(bins) + 1, np.int64)
    np.cumsum(histogram.counts, out=cumulated[1:])
    before, total = cumulated[edges[:-1]], np.diff(cumulated[edges])
    some = np.flatnonzero(total)
    found = {}
    for percent in percents:
        buckets = np.full(cells, -1)
        rank = before[some] + (total[some] * percent + 99) // 100
        buckets[some] = bins[np.searchsorted(cumulated[1:], rank)] & (_BUCKETS - 1)
        found[percent] = buckets
    return found


def _moved(histogram: Histogram, places: Integers, kind: type[np.integer[Any]]) -> Bins:
    """The bins with other places of their cells."""
    # (Of a cell without bins the place may be anything.)
    bins = (places << _BUCKET_BITS).astype(kind).take(histogram.bins >> _BUCKET_BITS, mode="clip")
    bins |= histogram.bucket.astype(kind, copy=False)
    return bins


def _bin_type(cells: int) -> type[np.integer[Any]]:
    """The narrowest type of bins of so many cells."""
    return np.uint32 if cells < 1 << (32 - _BUCKET_BITS) else np.int64


def _starts(ordered: Bins) -> Integers:
    """Where each distinct value begins."""
    if not len(ordered):
        return np.empty(0, np.int64)
    is_start = np.empty(len(ordered), bool)
    is_start[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_start[1:])
    return np.flatnonzero(is_start)
