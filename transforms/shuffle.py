"""The shuffle: events go by their conversation key to shards, as files of record batches, and come back as one table.

Beam's GroupByKey then carries file names, not rows. The folder must be one that every worker sees.
"""

from __future__ import annotations

import mmap
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    """A shard's part of one block: some neighbouring rows of the one batch in a file."""

    path: str
    begin: int
    size: int


NO_ROWS = ShardFile("", 0, 0)
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
    if not events.num_rows:
        return {}, np.empty(0, np.int64), []
    columns = {name: one_chunk(events[name]) for name in events.column_names}
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
    """Writes one file of a block's events, those of each shard side by side.

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
    begins = np.array([begin for _, begin, _ in parts])
    stored = [
        _stored_ids(columns[name], order, begins) if name in _IDS else _stored(columns[name], order)
        for name in SHUFFLED_EVENTS.names
    ]
    # One batch for all shards: a batch a shard would cost more than what is in it.
    batch = pa.RecordBatch.from_arrays(stored, names=SHUFFLED_EVENTS.names)
    path = f"{folder}/{uuid.uuid4().hex}.arrow"
    # Unbuffered, each column would be a system call or two.
    with (
        pa.BufferedOutputStream(pa.OSFile(path, "wb"), 1 << 20) as sink,
        pa.ipc.new_stream(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    return [(shard, ShardFile(path, begin, size)) for shard, begin, size in parts]


def _stored(values: pa.Array, order: Rows) -> pa.Array:
    """A column in the order of the shards, as narrow as it can be; pa.null() stands for one without any value.

    Of words the codes are narrow, and may be of a null.
    """
    if values.null_count == len(values):
        return pa.nulls(len(values))
    if not pa.types.is_dictionary(values.type):
        return _take(values, order)
    words = values.dictionary
    count = len(words) + (values.null_count > 0)
    codes, words = _with_null(
        values, np.dtype(np.int8 if count < 1 << 7 else np.int16 if count < 1 << 15 else np.int32)
    )
    return pa.DictionaryArray.from_arrays(pa.array(codes.take(order)), words, safe=False)


def _with_null(values: pa.DictionaryArray, kind: np.dtype[Any]) -> tuple[npt.NDArray[Any], pa.StringArray]:
    """Codes of a kind, none of them null, and the words: null is the last, where there are any."""
    indices, words = values.indices, values.dictionary
    codes = raw_values(indices).astype(kind, copy=False)
    if not values.null_count:
        return codes, words
    # (A choice by a mask would cost ten times as much.)
    null = kind.type(len(words))
    return (codes - null) * valid_rows(indices) + null, pa.concat_arrays([words, pa.nulls(1, words.type)])


def _stored_ids(values: pa.DictionaryArray, order: Rows, begins: Rows) -> pa.Array:
    """A column of ids in the order of the shards; each shard has its own part of the dictionary, in ascending order.

    Nearly all rows of an id stand together, so the dictionary has an id once for each run of rows.
    """
    if values.null_count == len(values):
        return pa.nulls(len(values))
    codes, words = _with_null(values, np.dtype(np.int32))
    codes = codes.take(order)
    differs = np.empty(len(codes), bool)
    np.not_equal(codes[1:], codes[:-1], out=differs[1:])
    differs[begins] = True
    runs = np.cumsum(differs, dtype=np.int32)
    runs -= np.int32(1)
    words = words.take(pa.array(codes.take(np.flatnonzero(differs))))
    return pa.DictionaryArray.from_arrays(pa.array(runs), words, safe=False)


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
            # (Arrow's own map would fetch the whole batch, of which a shard needs a part.)
            with open(file.path, "rb") as source:
                mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
            batch = pa.ipc.open_stream(pa.py_buffer(mapped)).read_next_batch()
            parts.append(batch.slice(file.begin, file.size))
    schema = pa.schema([SHUFFLED_EVENTS.field(name) for name in columns])
    if not parts:
        return schema.empty_table()
    return pa.Table.from_arrays([_joined([p.column(f.name) for p in parts], f) for f in schema], schema=schema)


def _joined(parts: list[pa.Array], field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """The parts of a column, one after another, with the type that it has."""
    if field.type == WORD:
        return _joined_ids(parts) if field.name in _IDS else _joined_words(parts)
    parts = [pa.nulls(len(part), field.type) if pa.types.is_null(part.type) else part for part in parts]
    return pa.chunked_array(parts) if field.name in _RARELY_READ else pa.concat_arrays(parts)


def _joined_words(parts: list[pa.Array]) -> pa.DictionaryArray:
    """The parts over one dictionary, which has each word once."""
    known = [part for part in parts if not pa.types.is_null(part.type)]
    encoded = pa.concat_arrays([pa.array([], pa.string()), *(part.dictionary for part in known)]).dictionary_encode()
    places = dictionary_codes(encoded)
    codes = np.full(sum(map(len, parts)), -1, np.int32)
    row = place = 0
    for part in parts:
        if not pa.types.is_null(part.type):
            own = places[place : place + len(part.dictionary)]
            codes[row : row + len(part)] = own.take(raw_values(part.indices))
            place += len(own)
        row += len(part)
    return words_by_code(codes, encoded.dictionary)


def _joined_ids(parts: list[pa.Array]) -> pa.DictionaryArray:
    """The parts over their dictionaries, one after another; each part has neighbouring words of its dictionary."""
    codes = np.full(sum(map(len, parts)), -1, np.int32)
    dictionaries = [pa.array([], pa.string())]
    row = place = 0
    for part in parts:
        if not pa.types.is_null(part.type):
            own = raw_values(part.indices)
            first, count = int(own[0]), int(own[-1] - own[0]) + 1
            np.add(own, np.int32(place - first), out=codes[row : row + len(part)])
            dictionaries.append(part.dictionary.slice(first, count))
            place += count
        row += len(part)
    words = pa.concat_arrays(dictionaries)
    if words.null_count:
        places = np.arange(len(words) + 1, dtype=np.int32)
        places[np.flatnonzero(~valid_rows(words))] = -1
        places[-1] = -1
        codes = places.take(codes)
    return words_by_code(codes, words)


def with_plain_ids(events: pa.Table) -> pa.Table:
    """The rows with the types of PLAIN_EVENTS."""
    for name in _IDS:
        place, column = events.schema.get_field_index(name), one_chunk(events[name])
        if pa.types.is_dictionary(column.type):
            events = events.set_column(place, PLAIN_EVENTS.field(name), column.dictionary.take(column.indices))
    return events
