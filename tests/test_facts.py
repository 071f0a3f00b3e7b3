"""Facts restated file by file: rows go and come piece by piece, and the file is the one that all rows at once give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinks import facts, parquet
from sinks.facts import parts_of, restate_facts
from sinks.parquet import write_table
from sinks.publish import Snapshot
from transforms.tables import TURNS

KEYS = [*TURNS.key]
_MINUTE = 60_000_000
_FIRST = 1_767_571_200_000_000


def turns(numbers: np.ndarray, minutes: np.ndarray, said: str) -> pa.Table:
    """Turns with numbers as keys, that begin some minutes after a moment, and their key_hash."""
    columns: dict[str, Any] = {
        field.name: pa.nulls(len(numbers), field.type) if field.nullable else pa.array([0] * len(numbers))
        for field in TURNS.schema
    }
    columns |= {
        "conversation_key": [f"c{n}" for n in numbers],
        "started_at": _FIRST + minutes * _MINUTE,
        "turn_number": numbers,
        "channel": [("email", "x", said)[n % 3] for n in numbers],
        "outcome": [said] * len(numbers),
        "agent_id": [None if n % 4 else f"agent {n % 5}" for n in numbers],
        "is_responded": numbers % 2 == 0,
        "needs_reply": numbers % 2 == 1,
    }
    rows = pa.table({name: pa.array(values) for name, values in columns.items()})
    rows = rows.select(TURNS.schema.names).cast(TURNS.schema)
    return rows.append_column("key_hash", pa.array(numbers.astype(np.uint64) << np.uint64(31)))


def restated(old: pa.Table | None, removed: pa.Table, added: pa.Table, folder: Path, sort: bool = True) -> list[Path]:
    """What becomes of one file of a month, or of none."""
    before, after = folder / "before", folder / "after"
    for place in (before, after):
        place.mkdir(parents=True)
    snapshot = Snapshot(folder, after, before, 2, None)
    name = "turns/started_month=2026-01/part-00000-of-00001.parquet"
    if old is not None:
        if sort:
            old = old.take(pa.array(np.argsort(old["started_at"].cast(pa.int64()).to_numpy(), kind="stable")))
        write_table(old.drop_columns("key_hash"), before / name, TURNS, ("started_at",) if sort else ())
    names = [] if old is None else [name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "previous_files", lambda under="": names)
        patch.setattr(snapshot, "previous_file", lambda name: before / name)
        patch.setattr(snapshot, "link", lambda name: after / name)
        found = [write() for write in restate_facts(snapshot, TURNS, removed.select([*KEYS, "key_hash"]), added)]
    return [path for path in found if path is not None]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 50 rows, which are read in pieces of 17."""
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 50)
    monkeypatch.setattr(facts, "_ROWS_AT_ONCE", 17)


@pytest.mark.parametrize("is_sorted", [True, False], ids=["in order", "in any order"])
@pytest.mark.parametrize("moments", [1, 7, 5_000])
@pytest.mark.parametrize("seed", range(4))
def test_as_all_rows_at_once(seed: int, moments: int, is_sorted: bool, tmp_path: Path) -> None:
    """Whichever rows go and come, and however many begin at one moment: not a byte differs."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(400)
    old = turns(numbers[:300], rng.integers(0, moments, 300), "before")
    gone = np.sort(rng.choice(300, (0, 1, 80, 299)[seed], replace=False))
    # Some of those that go come again, others are new; they may be later than all that is there.
    came = np.concatenate([numbers[gone[::2]], numbers[300 : 300 + (100, 1, 30, 0)[seed]]])
    added = turns(came, rng.integers(0, moments * 2, len(came)), "after")
    (path,) = restated(old, old.take(pa.array(gone)), added, tmp_path, is_sorted)
    stays = old.take(pa.array(np.setdiff1d(np.arange(300), gone)))
    if is_sorted:
        stays = stays.sort_by("started_at")
    whole = pa.concat_tables([stays, added])
    order = np.argsort(whole["started_at"].cast(pa.int64()).to_numpy(), kind="stable")
    rows = whole.take(pa.array(order)).drop_columns("key_hash")
    assert pq.read_table(path, partitioning=None).sort_by([(name, "ascending") for name in ("started_at", *KEYS)]) == (
        rows.sort_by([(name, "ascending") for name in ("started_at", *KEYS)])
    )
    if is_sorted:
        assert (
            path.read_bytes() == write_table(rows, tmp_path / "whole.parquet", TURNS, ("started_at",)).path.read_bytes()
        )


def test_nothing_is_left(tmp_path: Path) -> None:
    """A file without a row is no file; one that had none before is made of what comes."""
    rows = turns(np.arange(60), np.arange(60), "before")
    assert restated(rows, rows, rows.slice(0, 0), tmp_path / "gone") == []
    (path,) = restated(None, rows.slice(0, 0), rows, tmp_path / "new")
    assert parts_of(path.name) == 1 and pq.read_metadata(path).num_rows == 60


def test_what_goes_has_to_be_there(tmp_path: Path) -> None:
    """A row that goes but is in no file is a fault of ours, and nothing is published."""
    rows = turns(np.arange(60), np.arange(60), "before")
    with pytest.raises(AssertionError, match="expected 60 rows of turns to go, 59 did"):
        restated(rows.slice(1), rows, rows.slice(0, 0), tmp_path)
