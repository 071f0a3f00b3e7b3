"""Pairing and KPIs: golden cases, equality with the reference on random worlds, and laws."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import reference
from drivers import Outcome, parts_of, run_kernels, whole_numbers
from golden import cases, compare, compare_tables, expected, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import clean_world, world

from transforms import hashing
from transforms.statistics import HISTOGRAM_NAMES, SUM_NAMES, add_statistics

WORLDS = 300


def outcome_of(lines: list[bytes], run: object, shards: int = 1) -> Outcome:
    """Runs the kernels over one file."""
    return run_kernels([b"\n".join(lines)], run, shards)  # type: ignore[arg-type]


@pytest.mark.skipif(not cases(), reason="the golden cases are not beside the project")
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.parent.name}/{case.name}")
def test_golden_case(case: Path) -> None:
    """Every table of every golden case, and what became of its rows."""
    outcome = run_kernels([(case / "events.ndjson").read_bytes()], settings_of(case))
    assert compare(outcome.tables(), case) == []
    want = expected(case)["counts"]
    assert {k: v for k, v in outcome.counts.items() if k != "as_of"} == {k: v for k, v in want.items() if k != "as_of"}


@pytest.mark.parametrize("first", range(0, WORLDS, 50))
def test_equals_the_reference(first: int) -> None:
    """The vectors come to what the state machine comes to, row for row."""
    for seed in range(first, first + 50):
        lines, run = world(seed, debatable=False)
        want = reference.run(lines, run)
        outcome = outcome_of(lines, run, shards=1 + seed % 3)
        assert compare_tables(outcome.tables(), want.tables) == [], f"world {seed}"
        assert outcome.counts == want.counts, f"world {seed}"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 4))
def test_shuffling_and_sharding_change_nothing(seed: int, shards: int, files: int) -> None:
    """No result depends on arrival order, file order, batch size or number of shards."""
    lines, run = clean_world(seed)
    rng = random.Random(seed)
    shuffled = rng.sample(lines, len(lines))
    cuts = sorted(rng.randrange(len(lines) + 1) for _ in range(files - 1))
    parts = [b"\n".join(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
    one, other = outcome_of(lines, run), run_kernels(parts, run, shards)
    assert sorted_rows(one) == sorted_rows(other)
    assert whole_numbers(one.statistics) == whole_numbers(other.statistics)
    assert one.kpi_statistics.equals(other.kpi_statistics)


def sorted_rows(outcome: Outcome) -> dict[str, list[str]]:
    """Every row as text, sorted; rows of equal text are equal."""
    return {name: sorted(map(repr, rows)) for name, rows in outcome.tables().items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_keys_that_share_a_hash_stay_apart(seed: int) -> None:
    """A hash only proposes: with one of two bits the result is the same."""
    lines, run = world(seed, debatable=False)
    want = outcome_of(lines, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transforms.shuffle.conversation_key_hash", lambda *a: hashing.conversation_key_hash(*a) & 3)
        patch.setattr("transforms.shuffle.hash_column", lambda c: hashing.hash_column(c) & 1)
        assert sorted_rows(outcome_of(lines, run)) == sorted_rows(want)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_restatement_is_a_row_taken_away_and_one_added(seed: int) -> None:
    """Statistics of (new - old) added to the old give the new; what is taken away again leaves nothing."""
    lines, run = clean_world(seed)
    half = outcome_of(lines[: len(lines) // 2], run).statistics
    whole = outcome_of(lines, run).statistics
    difference = add_statistics([whole, -half])
    assert whole_numbers(add_statistics([half, difference])) == whole_numbers(whole)
    assert len(add_statistics([whole, -whole]).cell) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_nothing_is_lost_and_the_bases_agree(seed: int) -> None:
    """Rows read = kept + dead + duplicates; over all time every count and sum agrees between the bases."""
    outcome = outcome_of(*world(seed, debatable=False))
    counts = outcome.counts
    assert counts["rows_read"] == counts["events_kept"] + counts["dead_letters"] + counts["exact_duplicates"]
    total = outcome.statistics
    basis = total.unpack()[0]
    for place, name in enumerate(SUM_NAMES):
        if not name.startswith(("backlog", "waiting")):
            assert total.sums[place][basis == 0].sum() == total.sums[place][basis == 1].sum()
    for name in HISTOGRAM_NAMES:
        cell, bucket, count = parts_of(total.histogram(name))
        both = [np.bincount(bucket[basis[cell] == b], weights=count[basis[cell] == b], minlength=4096) for b in (0, 1)]
        assert both[0].tolist() == both[1].tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_parts_add_up_to_the_whole(one: int, two: int) -> None:
    """Adding is associative and commutative, and zero is nothing."""
    a, b = (outcome_of(*clean_world(seed)).statistics for seed in (one, two))
    both = whole_numbers(a + b)
    assert both == whole_numbers(b + a)
    assert whole_numbers((a + b) + a) == whole_numbers(a + (b + a))
    assert whole_numbers(add_statistics([a])) == whole_numbers(a)


@pytest.mark.parametrize("lines", [[], [b""], [b'{"event_id": "1"}']])
def test_no_events_come_to_nothing(lines: list[bytes]) -> None:
    """Empty tables, not an error."""
    from transforms.settings import Settings

    outcome = outcome_of(lines, Settings())
    assert outcome.tables() == {"conversations": [], "turns": [], "kpis": []}
