"""Log-histograms of whole microseconds, per cell: they add, take away and give percentiles.

A bucket is the exponent and the first six bits of the mantissa of the value as a double, so that its middle is within
0.8 % of every value in it, on every machine alike. Zero has a bucket of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_BUCKET_BITS = 12
_PLACE_BITS = 25
_COUNT_BITS = 63 - _BUCKET_BITS - _PLACE_BITS
MAX_CELLS = 1 << _PLACE_BITS


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


@dataclass(frozen=True)
class Histogram:
    """How many values lie in which bucket of which cell; h bins.

    Attributes:
      bins: packed (place of the cell, bucket), ascending.
      counts: how many values lie in each bin; never 0.
    """

    bins: Integers
    counts: Integers

    @staticmethod
    def zero() -> Histogram:
        """No values."""
        return Histogram(np.empty(0, np.int64), np.empty(0, np.int64))

    @staticmethod
    def packed(place: Integers, bucket: Integers, counts: Integers) -> Histogram:
        """Bins given by the place of their cell and their bucket, ascending, and their counts."""
        return Histogram((place << _BUCKET_BITS) | bucket, counts)

    @staticmethod
    def of(parts: Sequence[tuple[Integers, Integers]]) -> Histogram:
        """Counts values.

        Args:
          parts: places of cells (below MAX_CELLS) and values in whole microseconds, of equal lengths.
        """
        if not parts:
            return Histogram.zero()
        bins = np.concatenate([(place << _BUCKET_BITS) | bucket_of(values) for place, values in parts])
        bins.sort()
        starts = _starts(bins)
        return Histogram(bins[starts], np.diff(starts, append=len(bins)))

    def __neg__(self) -> Histogram:
        """What takes these values away when it is added."""
        return Histogram(self.bins, -self.counts)

    @property
    def place(self) -> Integers:
        """Place of the cell of each bin."""
        return self.bins >> _BUCKET_BITS

    @property
    def bucket(self) -> Integers:
        """Bucket of each bin."""
        return self.bins & ((1 << _BUCKET_BITS) - 1)


def add_histograms(parts: Sequence[tuple[Histogram, Integers]]) -> Histogram:
    """Adds histograms up; bins in which nothing is left are gone.

    Args:
      parts: histograms, and for each the new place of each of its cells; places may coincide.
    """
    parts = [(part, places) for part, places in parts if len(part.bins)]
    if not parts:
        return Histogram.zero()
    if all(int(part.counts.min()) > 0 and int(part.counts.max()) < 1 << _COUNT_BITS for part, _ in parts):
        return _added_positive(parts)
    bins = np.concatenate([_moved(part, places) for part, places in parts])
    counts = np.concatenate([part.counts for part, _ in parts])
    order = np.argsort(bins, kind="stable")
    bins, counts = bins[order], counts[order]
    starts = _starts(bins)
    if len(starts) < len(bins):
        bins, counts = bins[starts], np.add.reduceat(counts, starts)
    some = counts != 0
    return Histogram(bins, counts) if some.all() else Histogram(bins[some], counts[some])


def _added_positive(parts: Sequence[tuple[Histogram, Integers]]) -> Histogram:
    """Adds histograms up whose counts are positive and small.

    The count rides in the low bits: sorting plain integers is many times faster than sorting places.
    """
    packed = np.empty(sum(len(part.bins) for part, _ in parts), np.int64)
    end = 0
    for part, places in parts:
        begin, end = end, end + len(part.bins)
        own = packed[begin:end]
        np.take(places << (_BUCKET_BITS + _COUNT_BITS), part.place, out=own, mode="clip")
        bucket = part.bucket
        bucket <<= _COUNT_BITS
        own |= bucket
        own |= part.counts
    if not bool(np.all(packed[1:] >= packed[:-1])):
        packed.sort()
    bins = packed >> _COUNT_BITS
    packed &= (1 << _COUNT_BITS) - 1
    starts = _starts(bins)
    if len(starts) < len(bins):
        bins, packed = bins.take(starts), np.add.reduceat(packed, starts)
    return Histogram(bins, packed)


def percentile_buckets(histogram: Histogram, cells: int, percents: Sequence[int]) -> dict[int, Integers]:
    """Nearest-rank percentiles: the smallest bucket that at least so many per cent of a cell's values do not exceed.

    Args:
      histogram: of `cells` cells; its counts are positive.
      cells: number of cells.
      percents: ranks, 1 to 100.

    Returns:
      By rank, the bucket of each cell; -1 for a cell without values.
    """
    cumulated = np.append(0, np.cumsum(histogram.counts))
    edges = np.searchsorted(histogram.bins, np.arange(cells + 1) << _BUCKET_BITS)
    before, total = cumulated[edges[:-1]], np.diff(cumulated[edges])
    bucket = np.append(histogram.bucket, -1)
    found = {}
    for percent in percents:
        at = np.searchsorted(cumulated[1:], before + (total * percent + 99) // 100)
        found[percent] = bucket[np.where(total == 0, len(bucket) - 1, at)]
    return found


def _moved(histogram: Histogram, places: Integers) -> Integers:
    """The bins with other places of their cells."""
    bins = places[histogram.place]
    bins <<= _BUCKET_BITS
    bins |= histogram.bucket
    return bins


def _starts(ordered: Integers) -> Integers:
    """Where each distinct value begins."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else ordered
