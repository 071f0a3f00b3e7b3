"""Statistics and the rows of `kpi_statistics` that they are stored as, both ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.definitions import STATISTICS
from transforms.histograms import Histogram
from transforms.ordering import one_chunk
from transforms.statistics import BASES, HISTOGRAM_PLACES, SUM_NAMES, Integers, Statistics
from transforms.tables import HISTOGRAM, MILLIONTHS


def statistic_columns(windows: Statistics) -> dict[str, pa.Array]:
    """The statistics of each cell as columns; sums in seconds and in millionths, histograms as lists."""
    out: dict[str, pa.Array] = {}
    for statistic in STATISTICS:
        if statistic.name in HISTOGRAM_PLACES:
            histogram = windows.histogram(statistic.name)
            offsets = histogram.edges(len(windows.cell)).astype(np.int32)
            entries = pa.StructArray.from_arrays(
                [pa.array(histogram.bucket.astype(np.int16)), pa.array(histogram.counts.astype(np.int32))],
                fields=list(HISTOGRAM.value_type),
            )
            out[statistic.name] = pa.ListArray.from_arrays(pa.array(offsets), entries, type=HISTOGRAM)
        else:
            sums = windows.sums[SUM_NAMES.index(statistic.name)]
            exact = MILLIONTHS.get(statistic.name)
            out[statistic.name] = pa.array(sums if exact is None else sums / 1e6)
            if exact is not None:
                out[exact] = pa.array(sums)
    return out


def read_statistics(rows: pa.Table) -> Statistics:
    """The statistics of rows of `kpi_statistics`, of one grain; an instant is a window_start."""
    if not rows.num_rows:
        return Statistics.zero()
    account = one_chunk(rows["account_id"].cast(pa.string())).dictionary_encode("encode")
    channel = one_chunk(rows["channel"].cast(pa.string())).dictionary_encode()
    empty = replace(
        Statistics.zero(),
        accounts=tuple(account.dictionary.to_pylist()),
        channels=tuple(channel.dictionary.to_pylist()),
    )
    codes = [np.asarray(column.indices).astype(np.int64) for column in (account, channel)]
    return _read(rows, empty, empty.pack(_bases(rows), codes[0], codes[1], _seconds(rows)))


def read_same_cells(rows: pa.Table, grain: str, wanted: Statistics) -> Statistics:
    """The statistics of those rows of `kpi_statistics` that are of a grain and of a cell of others.

    Args:
      rows: of any grains.
      grain: the one of `wanted`.
      wanted: statistics; an instant is a window_start.
    """
    codes = [
        _places(words, rows[name]) for words, name in ((wanted.accounts, "account_id"), (wanted.channels, "channel"))
    ]
    cell = wanted.pack(_bases(rows), codes[0], codes[1], _seconds(rows))
    among = np.asarray(pc.equal(rows["grain"], grain)) & (codes[0] >= 0) & (codes[1] >= 0)
    among[among] = np.isin(cell[among], wanted.cell)
    return _read(rows.filter(pa.array(among)), wanted, cell[among])


def _read(rows: pa.Table, words: Statistics, cell: Integers) -> Statistics:
    """The statistics of rows of `kpi_statistics`, whose cells are made of the accounts and channels of others."""
    order = np.argsort(cell)
    rows = rows.take(pa.array(order)).combine_chunks()
    sums = np.stack([rows[MILLIONTHS.get(name, name)].to_numpy() for name in SUM_NAMES]).astype(np.int64)
    histograms = tuple(_histogram(one_chunk(rows[name])) for name in HISTOGRAM_PLACES)
    return replace(words, cell=cell[order], sums=sums, histograms=histograms)


def _bases(rows: pa.Table) -> Integers:
    return _places(BASES, rows["basis"])


def _places(words: tuple[str | None, ...], column: pa.ChunkedArray) -> Integers:
    """The place of each value among some words; -1: it is not there."""
    places = pc.index_in(column.cast(pa.string()), pa.array(words, pa.string()))
    return np.asarray(pc.fill_null(places, -1)).astype(np.int64)


def _seconds(rows: pa.Table) -> Integers:
    seconds: Integers = rows["window_start"].cast(pa.int64()).to_numpy() // 1_000_000
    return seconds


def _histogram(lists: pa.ListArray) -> Histogram:
    entries = lists.flatten()
    place = np.repeat(np.arange(len(lists)), np.diff(np.asarray(lists.offsets)))
    bucket, counts = (np.asarray(entries.field(name)).astype(np.int64) for name in ("bucket", "count"))
    return Histogram.packed(place, bucket, counts)


def places_in(ends: Integers, starts: Integers, start: Integers) -> Integers:
    """The end of each window that begins at start, given the starts and ends of windows among which all of them are."""
    order = np.argsort(starts)
    return ends[order[np.searchsorted(starts, start, sorter=order)]]
