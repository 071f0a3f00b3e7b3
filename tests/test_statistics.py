"""Histograms and sums: their errors and their limits, and how they travel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.work_folder import KPI_FILES, _keep_tables, _this_process, read_tables
from transforms.counting import StatisticsBuilder, exact_sums
from transforms.histograms import Histogram, add_histograms, bucket_middle, bucket_of, count_bins, narrow
from transforms.kpis import percentiles, tables_of_grain
from transforms.statistics import (
    ACTIVITY,
    Statistics,
    add_statistics,
)
from transforms.stored_statistics import read_same_cells


@given(st.lists(st.integers(0, 2**53 - 1), min_size=1))
def test_the_middle_of_a_bucket_is_within_one_per_cent(values: list[int]) -> None:
    """Every value, from a microsecond to centuries; zero has a bucket of its own."""
    array = np.array(values, np.int64)
    middle = bucket_middle(bucket_of(array))
    assert np.all(np.abs(middle - array) <= 0.01 * array)
    assert np.all((bucket_of(array) == 0) == (array == 0))


@given(st.lists(st.integers(0, 2**53 - 1), min_size=2))
def test_buckets_keep_the_order(values: list[int]) -> None:
    """A larger value is never in a lower bucket, so that ranks survive."""
    array = np.sort(np.array(values, np.int64))
    assert np.all(np.diff(bucket_of(array)) >= 0)


def one_cell(values: np.ndarray) -> Statistics:
    """Reply times of one cell."""
    to = StatisticsBuilder(np.array([0]), [None], ["x"])
    zeros = np.zeros(len(values), np.int32)
    cells = to.cells(ACTIVITY, zeros, zeros - 1, zeros)
    to.count("answered_turn_count", cells)
    to.add_seconds("reply", cells, values)
    return to.build()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 19, 20, 21, 99, 100, 101, 100_000])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_nearest_rank(count: int, percent: int) -> None:
    """The percentile is within one per cent of the exact nearest-rank value, on small and on large data."""
    values = np.random.default_rng(count).lognormal(20, 2, count).astype(np.int64)
    exact = np.sort(values)[-(-count * percent // 100) - 1]
    found = percentiles(one_cell(values), "reply_histogram", [percent])[percent].to_pylist()[0]
    assert found == pytest.approx(exact / 1e6, rel=0.01)


def test_sums_are_exact_beyond_what_a_double_holds() -> None:
    """Sums of large values come out to the last microsecond."""
    values = np.random.default_rng(1).integers(0, 2**52, 5000)
    places = np.random.default_rng(2).integers(0, 3, 5000)
    want = [sum(int(v) for v, p in zip(values, places, strict=True) if p == place) for place in range(3)]
    assert exact_sums(places, values, 3).tolist() == want


@given(st.lists(st.integers(0, 2**40), max_size=30), st.lists(st.integers(0, 2**40), max_size=30))
def test_old_taken_away_and_new_added(old: list[int], new: list[int]) -> None:
    """Statistics of (new - old) added to the old give the new."""
    a, b = one_cell(np.array(old, np.int64)), one_cell(np.array(new, np.int64))
    back = add_statistics([a, add_statistics([b, -a])])
    assert back.cell.tolist() == b.cell.tolist()
    assert back.sums.tolist() == b.sums.tolist()
    for ours, theirs in zip(back.histograms, b.histograms, strict=True):
        assert ours.bins.tolist() == theirs.bins.tolist() and ours.counts.tolist() == theirs.counts.tolist()


def numbers(histogram: Histogram) -> Counter[tuple[int, int]]:
    """Counts by place and bucket."""
    parts = (histogram.place, histogram.bucket, histogram.counts)
    return Counter({(place, bucket): n for place, bucket, n in zip(*(part.tolist() for part in parts), strict=True)})


@pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
@pytest.mark.parametrize("most", [1, 2, 500], ids=["once", "twice", "often"])
@pytest.mark.parametrize("order", ["ascending", "any"])
@pytest.mark.parametrize(
    ("cells", "new_cells", "bins", "parts"),
    [(3, 2, 40, 3), (3, 2, 900, 1), (9, 4, 600, 3), (2000, 700, 100_000, 1), (2000, 700, 60_000, 2), (50, 40, 30, 2)],
)
def test_histograms_add_up_whatever_their_shape(
    cells: int, new_cells: int, bins: int, parts: int, order: str, most: int, sign: int
) -> None:
    """Few or many bins a cell, once or often, in places that ascend or not, also where less than nothing is added."""
    rng = np.random.default_rng(cells * bins + most)
    given_, want = [], Counter()
    for number in range(parts):
        part = count_bins([np.unique(rng.integers(0, cells, bins) << 12 | rng.integers(5, 800, bins))])
        counts = narrow(rng.integers(1, most + 1, len(part.bins)))
        part = Histogram(part.bins, counts) if sign > 0 or number else -Histogram(part.bins, counts)
        places = rng.integers(0, new_cells, cells)
        places = np.sort(places) if order == "ascending" else places
        given_.append((part, places))
        for (place, bucket), count in numbers(part).items():
            want[int(places[place]), bucket] += count
    total = add_histograms(given_)
    assert np.all(np.diff(total.bins.astype(np.int64)) > 0)
    assert numbers(total) == {key: count for key, count in want.items() if count}
    ends = total.edges(new_cells)
    assert ends.tolist() == [int((total.place < place).sum()) for place in range(new_cells + 1)]


@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, -128, -129, 32_767, 32_768, 2**31, -(2**31) - 1, 2**62])
def test_narrow_numbers_stay_what_they_are(number: int) -> None:
    """At the edges of every type."""
    values = np.array([0, number], np.int64)
    assert narrow(values).tolist() == values.tolist()
    assert narrow(values[:0]).tolist() == []


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=30), max_size=5))
def test_files_add_up_as_what_is_in_them(tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]]) -> None:
    """Statistics that lie in files, some of them empty, are added up from there."""
    folder = tmp_path_factory.mktemp("saved")
    parts = [one_cell(np.array(values, np.int64)) for values in shards]
    for number, part in enumerate(parts):
        part.save(f"{folder}/{number}")
    files, together = (add_statistics(given_) for given_ in ([f"{folder}/{n}" for n in range(len(parts))], parts))
    assert files.cell.tolist() == together.cell.tolist()
    assert files.sums.tolist() == together.sums.tolist() and files.sums.dtype == np.int64
    for ours, theirs in zip(files.histograms, together.histograms, strict=True):
        assert numbers(ours) == numbers(theirs)
    assert sorted(file.name for file in folder.iterdir()) == [str(number) for number in range(len(parts))]


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    """Statistics travel between steps as files."""
    given_ = one_cell(np.array([5, 7, 0], np.int64))
    given_.save(f"{tmp_path}/statistics")
    back = Statistics.load(f"{tmp_path}/statistics")
    assert back.accounts == given_.accounts and back.channels == given_.channels
    assert back.sums.tolist() == given_.sums.tolist() and back.sums.dtype == np.int64
    for ours, theirs in zip(back.histograms, given_.histograms, strict=True):
        assert ours.bins.tolist() == theirs.bins.tolist() and ours.counts.tolist() == theirs.counts.tolist()


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_tables_are_kept_in_memory_or_in_files(tmp_path: Path, is_elsewhere: bool) -> None:
    """A step in another process than the commit's leaves files; either way the tables are read as they were."""
    tables = tuple(pa.table({"number": [place]}) for place in range(len(KPI_FILES)))
    _keep_tables(tables, tmp_path, ("another", 1) if is_elsewhere else _this_process())
    assert bool(list(tmp_path.iterdir())) == is_elsewhere
    assert read_tables(tmp_path) == list(tables)


@pytest.mark.parametrize("seed", range(5))
def test_stored_statistics_of_the_same_cells(seed: int) -> None:
    """Of rows of any grain, account and channel those of the cells that are wanted are read, and no others."""
    rng = np.random.default_rng(seed)
    hours = np.arange(6) * 3_600

    def some(accounts: list[str | None], channels: list[str], count: int) -> Statistics:
        to = StatisticsBuilder(hours, accounts, channels)
        slices, own, channel = (rng.integers(0, len(of), count).astype(np.int32) for of in (hours, accounts, channels))
        cells = to.cells(ACTIVITY, slices, own - int(accounts[0] is None), channel)
        to.count("answered_turn_count", cells)
        to.add_seconds("reply", cells, rng.integers(0, 2**30, count))
        return to.build()

    stored = some([None, "a", "b", "c"], ["email", "phone", "x"], 200)
    ends = stored.unpack()[3] + 3_600
    rows = pa.concat_tables([tables_of_grain(grain, stored, ends, 0)[1] for grain in ("day", "hour")])
    rows = rows.take(pa.array(rng.permutation(rows.num_rows)))
    wanted = some([None, "b", "z"], ["chat", "x"], (0, 1, 5, 30, 90)[seed])
    found = read_same_cells(rows, "hour", wanted)

    def named(given_: Statistics) -> dict[tuple[object, ...], tuple[int, ...]]:
        basis, account, channel, at = given_.unpack()
        names = zip(
            basis, [given_.accounts[c] for c in account], [given_.channels[c] for c in channel], at, strict=True
        )
        reply = given_.histogram("reply_histogram")
        bins: dict[int, tuple[int, ...]] = {}
        for place, bucket, count in zip(reply.place, reply.bucket, reply.counts, strict=True):
            bins[int(place)] = (*bins.get(int(place), ()), int(bucket), int(count))
        return {name: (*given_.sums[:, n].tolist(), *bins[n]) for n, name in enumerate(names)}

    every = named(stored)
    assert named(found) == {name: every[name] for name in named(wanted) if name in every}
    assert found.cell.tolist() == sorted(found.cell.tolist())
