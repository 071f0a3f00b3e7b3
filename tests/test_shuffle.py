"""The shuffle's files: what is written of blocks comes back by shard, whatever the columns look like."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from transforms.hashing import hash_column
from transforms.schema import PARSED_EVENTS, WORD
from transforms.shuffle import (
    NO_ROWS,
    SHUFFLED_EVENTS,
    ShardFile,
    read_shard,
    split_by_key,
    with_plain_ids,
    write_shards,
)


def block(rng: np.random.Generator, count: int, empty: tuple[str, ...] = ()) -> pa.Table:
    """Events with nulls in every column that may have them, some columns without any value, and ids in any order."""

    def values(field: pa.Field) -> pa.Array:
        missing = rng.random(count) < (1.0 if field.name in empty else 0.3) if field.nullable else np.zeros(count, bool)
        if field.type == WORD:
            words = int(rng.choice([1, 5, 300]))
            return pa.array([f"{field.name} {n}" for n in rng.integers(0, words, count)], mask=missing).cast(WORD)
        if pa.types.is_string(field.type):
            return pa.array([f"e{n}" for n in rng.integers(0, 1 << 40, count)])
        if pa.types.is_boolean(field.type):
            return pa.array(rng.random(count) < 0.5, mask=missing)
        return pa.array(rng.integers(0, 4, count), mask=missing).cast(field.type)

    return pa.table([values(field) for field in PARSED_EVENTS], schema=PARSED_EVENTS)


def plain_rows(tables: list[pa.Table]) -> list[tuple[object, ...]]:
    """The rows of tables, sorted."""
    return sorted((tuple(row.values()) for table in tables for row in with_plain_ids(table).to_pylist()), key=repr)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shards", [1, 3, 40])
def test_rows_come_back_by_shard(tmp_path, seed: int, shards: int) -> None:
    """Every row comes back once, in the shard that split_by_key gives it, with the types of SHUFFLED_EVENTS."""
    rng = np.random.default_rng(seed)
    empty = (("customer_id", "score", "team_id"), ("is_automated",), ())
    blocks = [block(rng, int(rng.integers(1, 400)), empty[n % 3]) for n in range(4)]
    files: dict[int, list[ShardFile]] = {}
    expected: dict[int, list[pa.Table]] = {}
    for each in blocks:
        for shard, file in write_shards(each, shards, str(tmp_path)):
            files.setdefault(shard, [NO_ROWS]).append(file)
        for shard, rows in split_by_key(each, shards):
            expected.setdefault(shard, []).append(rows)
    assert files.keys() == expected.keys()
    for shard, parts in files.items():
        back = read_shard(parts, SHUFFLED_EVENTS.names)
        back.validate(full=True)
        assert back.schema == SHUFFLED_EVENTS
        assert plain_rows([back]) == plain_rows(expected[shard])


def test_equal_codes_are_equal_ids(tmp_path) -> None:
    """Rows of one id that stand together share a code; nothing of other shards is in a shard's dictionary."""
    blocks = [block(np.random.default_rng(seed), 300) for seed in range(3)]
    files = [written for each in blocks for written in write_shards(each, 5, str(tmp_path))]
    for shard in range(5):
        ids = read_shard([file for own, file in files if own == shard], ["conversation_id"])["conversation_id"].chunk(0)
        assert set(ids.dictionary.to_pylist()) == set(ids.to_pylist())


def test_shards_without_rows(tmp_path) -> None:
    """No events make no file, and a shard without files is an empty table."""
    assert write_shards(PARSED_EVENTS.empty_table(), 3, str(tmp_path)) == []
    assert not list(tmp_path.iterdir())
    assert read_shard([NO_ROWS], SHUFFLED_EVENTS.names).equals(SHUFFLED_EVENTS.empty_table())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 13, 16, 17, 127, 128, 129])
def test_ids_of_one_length_hash_as_among_others(length: int) -> None:
    """The hash of a text depends on the text only, not on what stands beside it."""
    rng = np.random.default_rng(length)
    texts = ["".join(rng.choice(list("abcx"), length)) for _ in range(20)]
    alone, mixed = hash_column(pa.array(texts)), hash_column(pa.array([*texts, "other", None, ""]))
    assert np.array_equal(alone, mixed[:20])
    assert np.array_equal(alone[3:9], hash_column(pa.array(texts).slice(3, 6)))
