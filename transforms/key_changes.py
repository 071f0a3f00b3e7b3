"""Changes as they travel: tables by kind as one value, which is applied whole or not at all."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping

import pyarrow as pa

from transforms.buckets import decode_rows, encode_rows

KEYS_KIND, LETTERS_KIND, WINDOWS_KIND = "keys", "pair_letters", "windows"
"""Kinds of tables in a change, beside those of conversations and turns."""


def encode_change(tables: Mapping[str, pa.Table]) -> bytes:
    """Tables by kind as one value; what is in it is applied together or not at all."""
    return pickle.dumps({kind: encode_rows(table) for kind, table in tables.items() if table.num_rows}, protocol=5)


def decode_changes(changes: Iterable[bytes]) -> dict[str, pa.Table]:
    """Puts changes together: by kind all rows of all."""
    parts: dict[str, list[pa.Table]] = {}
    for change in changes:
        for kind, encoded in pickle.loads(change).items():
            parts.setdefault(kind, []).append(decode_rows(encoded))
    return {kind: pa.concat_tables(some).unify_dictionaries().combine_chunks() for kind, some in sorted(parts.items())}
