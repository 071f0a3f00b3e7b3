"""KPIs: from statistics by slice to the windows of every grain, and from their statistics to values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.calendars import GRAINS, make_grid
from transforms.definitions import KPIS, Kpi
from transforms.histograms import bucket_middle, percentile_buckets
from transforms.ordering import dense_codes
from transforms.schema import TIMESTAMP
from transforms.statistics import BASES, OPENED, SUM_PLACES, Integers, Statistics, add_statistics
from transforms.stored_statistics import places_in, read_same_cells, statistic_columns
from transforms.tables import COMMIT_COLUMNS, KPI_STATISTICS, KPI_TABLE, MILLIONTHS

WINDOW_KEY = pa.schema([KPI_STATISTICS.schema.field(name).remove_metadata() for name in KPI_STATISTICS.key])
"""The columns that name a row of `kpis` and of `kpi_statistics`."""

StoredStatistics = Callable[[Mapping[str, list[int]]], pa.Table]
"""Reads rows of kpi_statistics, at least those of some windows: by grain, their window_start (seconds)."""


def compute_kpis(
    statistics: Statistics, timezone: str, as_of: int, stored: StoredStatistics | None = None
) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Makes the rows of `kpis` and `kpi_statistics`, and the totals.

    Args:
      statistics: by slice, as pair_messages gives them, of all shards together.
      timezone: IANA zone of the windows.
      as_of: the moment up to which time has passed, microseconds since the epoch.
      stored: reads what is stored already: `statistics` are differences from that, and only the windows in which they
        lie are made.

    Returns:
      `kpis` without the commit's columns and the running sums, `kpi_statistics` (both sorted by window_start, then the
      rest of the key), the totals of compute_totals (of the windows made), and, with `stored`, the keys of the windows
      that were made or have become empty.
    """
    order = ["window_start", "grain", "basis", "account_id", "channel"]
    grains = roll_up(statistics, timezone) if stored is None else _with_stored(statistics, timezone, stored)
    # While one grain is added up the values of the one before are computed.
    with ThreadPoolExecutor(2) as pool:
        tables, keys = [], [WINDOW_KEY.empty_table()]
        for grain, windows, ends, made in grains:
            tables.append(pool.submit(tables_of_grain, grain, windows, ends, as_of))
            if made is not None:
                keys.append(_key_columns(grain, made))
        totals = compute_totals(windows)
        kpis, parts = zip(*(both.result() for both in tables), strict=True)
        sorted_parts = pool.submit(_sorted, pa.concat_tables(parts), order)
        return _sorted(pa.concat_tables(kpis), order), sorted_parts.result(), totals, pa.concat_tables(keys)


def _with_stored(
    changes: Statistics, timezone: str, stored: StoredStatistics
) -> Iterator[tuple[str, Statistics, Integers, Statistics]]:
    """As roll_up, of the windows in which changes lie, with what is stored in them; and the changes themselves."""
    rolled = list(roll_up(changes, timezone))
    rows = stored({grain: np.unique(made.unpack()[3]).tolist() for grain, made, _, _ in rolled})
    for grain, made, ends, _ in rolled:
        windows = add_statistics([made, read_same_cells(rows, grain, made)])
        yield grain, windows, places_in(ends, made.unpack()[3], windows.unpack()[3]), made


def tables_of_grain(grain: str, windows: Statistics, ends: Integers, as_of: int) -> tuple[pa.Table, pa.Table]:
    """The rows of `kpis` and of `kpi_statistics` of one grain."""
    index = _window_columns(grain, windows, ends)
    complete = pa.array(ends * 1_000_000 <= as_of)
    kpis = pa.table({**index, "is_complete": complete, **_values(windows)})
    parts = pa.table({**index, **statistic_columns(windows)}).select(KPI_STATISTICS.schema.names)
    names = [c.name for c in KPI_TABLE.columns if c not in COMMIT_COLUMNS]
    return kpis.select(names), parts.cast(KPI_STATISTICS.schema)


def compute_totals(months: Statistics) -> pa.Table:
    """Makes one row per channel, and one for all channels together (channel null), over all time.

    Args:
      months: statistics by month, or by any other grain.

    Returns:
      channel and every KPI that is stored, on the activity basis, all accounts together; busiest channel first.
    """
    basis, _, channel, _ = months.unpack()
    zeros = np.zeros(len(basis), np.int64)
    each, every = (months.moved_to_cells(basis, zeros, code, zeros) for code in (channel, zeros))
    order = np.argsort(-each.sums[SUM_PLACES["message_count"]], kind="stable")
    rows = pa.table({"channel": _words(each.channels, each.unpack()[2]), **_values(each)})
    rows = rows.take(pa.array(order[each.unpack()[0][order] != OPENED]))
    total = pa.table({"channel": pa.nulls(len(every.cell), pa.string()), **_values(every)})
    return pa.concat_tables([rows, total.filter(pa.array(every.unpack()[0] != OPENED))])


def roll_up(statistics: Statistics, timezone: str) -> Iterator[tuple[str, Statistics, Integers, None]]:
    """Rolls statistics by slice up to the windows of each grain.

    Yields:
      The grain, its statistics by window (instant: window_start), the window_end of each cell, in seconds, and None.
    """
    if not len(statistics.cell):
        for grain in GRAINS:
            yield grain, statistics, np.empty(0, np.int64), None
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
        yield grain, windows, ends, None


def _key_columns(grain: str, windows: Statistics) -> pa.Table:
    """The keys of the windows of each cell."""
    columns = _window_columns(grain, windows, windows.unpack()[3])
    return pa.table({name: columns[name] for name in WINDOW_KEY.names}).cast(WINDOW_KEY)


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
    ranks: dict[str, list[int]] = {}
    for kpi in KPIS:
        if kpi.quantile is not None:
            ranks.setdefault(kpi.numerator, []).append(round(kpi.quantile * 100))
    found = {name: percentiles(windows, name, percents) for name, percents in ranks.items()}
    return {
        kpi.name: found[kpi.numerator][round(kpi.quantile * 100)]
        if kpi.quantile is not None
        else _value(kpi, windows, is_opened)
        for kpi in KPIS
        if kpi.kind != "running"
    }


def _value(kpi: Kpi, windows: Statistics, is_opened: npt.NDArray[np.bool_]) -> pa.Array:
    """The value of one KPI for each cell; a zero denominator gives null."""
    above = windows.sums[SUM_PLACES[kpi.numerator]]
    if kpi.kind == "count":
        return pa.array(above)
    assert kpi.denominator is not None
    below = windows.sums[SUM_PLACES[kpi.denominator]]
    if kpi.kind == "change":
        return pa.array(above - below, mask=is_opened)
    total = above / 1e6 if kpi.numerator in MILLIONTHS else above.astype(np.float64)
    return pa.array(total / np.maximum(below, 1), mask=below == 0)


def percentiles(windows: Statistics, histogram: str, percents: list[int]) -> dict[int, pa.Array]:
    """Nearest-rank percentiles of each cell, from its histogram.

    Args:
      windows: k cells.
      histogram: name of a histogram.
      percents: ranks, 1 to 100.

    Returns:
      By rank, k values in seconds; null where a histogram is empty.
    """
    found = percentile_buckets(windows.histogram(histogram), len(windows.cell), percents)
    return {
        percent: pa.array(bucket_middle(np.maximum(buckets, 0)) / 1e6, mask=buckets < 0)
        for percent, buckets in found.items()
    }


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
