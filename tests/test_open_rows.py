"""Files of open rows: whatever files rows are in, and however those are put together, a key has all of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_shuffle import block, plain_rows

from transforms import open_rows
from transforms.hashing import Hashes, hash_column
from transforms.open_rows import (
    PLAIN_EVENTS,
    count_rows,
    key_hashes,
    key_hashes_in_order,
    merge_rows,
    rows_of_keys,
    write_rows,
)

Row = tuple[object, ...]


def kept(rng: np.random.Generator, count: int, keys: int, source: str) -> pa.Table:
    """Rows of some conversation keys; their words differ from file to file."""
    rows = block(rng, count, ("team_id",) if source == "b" else ())
    names = pa.array([f"key {n}" for n in rng.integers(0, keys, count)])
    rows = rows.set_column(rows.schema.get_field_index("source"), "source", pa.repeat(source, count))
    rows = rows.append_column("key_hash", pa.array(hash_column(names))).append_column(
        "event_hash", pa.array(np.arange(count))
    )
    return pa.table([_as(rows[field.name], field.type) for field in PLAIN_EVENTS], schema=PLAIN_EVENTS)


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)


def of_keys(tables: list[pa.Table], hashes: Hashes) -> list[Row]:
    """The rows of some keys."""
    return plain_rows([table.filter(pa.compute.is_in(table["key_hash"], pa.array(hashes))) for table in tables])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], list[pa.Table]]:
    """Some files, which are put together in batches of a hundred rows, and what is in them."""
    monkeypatch.setattr(open_rows, "ROWS_A_BATCH", 100)
    rng = np.random.default_rng(1)
    tables = [kept(rng, count, 150, source) for count, source in ((700, "a"), (1, "b"), (0, "c"), (330, "b"))]
    paths = [tmp_path / f"{place}.arrow" for place in range(len(tables))]
    for table, path in zip(tables, paths, strict=True):
        assert write_rows(table, path) == count_rows(path) == table.num_rows
    return paths, tables


def test_looked_up_in_any_files(files: tuple[list[Path], list[pa.Table]], tmp_path: Path) -> None:
    """All rows of a key are found, in the files as they came, put together, and put together once more."""
    paths, tables = files
    once, twice = tmp_path / "once.arrow", tmp_path / "twice.arrow"
    assert merge_rows(paths[:2], once) == 701 and merge_rows([once, *paths[2:]], twice) == 1_031
    with pa.memory_map(str(twice)) as source:
        assert pa.ipc.open_file(source).num_record_batches == 11
    every = key_hashes(paths)
    rng = np.random.default_rng(2)
    for wanted in (every, every[:0], every[-1:], np.sort(rng.choice(every, 20, replace=False)), np.uint64([0, 5])):
        for some in (paths, [once, *paths[2:]], [twice]):
            assert plain_rows([rows_of_keys(some, wanted)]) == of_keys(tables, wanted)
    hashes = key_hashes_in_order(twice)
    assert (hashes[1:] >= hashes[:-1]).all() and np.array_equal(np.unique(hashes), every)
    assert np.array_equal(key_hashes([twice], {"b"}), key_hashes(paths, {"b"}))


def test_put_together_without_some(files: tuple[list[Path], list[pa.Table]], tmp_path: Path) -> None:
    """Ranges of hashes share the rows out; keys that have ended and sources that are read again are left out."""
    paths, tables = files
    every = key_hashes(paths)
    middle = int(every[len(every) // 2])
    halves = [tmp_path / "low.arrow", tmp_path / "high.arrow"]
    sizes = [merge_rows(paths, halves[0], 0, middle), merge_rows(paths, halves[1], middle)]
    assert sizes == [(key_hashes_in_order(half)).size for half in halves] and sum(sizes) == 1_031
    assert np.array_equal(key_hashes(halves[:1]), every[every < middle])
    ended = every[::3]
    left = np.setdiff1d(every, ended)
    rest = tmp_path / "rest.arrow"
    merge_rows(paths, rest, without=ended)
    assert plain_rows([rows_of_keys([rest], every)]) == of_keys(tables, left)
    assert merge_rows(paths, rest, dropped={"b"}) == 700
    assert plain_rows([rows_of_keys([rest], every)]) == of_keys(tables[:1], every)
    assert merge_rows(paths, rest, without=every) == count_rows(rest) == 0


def test_one_key_has_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one key, or of the least and the largest hash, are in one batch, however many they are."""
    monkeypatch.setattr(open_rows, "ROWS_A_BATCH", 10)
    rows = kept(np.random.default_rng(3), 90, 1, "a")
    place = rows.schema.get_field_index("key_hash")
    largest = np.iinfo(np.uint64).max
    hashes = np.repeat(np.uint64([0, largest, 7]), 30)
    rows = rows.set_column(place, PLAIN_EVENTS.field("key_hash"), pa.array(hashes))
    write_rows(rows, tmp_path / "a.arrow")
    assert merge_rows([tmp_path / "a.arrow"], tmp_path / "b.arrow") == 90
    for each in (0, 7, largest):
        assert rows_of_keys([tmp_path / "b.arrow"], np.uint64([each])).num_rows == 30
