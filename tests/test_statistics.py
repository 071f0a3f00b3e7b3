"""Histograms and sums: their errors and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.counting import StatisticsBuilder, exact_sums
from transforms.histograms import bucket_middle, bucket_of
from transforms.kpis import percentiles
from transforms.statistics import (
    ACTIVITY,
    Statistics,
    add_statistics,
)


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


def test_a_file_gives_back_what_was_saved(tmp_path: object) -> None:
    """Statistics travel between steps as files."""
    given_ = one_cell(np.array([5, 7, 0], np.int64))
    given_.save(f"{tmp_path}/statistics")
    back = Statistics.load(f"{tmp_path}/statistics")
    assert back.accounts == given_.accounts and back.channels == given_.channels
    assert back.sums.tolist() == given_.sums.tolist()
    for ours, theirs in zip(back.histograms, given_.histograms, strict=True):
        assert ours.bins.tolist() == theirs.bins.tolist() and ours.counts.tolist() == theirs.counts.tolist()
