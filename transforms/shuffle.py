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

from transforms.hashing import conversation_key_hash, hash_column
from transforms.schema import PARSED_EVENTS

SHUFFLED_EVENTS = PARSED_EVENTS.append(pa.field("key_hash", pa.uint64(), False)).append(
    pa.field("event_hash", pa.uint64(), False)
)
"""PARSED_EVENTS and the hashes of the conversation key and of event_id."""


@dataclass(frozen=True)
class ShardFile:
    """A shard's part of one block: a file of record batches, and the number of the batch."""

    path: str
    batch: int


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
    whole = pa.table(
        [*whole.columns, pa.array(key_hash), pa.array(hash_column(column["event_id"]))], schema=SHUFFLED_EVENTS
    )
    if shards == 1:
        return [(0, whole)]
    shard = ((key_hash & np.uint64(0xFFFFFFFF)) * np.uint64(shards)) >> np.uint64(32)
    narrow = shard.astype(np.uint8 if shards <= 256 else np.uint16)
    order = np.argsort(narrow, kind="stable")
    sizes = np.bincount(narrow, minlength=shards)
    begins = np.cumsum(sizes) - sizes
    ordered = whole.take(pa.array(order))
    return [
        (int(number), ordered.slice(int(begins[number]), int(sizes[number]))) for number in np.flatnonzero(sizes)
    ]


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
    path.parent.mkdir(parents=True, exist_ok=True)
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
      The columns; dictionary columns share one dictionary.
    """
    tables = []
    for file in files:
        with pa.memory_map(file.path) as source:
            batch = pa.ipc.open_file(source).get_batch(file.batch)
            tables.append(pa.Table.from_batches([batch]).select(columns))
    return pa.concat_tables(tables).unify_dictionaries()
