"""Fixed-key hashes of whole Arrow columns, for sharding and for finding equal rows.

The same value has the same hash in every process and on every machine. A hash only proposes: whoever groups by one
verifies on the real values.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FINAL = np.uint64(0xBF58476D1CE4E5B9)
_NULL = np.uint64(0xA0761D6478BD642F)
_EVERY_BIT = np.uint64(0xFFFFFFFFFFFFFFFF)
_LONG = 128
"""Strings of more bytes than this are hashed one by one, in C; word by word would take a pass a word."""


def _mix(h: Hashes) -> Hashes:
    """Spreads every bit over the whole word, in place."""
    h ^= h >> np.uint64(31)
    h *= _FINAL
    h ^= h >> np.uint64(29)
    return h


def combine_hashes(first: Hashes, second: Hashes) -> Hashes:
    """Hash of a pair, from the hashes of its parts; the order of the parts matters."""
    return _mix((first * _MULTIPLIER + np.uint64(0x632BE59BD9B4E019)) ^ second)


def hash_column(column: pa.Array | pa.ChunkedArray) -> Hashes:
    """Hashes a column of text, dictionary-encoded or plain; null has a hash of its own.

    Args:
      column: n values of type string or dictionary<int32, string>.

    Returns:
      n hashes.
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 1:
            return hash_column(column.chunk(0))
        return np.concatenate([hash_column(c) for c in column.chunks] or [np.empty(0, np.uint64)])
    if pa.types.is_dictionary(column.type):
        words = np.append(hash_column(column.dictionary), _NULL)
        return words.take(dictionary_codes(column))
    hashes = _hash_text(column)
    if column.null_count:
        hashes[np.asarray(column.is_null())] = _NULL
    return hashes


def dictionary_codes(column: pa.DictionaryArray) -> npt.NDArray[np.int32]:
    """Codes of a dictionary array as int32; null is -1."""
    indices = column.indices
    if not indices.null_count:
        return np.asarray(indices).astype(np.int32, copy=False)
    codes = raw_values(indices)
    # What words_by_code made has -1 where it is null; no other code can be negative.
    if codes.dtype == np.int32 and np.count_nonzero(codes == -1) == indices.null_count:
        return codes
    # (Many times faster than a choice, which the processor guesses wrong every other time.)
    return codes.astype(np.int32) | (valid_rows(indices).view(np.int8) - np.int8(1))


def raw_values(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an array, or its instants in their unit, without a copy; anything where it is null."""
    kind = np.dtype(np.int64 if pa.types.is_timestamp(array.type) else array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def valid_rows(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Which rows of an array are not null."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=bool)
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=bool)
    return set_bits(array.buffers()[0], array.offset, len(array))


def set_bits(bitmap: pa.Buffer, offset: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of some bits of an Arrow bitmap are set."""
    whole, skipped = divmod(offset, 8)
    octets = np.frombuffer(bitmap, np.uint8)[whole : (offset + count + 7) // 8]
    bits = np.unpackbits(octets, count=skipped + count, bitorder="little")
    return bits[skipped:].view(np.bool_)


def words_by_code(codes: npt.NDArray[np.int32], words: pa.StringArray) -> pa.DictionaryArray:
    """A dictionary array of codes, -1 for null, without a copy: dictionary_codes gives them back."""
    is_word = codes >= 0
    missing = len(codes) - int(np.count_nonzero(is_word))
    valid = pa.py_buffer(np.packbits(is_word, bitorder="little")) if missing else None
    indices = pa.Array.from_buffers(pa.int32(), len(codes), [valid, pa.py_buffer(codes)], null_count=missing)
    return pa.DictionaryArray.from_arrays(indices, words, safe=False)


def _hash_text(column: pa.StringArray) -> Hashes:
    """Hashes plain strings over their 8-byte words, all strings at once."""
    n = len(column)
    if n == 0:
        return np.empty(0, np.uint64)
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    _, offset_buffer, data_buffer = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + n + 1]
    low, high = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(high - low + 16, np.uint8)
    if data_buffer is not None and high > low:
        padded[: high - low] = np.frombuffer(data_buffer, np.uint8)[low:high]
    lengths = np.diff(offsets).astype(np.int64)
    hashes = (lengths.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    shortest, longest = int(lengths.min()), int(lengths.max())
    words = np.ndarray((len(padded) - 8,), np.dtype("<u8"), buffer=padded, strides=(1,))
    starts = offsets[:-1].astype(np.int64) - low
    for done in range(0, min(longest, _LONG), 8):
        if shortest == longest:
            # Of ids of one length the words stand at equal distances.
            word = np.ndarray((n,), words.dtype, buffer=padded, offset=done, strides=(longest,))
            unused = np.uint64(8 * max(0, done + 8 - longest))
            hashes = _mix((hashes ^ (word & (_EVERY_BIT >> unused))) * _MULTIPLIER)
            continue
        left = lengths - done
        if shortest >= done + 8:
            hashes = _mix((hashes ^ words[starts + done]) * _MULTIPLIER)
            continue
        rows = np.flatnonzero(left > 0)
        word = words[starts[rows] + done]
        word &= _EVERY_BIT >> (np.maximum(8 - left[rows], 0).astype(np.uint64) * np.uint64(8))
        hashes[rows] = _mix((hashes[rows] ^ word) * _MULTIPLIER)
    if longest > _LONG:
        rows = np.flatnonzero(lengths > _LONG)
        text = column.take(pa.array(rows)).to_numpy(zero_copy_only=False).astype(object)
        # Imported where it is needed: texts as long as this are rare, and pandas takes a while.
        from pandas.util import hash_array

        hashes[rows] = hash_array(text, categorize=False)
    return hashes


def conversation_key_hash(account: pa.Array, conversation: pa.Array, channel: pa.Array, customer: pa.Array) -> Hashes:
    """Hashes the conversation key of each row.

    The key is (account, conversation) where a conversation_id is given, else (account, channel, customer).
    """
    accounts = hash_column(account)
    keyed = combine_hashes(accounts, hash_column(conversation))
    if conversation.null_count:
        rows = np.flatnonzero(~valid_rows(conversation))
        channels, customers = (hash_column(column).take(rows) for column in (channel, customer))
        keyed[rows] = combine_hashes(combine_hashes(accounts.take(rows), channels), customers)
    return keyed


def hash_conversation_keys(keys: list[str]) -> Hashes:
    """The hash of each conversation key that is given as the column `conversation_key` tells it."""
    parts = [json.loads(key) for key in keys]
    account = pa.array([part[0] for part in parts], pa.string())
    conversation = pa.array([part[1] if len(part) == 2 else None for part in parts], pa.string())
    channel, customer = (
        pa.array([part[place] if len(part) == 3 else None for part in parts], pa.string()) for place in (1, 2)
    )
    return conversation_key_hash(account, conversation, channel, customer)
