"""How the columns of a table are encoded in its Parquet files."""

from __future__ import annotations

import pyarrow as pa

from transforms.schema import Column
from transforms.tables import Table

UNIQUE_TEXT = frozenset({"conversation_key", "customer_id", "event_id", "conversation_id", "raw"})
"""Text that hardly repeats: a Parquet dictionary of it costs time and saves nothing."""


def words_of(spec: Table) -> list[str]:
    """The columns of text that repeats: they may come dictionary-encoded."""
    return [column.name for column in spec.columns if is_word(column)]


def is_word(column: Column) -> bool:
    """Is this text that repeats?"""
    return pa.types.is_string(column.type) and column.name not in UNIQUE_TEXT


def dictionary_leaves(spec: Table) -> list[str]:
    """Parquet leaves that get a dictionary: words and counts, which repeat; not times, sums, flags or unique text."""
    return [c.name for c in spec.columns if is_word(c) or pa.types.is_integer(c.type)]


def packed_leaves(spec: Table) -> list[str]:
    """Parquet leaves that are stored as differences: times, and what histograms are made of."""
    leaves = []
    for column in spec.columns:
        if pa.types.is_list(column.type):
            leaves += [f"{column.name}.list.element.{field.name}" for field in column.type.value_type]
        elif pa.types.is_timestamp(column.type):
            leaves.append(column.name)
    return leaves
