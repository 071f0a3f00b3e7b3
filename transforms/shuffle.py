"""The shuffle: events go by their conversation key to shards, as files of record batches, and come back as one table.

Beam's GroupByKey then carries file names, not rows. The folder must be one that every worker sees.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.hashing import (
    conversation_key_hash,
    dictionary_codes,
    hash_column,
    raw_values,
    set_bits,
    valid_rows,
    words_by_code,
)
from transforms.ordering import Rows, one_chunk
from transforms.schema import PARSED_EVENTS, WORD
from transforms.shards import shard_of

_IDS = ("conversation_id", "customer_id")

_RARELY_READ = frozenset({"event_id", "sentiment", "score", "duration_seconds", "source_partition", "source_row"})
"""Columns that are wanted of few rows of a shard."""

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
    """A shard's part of one block: a file of Arrow streams, and the byte at which the part's own begins."""

    path: str
    begin: int


NO_ROWS = ShardFile("", 0)
"""Stands for a shard that may have no rows at all."""


def split_by_key(events: pa.Table, shards: int) -> list[tuple[int, pa.Table]]:
    """Splits events by their conversation key; all events of a key are in the same shard.

    Args:
      events: schema PARSED_EVENTS.
      shards: number of shards.

    Returns:
      Shard and its rows (schema SHUFFLED_EVENTS, those of a key in the order they came), for the shards that have any.
    """
    columns, order, parts = _by_shard(events, shards)
    if not parts:
        return []
    taken = [_take(columns[name], order) for name in SHUFFLED_EVENTS.names]
    ordered = pa.Table.from_arrays(taken, schema=SHUFFLED_EVENTS)
    return [(shard, ordered.slice(begin, size)) for shard, begin, size in parts]


def _by_shard(events: pa.Table, shards: int) -> tuple[dict[str, pa.Array], Rows, list[tuple[int, int, int]]]:
    """Brings the rows of each shard together, and in it nearly all rows of each key.

    Returns:
      The columns of SHUFFLED_EVENTS, the order of their rows by shard, and each shard, its first row and its number of
      rows.
    """
    whole = events.combine_chunks()
    if not whole.num_rows:
        return {}, np.empty(0, np.int64), []
    columns = {name: whole[name].chunk(0) for name in whole.column_names}
    key = (columns[name] for name in ("account_id", "conversation_id", "channel", "customer_id"))
    key_hash = conversation_key_hash(*key)
    columns |= {"key_hash": pa.array(key_hash), "event_hash": pa.array(hash_column(columns["event_id"]))}
    sizes = np.bincount(shard_of(key_hash, shards), minlength=shards)
    # The low half of the hash, from which the shard comes too, and the row number: one sort of plain integers.
    packed = (key_hash << np.uint64(32)) | np.arange(len(key_hash), dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    begins = np.cumsum(sizes) - sizes
    return columns, order, [(int(at), int(begins[at]), int(sizes[at])) for at in np.flatnonzero(sizes)]


def _take(values: pa.Array, order: Rows) -> pa.Array:
    """The values in another order; a column without any value stays as it is."""
    count, kind = len(values), values.type
    if values.null_count == count:
        return values
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(_take(values.indices, order), values.dictionary, safe=False)
    if not pa.types.is_primitive(kind):
        return values.take(pa.array(order))
    # Arrow takes nulls row by row.
    valid = None
    if values.null_count:
        valid = pa.py_buffer(np.packbits(valid_rows(values).take(order), bitorder="little"))
    if pa.types.is_boolean(kind):
        data = np.packbits(set_bits(values.buffers()[1], values.offset, count).take(order), bitorder="little")
    else:
        data = raw_values(values).take(order)
    return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(data)])


def write_shards(events: pa.Table, shards: int, folder: str) -> list[tuple[int, ShardFile]]:
    """Splits events by their key and writes one file, with an Arrow stream for each shard.

    Args:
      events: schema PARSED_EVENTS.
      shards: number of shards.
      folder: where to write.

    Returns:
      Shard and its place.
    """
    columns, order, parts = _by_shard(events, shards)
    if not parts:
        return []
    stored = {name: _stored(columns[name], order) for name in SHUFFLED_EVENTS.names}
    path = Path(folder) / f"{uuid.uuid4().hex}.arrow"
    places = []
    # Unbuffered, each column of each shard would be a system call or two.
    with pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), 1 << 20) as sink:
        for shard, begin, size in parts:
            places.append((shard, ShardFile(str(path), sink.tell())))
            rows = {name: _part(values, begin, size) for name, values in stored.items()}
            batch = pa.RecordBatch.from_arrays(list(rows.values()), names=list(rows))
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
    return places


@dataclass(frozen=True)
class _Words:
    """A column of words on its way to a file: narrow codes, in the order of the shards, that may be of a null."""

    codes: npt.NDArray[Any]
    words: pa.StringArray


def _stored(values: pa.Array, order: Rows) -> pa.Array | _Words:
    """A column in the order of the shards, as narrow as it can be; pa.null() stands for one without any value."""
    if values.null_count == len(values):
        return pa.nulls(len(values))
    if not pa.types.is_dictionary(values.type):
        return _take(values, order)
    indices, words = values.indices, values.dictionary
    count = len(words) + (values.null_count > 0)
    kind = np.dtype(np.int8 if count < 1 << 7 else np.int16 if count < 1 << 15 else np.int32)
    codes: npt.NDArray[Any] = raw_values(indices).astype(kind).take(order)
    if values.null_count:
        # (A choice by a mask would cost ten times as much.)
        null = kind.type(len(words))
        codes = (codes - null) * valid_rows(indices).take(order) + null
        words = pa.concat_arrays([words, pa.nulls(1, words.type)])
    return _Words(codes, words)


def _part(values: pa.Array | _Words, begin: int, size: int) -> pa.Array:
    """Some rows of a stored column; of a large dictionary only the words that they use."""
    if not isinstance(values, _Words):
        return values.slice(begin, size)
    codes, words = values.codes[begin : begin + size], values.words
    if len(words) > size // 2:
        used = np.zeros(len(words), bool)
        used[codes] = True
        codes = (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
        words = words.take(pa.array(np.flatnonzero(used)))
    return pa.DictionaryArray.from_arrays(pa.array(codes), words, safe=False)


def read_shard(files: Iterable[ShardFile], columns: Sequence[str]) -> pa.Table:
    """Reads a shard's rows; the files are mapped into memory.

    Args:
      files: its parts.
      columns: columns of SHUFFLED_EVENTS.

    Returns:
      The columns; those of words share one dictionary each, with ids as SHUFFLED_EVENTS says. Columns that are wanted
      of few rows only are left in as many chunks as there are parts.
    """
    parts = []
    for file in files:
        if file != NO_ROWS:
            with pa.memory_map(file.path) as source:
                source.seek(file.begin)
                parts.append(pa.ipc.open_stream(source).read_next_batch())
    schema = pa.schema([SHUFFLED_EVENTS.field(name) for name in columns])
    if not parts:
        return schema.empty_table()
    return pa.Table.from_arrays([_joined([p[f.name] for p in parts], f) for f in schema], schema=schema)


def _joined(parts: list[pa.Array], field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """The parts of a column, one after another, with the type that it has."""
    if field.type == WORD:
        return _joined_words(parts, field.name in _IDS)
    parts = [pa.nulls(len(part), field.type) if pa.types.is_null(part.type) else part for part in parts]
    return pa.chunked_array(parts) if field.name in _RARELY_READ else pa.concat_arrays(parts)


def _joined_words(parts: list[pa.Array], are_ids: bool) -> pa.DictionaryArray:
    """The parts over one dictionary: of ids their dictionaries one after another, of others each word once."""
    known = [part for part in parts if not pa.types.is_null(part.type)]
    words = pa.concat_arrays([pa.array([], pa.string()), *(part.dictionary for part in known)])
    if are_ids:
        places = np.arange(len(words), dtype=np.int32)
        if words.null_count:
            places[np.asarray(words.is_null())] = -1
    else:
        encoded = words.dictionary_encode()
        places, words = dictionary_codes(encoded), encoded.dictionary
    codes = np.full(sum(map(len, parts)), -1, np.int32)
    row = place = 0
    for part in parts:
        if not pa.types.is_null(part.type):
            own = places[place : place + len(part.dictionary)]
            codes[row : row + len(part)] = own.take(np.asarray(part.indices))
            place += len(part.dictionary)
        row += len(part)
    return words_by_code(codes, words)


def with_plain_ids(events: pa.Table) -> pa.Table:
    """The rows with the types of PLAIN_EVENTS."""
    for name in _IDS:
        place, column = events.schema.get_field_index(name), one_chunk(events[name])
        if pa.types.is_dictionary(column.type):
            events = events.set_column(place, PLAIN_EVENTS.field(name), column.dictionary.take(column.indices))
    return events
