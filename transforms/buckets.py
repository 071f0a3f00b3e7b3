"""Buckets: what a stream keeps of the conversation keys that are open, each in one of many small parts."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.hashing import Hashes
from transforms.ordering import one_chunk
from transforms.shuffle import PLAIN_EVENTS
from transforms.statistics import Integers
from transforms.wakes import WAKE, Wakes

FORGOTTEN = np.dtype([("key_hash", np.uint64), ("rows", np.int64), ("until", np.int64)])
"""What is kept of a key whose rows were dropped: how many came, and until when versions have to go on from there."""

NO_ROWS = PLAIN_EVENTS.empty_table()


def _nothing(kind: np.dtype) -> npt.NDArray[np.void]:
    return np.empty(0, kind)


@dataclass(frozen=True)
class Bucket:
    """What is kept between two firings.

    Attributes:
      rows: schema PLAIN_EVENTS; all rows of the keys that are open.
      pending: rows too far ahead of the watermark to count.
      watermark: up to where time had come at the source, microseconds.
      passed: the same here; see transforms.restating.
      as_of: the moment up to which time had passed for `rows`: the watermark, or the latest of them.
      wakes: when time alone changes a key.
      forgotten: keys whose rows were dropped.
    """

    rows: pa.Table = field(default_factory=PLAIN_EVENTS.empty_table)
    pending: pa.Table = field(default_factory=PLAIN_EVENTS.empty_table)
    watermark: int = 0
    passed: int = 0
    as_of: int = 0
    wakes: Wakes = field(default_factory=lambda: _nothing(WAKE))
    forgotten: npt.NDArray[np.void] = field(default_factory=lambda: _nothing(FORGOTTEN))

    def save(self) -> bytes:
        """All but the rows, as bytes."""
        return pickle.dumps(
            (encode_rows(self.pending), self.watermark, self.passed, self.as_of, self.wakes, self.forgotten)
        )

    @staticmethod
    def load(saved: bytes | None, chunks: Sequence[bytes]) -> Bucket:
        """Puts together what `save` gave and the rows."""
        rows = join_rows([decode_rows(chunk) for chunk in chunks])
        if saved is None:
            return Bucket(rows)
        pending, *rest = pickle.loads(saved)
        return Bucket(rows, decode_rows(pending), *rest)


def encode_rows(rows: pa.Table) -> bytes:
    """Rows as bytes; none are no bytes."""
    if not rows.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def decode_rows(encoded: bytes) -> pa.Table:
    """The rows of encode_rows."""
    return pa.ipc.open_stream(encoded).read_all() if encoded else NO_ROWS


def join_rows(parts: Sequence[pa.Table]) -> pa.Table:
    """Rows of schema PLAIN_EVENTS in one chunk a column."""
    some = [part for part in parts if part.num_rows]
    if len(some) < 2:
        return some[0].combine_chunks() if some else NO_ROWS
    return pa.concat_tables(some).unify_dictionaries().combine_chunks()


def times_of(rows: pa.Table) -> Integers:
    """occurred_at of rows, microseconds."""
    return np.asarray(one_chunk(rows["occurred_at"]).cast(pa.int64()))


def hashes_of(rows: pa.Table) -> Hashes:
    """key_hash of rows."""
    return np.asarray(one_chunk(rows["key_hash"]))


def rows_forgotten(forgotten: npt.NDArray[np.void], keys: Hashes) -> Integers:
    """The number of rows that were dropped of each key."""
    if not len(forgotten):
        return np.zeros(len(keys), np.int64)
    place = np.minimum(np.searchsorted(forgotten["key_hash"], keys), len(forgotten) - 1)
    return np.where(forgotten["key_hash"][place] == keys, forgotten["rows"][place], 0)
