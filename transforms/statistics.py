"""Additive statistics: zero, plus and minus of what the KPIs are made of, per basis, slice, account and channel.

Durations are summed as whole microseconds and scores as whole millionths, so that sums are exact, shards merge in any
order, and what is taken away again leaves nothing behind. Values are counted in log-histograms.
"""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.definitions import STATISTICS
from transforms.histograms import MAX_CELLS, Counts, Histogram, add_histograms, narrow

Integers = npt.NDArray[np.int64]

SUM_NAMES = tuple(s.name for s in STATISTICS if s.kind != "histogram")
SUM_PLACES = {name: place for place, name in enumerate(SUM_NAMES)}
HISTOGRAM_NAMES = tuple(s.name for s in STATISTICS if s.kind == "histogram")
HISTOGRAM_PLACES = {name: place for place, name in enumerate(HISTOGRAM_NAMES)}

BASES = ("activity", "opened")
ACTIVITY, OPENED = range(2)

_TIME_BITS = 34
_TIME_ZERO = 1 << 32


@dataclass(frozen=True)
class Statistics:
    """Statistics of k cells; a cell is a basis, an instant (slice or window), an account and a channel.

    Attributes:
      accounts: the accounts, by code.
      channels: the channels, by code.
      cell: k packed cells, ascending.
      sums: counts and sums, one row for each of SUM_NAMES, k columns.
      histograms: one for each of HISTOGRAM_NAMES, over the k cells.
    """

    accounts: tuple[str | None, ...]
    channels: tuple[str, ...]
    cell: Integers
    sums: Integers
    histograms: tuple[Histogram, ...]

    @staticmethod
    def zero() -> Statistics:
        """No statistics."""
        sums = np.empty((len(SUM_NAMES), 0), np.int64)
        return Statistics((), (), np.empty(0, np.int64), sums, (Histogram.zero(),) * len(HISTOGRAM_NAMES))

    def save(self, path: str) -> None:
        """Writes the statistics to a file that `load` and `add_statistics` read.

        Where a worker writes it once more, those that have the earlier one mapped keep it.
        """
        words = np.frombuffer(pickle.dumps((self.accounts, self.channels)), np.uint8)
        # (As narrow as they are: a fresh page costs more than what is computed on it.)
        histograms = [values for h in self.histograms for values in (h.bins, narrow(h.counts))]
        unfinished = f"{path}.{uuid.uuid4().hex}"
        with pa.OSFile(unfinished, "wb") as file:
            for values in (words, self.cell, *map(narrow, self.sums), *histograms):
                pa.ipc.write_tensor(pa.Tensor.from_numpy(values), file)
        os.replace(unfinished, path)

    @staticmethod
    def load(path: str) -> Statistics:
        """Reads what `save` wrote."""
        saved = _Saved.map(path)
        return Statistics(
            saved.accounts, saved.channels, saved.cell, np.stack(saved.sums, dtype=np.int64), saved.histograms
        )

    def __neg__(self) -> Statistics:
        """What takes these statistics away when it is added."""
        return replace(self, sums=-self.sums, histograms=tuple(-h for h in self.histograms))

    def __add__(self, other: Statistics) -> Statistics:
        """Both together."""
        return add_statistics([self, other])

    def unpack(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Basis, account code, channel code and instant (seconds since the epoch) of each cell."""
        return _unpacked(self)

    def histogram(self, name: str) -> Histogram:
        """The histogram of this name."""
        return self.histograms[HISTOGRAM_PLACES[name]]

    def only(self, kept: npt.NDArray[np.bool_]) -> Statistics:
        """The cells that are marked."""
        place = np.where(kept, np.cumsum(kept) - 1, -1)
        histograms = []
        for histogram in self.histograms:
            some = kept[histogram.place]
            histograms.append(
                Histogram.packed(place[histogram.place[some]], histogram.bucket[some], histogram.counts[some])
            )
        return replace(self, cell=self.cell[kept], sums=self.sums[:, kept], histograms=tuple(histograms))

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


@dataclass(frozen=True)
class _Saved:
    """Statistics in a file that is mapped into memory; every sum is as narrow as it was saved."""

    accounts: tuple[str | None, ...]
    channels: tuple[str, ...]
    cell: Integers
    sums: list[Counts]
    histograms: tuple[Histogram, ...]

    @staticmethod
    def map(path: str) -> _Saved:
        with pa.memory_map(path) as file:
            words, cell, *numbers = (
                pa.ipc.read_tensor(file).to_numpy() for _ in range(2 + len(SUM_NAMES) + 2 * len(HISTOGRAM_NAMES))
            )
        sums, parts = numbers[: len(SUM_NAMES)], numbers[len(SUM_NAMES) :]
        histograms = tuple(map(Histogram, parts[::2], parts[1::2]))
        accounts, channels = pickle.loads(words.tobytes())
        return _Saved(accounts, channels, cell, sums, histograms)


def _unpacked(given: Statistics | _Saved) -> tuple[Integers, Integers, Integers, Integers]:
    key, seconds = given.cell >> _TIME_BITS, (given.cell & ((1 << _TIME_BITS) - 1)) - _TIME_ZERO
    key, channel = np.divmod(key, max(len(given.channels), 1))
    basis, account = np.divmod(key, max(len(given.accounts), 1))
    return basis, account, channel, seconds


def add_statistics(given: Iterable[Statistics | str]) -> Statistics:
    """Adds statistics up; what adds up to nothing is gone.

    Args:
      given: statistics, or names of files of them, over any accounts, channels and cells.
    """
    mapped = (_Saved.map(one) if isinstance(one, str) else one for one in given)
    parts = [part for part in mapped if len(part.cell)]
    if not parts:
        return Statistics.zero()
    accounts = tuple(sorted({a for p in parts for a in p.accounts}, key=lambda a: (a is not None, a or "")))
    channels = tuple(sorted({c for p in parts for c in p.channels}))
    account_codes = {account: code for code, account in enumerate(accounts)}
    channel_codes = {channel: code for code, channel in enumerate(channels)}
    union = replace(Statistics.zero(), accounts=accounts, channels=channels)
    cells = []
    for part in parts:
        basis, account, channel, seconds = _unpacked(part)
        account = np.array([account_codes[a] for a in part.accounts], np.int64)[account]
        channel = np.array([channel_codes[c] for c in part.channels], np.int64)[channel]
        cells.append(union.pack(basis, account, channel, seconds))
    cell = np.sort(np.concatenate(cells))
    cell = cell[np.append(True, np.diff(cell) != 0)]
    sums = np.zeros((len(SUM_NAMES), len(cell)), np.int64)
    places = [np.searchsorted(cell, own) for own in cells]
    for part, place in zip(parts, places, strict=True):
        for total, row in zip(sums, part.sums, strict=True):
            total[place] += row
    histograms = tuple(
        add_histograms([(part.histograms[i], place) for part, place in zip(parts, places, strict=True)])
        for i in range(len(HISTOGRAM_NAMES))
    )
    return _without_nothing(Statistics(accounts, channels, cell, sums, histograms))


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
    if not len(cell) or bool(np.all(cell[1:] > cell[:-1])):
        return replace(given, accounts=accounts, channels=channels, cell=cell)
    sums, order = given.sums, np.arange(len(cell))
    if not bool(np.all(cell[1:] >= cell[:-1])):
        order = np.argsort(cell, kind="stable")
        cell, sums = cell[order], sums[:, order]
    first = np.append(True, np.diff(cell) != 0)
    starts = np.flatnonzero(first)
    place = np.empty(len(cell), np.int64)
    place[order] = np.cumsum(first) - 1
    histograms = tuple(add_histograms([(histogram, place)]) for histogram in given.histograms)
    sums = np.stack([np.add.reduceat(row, starts) for row in sums])
    return _without_nothing(Statistics(accounts, channels, cell[starts], sums, histograms))


def _without_nothing(given: Statistics) -> Statistics:
    """The cells in which something is left.

    Raises:
      ValueError: there are more cells than histograms can tell apart.
    """
    if len(given.cell) >= MAX_CELLS:
        raise ValueError(f"expected fewer than {MAX_CELLS:,} cells, got {len(given.cell):,}")
    kept = given.sums.any(axis=0)
    if kept.all():
        return given
    place = np.cumsum(kept) - 1
    histograms = tuple(add_histograms([(histogram, place)]) for histogram in given.histograms)
    return replace(given, cell=given.cell[kept], sums=given.sums[:, kept], histograms=histograms)
