"""KPIs: from statistics by slice to the windows of every grain, and from their statistics to values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.calendars import GRAINS, make_grid
from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.ordering import dense_codes
from transforms.schema import TIMESTAMP
from transforms.statistics import (
    BASES,
    HISTOGRAM_PLACES,
    OPENED,
    SUM_PLACES,
    Integers,
    Statistics,
    bucket_middle,
)
from transforms.tables import COMMIT_COLUMNS, HISTOGRAM, KPI_STATISTICS, KPI_TABLE

_MILLIONTHS = {s.name for s in STATISTICS if s.kind in ("seconds", "score")}


def compute_kpis(statistics: Statistics, timezone: str, as_of: int) -> tuple[pa.Table, pa.Table]:
    """Makes the rows of `kpis` and `kpi_statistics`.

    Args:
      statistics: by slice, as pair_messages gives them, of all shards together.
      timezone: IANA zone of the windows.
      as_of: the moment up to which time has passed, microseconds since the epoch.

    Returns:
      `kpis` without the commit's columns and the running sums, and `kpi_statistics`; both sorted by window_start, then
      the rest of the key.
    """
    kpis, parts = [], []
    for grain, windows, ends in roll_up(statistics, timezone):
        index = _window_columns(grain, windows, ends)
        complete = pa.array(ends * 1_000_000 <= as_of)
        kpis.append(pa.table({**index, "is_complete": complete, **_values(windows)}))
        parts.append(pa.table({**index, **_parts(windows)}))
    order = ["window_start", "grain", "basis", "account_id", "channel"]
    names = [c.name for c in KPI_TABLE.columns if c not in COMMIT_COLUMNS]
    return (
        _sorted(pa.concat_tables(kpis).select(names), order),
        _sorted(pa.concat_tables(parts).cast(KPI_STATISTICS.schema), order),
    )


def compute_totals(statistics: Statistics) -> pa.Table:
    """Makes one row per channel, and one for all channels together (channel null), over all time.

    Args:
      statistics: by slice.

    Returns:
      channel and every KPI that is stored, on the activity basis, all accounts together; busiest channel first.
    """
    basis, _, channel, _ = statistics.unpack()
    zeros = np.zeros(len(basis), np.int64)
    chosen = replace(statistics, sums=statistics.sums * (basis != OPENED), counts=_of_cells(statistics, basis != OPENED))
    each = chosen.moved_to_cells(zeros, zeros, channel, zeros)
    everything = chosen.moved_to_cells(zeros, zeros, zeros, zeros)
    order = np.argsort(-each.sums[SUM_PLACES["message_count"]], kind="stable")
    rows = pa.table({"channel": _words(each.channels, each.unpack()[2]), **_values(each)}).take(pa.array(order))
    total = pa.table({"channel": pa.nulls(len(everything.cell), pa.string()), **_values(everything)})
    return pa.concat_tables([rows, total])


def roll_up(statistics: Statistics, timezone: str) -> Iterator[tuple[str, Statistics, Integers]]:
    """Rolls statistics by slice up to the windows of each grain.

    Yields:
      The grain, its statistics by window (instant: window_start), and the window_end of each cell, in seconds.
    """
    if not len(statistics.cell):
        for grain in GRAINS:
            yield grain, statistics, np.empty(0, np.int64)
        return
    seconds = statistics.unpack()[3]
    grid = make_grid(timezone, int(seconds.min()) * 1_000_000, int(seconds.max()) * 1_000_000)
    days = None
    for grain in GRAINS:
        # Days are added up from slices, weeks and months from days; every window is made of whole days.
        source = statistics if grain in ("hour", "day") else days
        assert source is not None
        starts, _ = grid.windows_of(grain, source.unpack()[3])
        windows = source.moved_to(starts)
        if grain == "day":
            days = windows
        start = windows.unpack()[3]
        ends = start + 3600 if grain == "hour" else grid.windows_of(grain, start)[1]
        yield grain, windows, ends


def _of_cells(statistics: Statistics, chosen: npt.NDArray[np.bool_]) -> Integers:
    """The counts of the bins, 0 where their cell is not chosen."""
    return statistics.counts * chosen[statistics.cell_of_bins]


def _window_columns(grain: str, windows: Statistics, ends: Integers) -> dict[str, pa.Array]:
    """The key columns of each cell."""
    basis, account, channel, start = windows.unpack()
    return {
        "basis": _words(BASES, basis),
        "grain": _words((grain,), np.zeros(len(basis), np.int64)),
        "window_start": _instants(start),
        "window_end": _instants(ends),
        "account_id": _words(windows.accounts, account),
        "channel": _words(windows.channels, channel),
    }


def _values(windows: Statistics) -> dict[str, pa.Array]:
    """The value of every KPI that is stored, for each cell."""
    is_opened = windows.unpack()[0] == OPENED
    out = {}
    for kpi in KPIS:
        if kpi.kind != "running":
            out[kpi.name] = _value(kpi, windows, is_opened)
    return out


def _value(kpi: Kpi, windows: Statistics, is_opened: npt.NDArray[np.bool_]) -> pa.Array:
    """The value of one KPI for each cell; a zero denominator gives null."""
    if kpi.kind == "percentile":
        assert kpi.quantile is not None
        middle, none = percentiles(windows, kpi.numerator, round(kpi.quantile * 100))
        return pa.array(middle / 1e6, mask=none)
    above = windows.sums[SUM_PLACES[kpi.numerator]]
    if kpi.kind == "count":
        return pa.array(above)
    assert kpi.denominator is not None
    below = windows.sums[SUM_PLACES[kpi.denominator]]
    if kpi.kind == "change":
        return pa.array(above - below, mask=is_opened)
    total = above / 1e6 if kpi.numerator in _MILLIONTHS else above.astype(np.float64)
    return pa.array(total / np.maximum(below, 1), mask=below == 0)


def percentiles(
    windows: Statistics, histogram: str, percent: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Nearest-rank percentile of each cell, from its histogram.

    Args:
      windows: k cells.
      histogram: name of a histogram.
      percent: 1 to 100.

    Returns:
      k values in microseconds, and whether there is none.
    """
    place, bucket, count = windows.histogram(histogram)
    total = np.bincount(place, weights=count, minlength=len(windows.cell)).astype(np.int64)
    cumulated = np.cumsum(count)
    before = np.cumsum(total) - total
    rank = (total * percent + 99) // 100
    at = np.searchsorted(cumulated, before + rank)
    none = total == 0
    found = np.append(bucket, 0)[np.where(none, len(bucket), at)]
    return bucket_middle(found), none


def _parts(windows: Statistics) -> dict[str, pa.Array]:
    """The statistics of each cell as columns; sums in seconds, histograms as lists of (bucket, count)."""
    out: dict[str, pa.Array] = {}
    for statistic in STATISTICS:
        if statistic.name in HISTOGRAM_PLACES:
            place, bucket, count = windows.histogram(statistic.name)
            offsets = np.searchsorted(place, np.arange(len(windows.cell) + 1)).astype(np.int32)
            entries = pa.StructArray.from_arrays(
                [pa.array(bucket.astype(np.int16)), pa.array(count)], fields=list(HISTOGRAM.value_type)
            )
            out[statistic.name] = pa.ListArray.from_arrays(pa.array(offsets), entries, type=HISTOGRAM)
        else:
            sums = windows.sums[SUM_PLACES[statistic.name]]
            out[statistic.name] = pa.array(sums / 1e6 if statistic.name in _MILLIONTHS else sums)
    return out


def _sorted(table: pa.Table, names: list[str]) -> pa.Table:
    """Sorts rows by columns; null comes first, text by its UTF-8 bytes."""
    ranks = []
    for name in names:
        column = table[name].combine_chunks()
        ranks.append(dense_codes(column) if pa.types.is_string(column.type) else np.asarray(column.cast(pa.int64())))
    return table.take(pa.array(np.lexsort(ranks[::-1])))


def _words(words: tuple[str | None, ...], codes: Integers) -> pa.Array:
    """Text by code, as plain strings with null for None."""
    return pa.array(words, pa.string()).take(pa.array(codes))


def _instants(seconds: Integers) -> pa.Array:
    return pa.array(seconds * 1_000_000).cast(TIMESTAMP)
