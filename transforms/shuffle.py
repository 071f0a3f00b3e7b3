"""The shuffle: events go by their conversation key to shards, as files of record batches, and come back as one table.

Beam's GroupByKey then carries file names, not rows. The folder must be one that every worker sees.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import conversation_key_hash, hash_column
from transforms.ordering import one_chunk
from transforms.schema import PARSED_EVENTS, WORD
from transforms.shards import shard_of

_IDS = ("conversation_id", "customer_id")

SHUFFLED_EVENTS = pa.schema(
    [*PARSED_EVENTS, pa.field("key_hash", pa.uint64(), False), pa.field("event_hash", pa.uint64(), False)]
)
"""PARSED_EVENTS and the hashes of the conversation key and of event_id.

A block repeats its ids, so each is hashed and written once. In a shard they come from many blocks: the dictionaries of
conversation_id and customer_id are put one after another, so that equal codes are equal ids, but not the other way.
"""

PLAIN_EVENTS = pa.schema([field.with_type(pa.string()) if field.name in _IDS else field for field in SHUFFLED_EVENTS])
"""The same with plain ids, for rows that are kept."""


@dataclass(frozen=True)
class ShardFile:
    """A shard's part of one block: a file of record batches, and the number of the batch."""

    path: str
    batch: int


NO_ROWS = ShardFile("", 0)
"""Stands for a shard that may have no rows at all."""


def split_by_key(events: pa.Table, shards: int) -> list[tuple[int, pa.Table]]:
    """Splits events by their conversation key; all events of a key are in the same shard.

    Args:
      events: schema PARSED_EVENTS.
      shards: number of shards.

    Returns:
      Shard and its rows (schema SHUFFLED_EVENTS, in the order they came), for the shards that have any.
    """
    whole = events.combine_chunks()
    column = {name: whole[name].chunk(0) if whole.num_rows else None for name in whole.column_names}
    if not whole.num_rows:
        return []
    key_hash = conversation_key_hash(
        column["account_id"], column["conversation_id"], column["channel"], column["customer_id"]
    )
    columns = {**column, "key_hash": pa.array(key_hash), "event_hash": pa.array(hash_column(column["event_id"]))}
    narrow = shard_of(key_hash, shards)
    sizes = np.bincount(narrow, minlength=shards)
    if shards > 1:
        order = pa.array(np.argsort(narrow, kind="stable"))
        columns = {name: _take(values, order) for name, values in columns.items()}
    ordered = pa.Table.from_arrays([columns[name] for name in SHUFFLED_EVENTS.names], schema=SHUFFLED_EVENTS)
    begins = np.cumsum(sizes) - sizes
    return [(int(number), ordered.slice(int(begins[number]), int(sizes[number]))) for number in np.flatnonzero(sizes)]


def _take(values: pa.Array, order: pa.Array) -> pa.Array:
    """The values in another order; a column without any value stays as it is."""
    return values if values.null_count == len(values) else values.take(order)


def write_shards(events: pa.Table, shards: int, folder: str) -> list[tuple[int, ShardFile]]:
    """Splits events by their key and writes one file, with a record batch for each shard.

    Args:
      events: schema PARSED_EVENTS.
      shards: number of shards.
      folder: where to write.

    Returns:
      Shard and its place.
    """
    parts = split_by_key(events, shards)
    if not parts:
        return []
    path = Path(folder) / f"{uuid.uuid4().hex}.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SHUFFLED_EVENTS) as writer:
        for _, rows in parts:
            writer.write_batch(rows.combine_chunks().to_batches()[0])
    return [(shard, ShardFile(str(path), batch)) for batch, (shard, _) in enumerate(parts)]


def read_shard(files: Iterable[ShardFile], columns: Sequence[str]) -> pa.Table:
    """Reads a shard's rows; the files are mapped into memory.

    Args:
      files: its parts.
      columns: columns of SHUFFLED_EVENTS.

    Returns:
      The columns; those of words share one dictionary each, with ids as SHUFFLED_EVENTS says.
    """
    tables = [SHUFFLED_EVENTS.empty_table().select(columns)]
    for file in files:
        if file == NO_ROWS:
            continue
        with pa.memory_map(file.path) as source:
            batch = pa.ipc.open_file(source).get_batch(file.batch)
            tables.append(pa.Table.from_batches([batch]).select(columns))
    words = [name for name in columns if name not in _IDS]
    whole = pa.concat_tables([table.select(words) for table in tables]).unify_dictionaries()
    for name in _IDS:
        if name in columns:
            whole = whole.append_column(name, _one_after_another([c for t in tables for c in t[name].chunks]))
    return whole.select(list(columns))


def _one_after_another(parts: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """The parts as one array, over their dictionaries one after another."""
    if not parts:
        return pa.array([], WORD)
    begins = np.cumsum([0, *(len(part.dictionary) for part in parts[:-1])])
    codes = [pc.add(part.indices, pa.scalar(int(begin), pa.int32())) for part, begin in zip(parts, begins, strict=True)]
    return pa.DictionaryArray.from_arrays(
        pa.concat_arrays(codes), pa.concat_arrays([part.dictionary for part in parts]), safe=False
    )


def with_plain_ids(events: pa.Table) -> pa.Table:
    """The rows with the types of PLAIN_EVENTS."""
    for name in _IDS:
        place, column = events.schema.get_field_index(name), one_chunk(events[name])
        if pa.types.is_dictionary(column.type):
            events = events.set_column(place, PLAIN_EVENTS.field(name), column.dictionary.take(column.indices))
    return events
