"""Statistics and the rows of `kpi_statistics` that they are stored as, both ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from transforms.definitions import STATISTICS
from transforms.histograms import Histogram
from transforms.ordering import one_chunk
from transforms.statistics import BASES, HISTOGRAM_PLACES, SUM_NAMES, Integers, Statistics, add_statistics
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
    basis = np.array([BASES.index(name) for name in rows["basis"].to_pylist()])
    empty = replace(
        Statistics.zero(),
        accounts=tuple(account.dictionary.to_pylist()),
        channels=tuple(channel.dictionary.to_pylist()),
    )
    seconds = rows["window_start"].cast(pa.int64()).to_numpy() // 1_000_000
    codes = [np.asarray(column.indices).astype(np.int64) for column in (account, channel)]
    cell = empty.pack(basis, codes[0], codes[1], seconds)
    order = np.argsort(cell)
    rows = rows.take(pa.array(order)).combine_chunks()
    sums = np.stack([rows[MILLIONTHS.get(name, name)].to_numpy() for name in SUM_NAMES]).astype(np.int64)
    histograms = tuple(_histogram(one_chunk(rows[name])) for name in HISTOGRAM_PLACES)
    return replace(empty, cell=cell[order], sums=sums, histograms=histograms)


def _histogram(lists: pa.ListArray) -> Histogram:
    entries = lists.flatten()
    place = np.repeat(np.arange(len(lists)), np.diff(np.asarray(lists.offsets)))
    bucket, counts = (np.asarray(entries.field(name)).astype(np.int64) for name in ("bucket", "count"))
    return Histogram.packed(place, bucket, counts)


def add_stored(changes: Statistics, stored: Statistics) -> Statistics:
    """The cells of changes, with what is stored in them added; those in which nothing is left are gone."""
    total = add_statistics([changes, stored])
    if not len(total.cell):
        return total
    basis, account, channel, seconds = changes.unpack()
    codes = [
        np.array([of.index(word) if word in of else -1 for word in words] or [-1], np.int64)[code]
        for of, words, code in (
            (total.accounts, changes.accounts, account),
            (total.channels, changes.channels, channel),
        )
    ]
    wanted = total.pack(basis, codes[0], codes[1], seconds)
    return total.only(np.isin(total.cell, wanted[(codes[0] >= 0) & (codes[1] >= 0)]))


def places_in(ends: Integers, starts: Integers, start: Integers) -> Integers:
    """The end of each window that begins at start, given the starts and ends of windows among which all of them are."""
    order = np.argsort(starts)
    return ends[order[np.searchsorted(starts, start, sorter=order)]]
