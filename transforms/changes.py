"""Changes: what a cycle takes out of a table and what it puts in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.ordering import codes_of, combine_codes, dense_codes, one_chunk

Rows = npt.NDArray[np.int64]


def changed_rows(old: pa.Table, new: pa.Table, key: Sequence[str]) -> tuple[Rows, Rows]:
    """Compares the rows of the same conversations before and after.

    Args:
      old: rows as they were, the same columns as new.
      new: rows as they are now.
      key: columns that name a row; within each table no two rows share them.

    Returns:
      The old rows that go and the new rows that come, as row numbers: rows that are alike in every column stay.
    """
    if not old.num_rows or not new.num_rows:
        return np.arange(old.num_rows), np.arange(new.num_rows)
    both = pa.concat_tables([old, new.cast(old.schema) if new.schema != old.schema else new])
    both = both.unify_dictionaries().combine_chunks()
    name = combine_codes([np.unique(_codes(both[column]), return_inverse=True)[1] for column in key])
    order = np.argsort(name, kind="stable")
    twin = np.flatnonzero(np.diff(name[order]) == 0)
    before, after = order[twin], order[twin + 1]
    alike = np.ones(len(twin), bool)
    for column in both.columns:
        values = _codes(column)
        alike &= values[before] == values[after]
    stays = np.zeros(both.num_rows, bool)
    stays[before[alike]] = stays[after[alike]] = True
    return np.flatnonzero(~stays[: old.num_rows]), np.flatnonzero(~stays[old.num_rows :])


def _codes(column: pa.ChunkedArray) -> Rows:
    """Whole numbers that are equal where the values are; of their own where null."""
    values = one_chunk(column)
    if pa.types.is_dictionary(values.type):
        return codes_of(column).astype(np.int64)
    if pa.types.is_string(values.type):
        return dense_codes(values)
    if pa.types.is_floating(values.type):
        bits = np.asarray(values.fill_null(0.0)).view(np.int64)
    elif pa.types.is_boolean(values.type):
        bits = np.asarray(values.fill_null(False)).astype(np.int64)
    elif pa.types.is_uint64(values.type):
        bits = np.asarray(values.fill_null(0)).view(np.int64)
    else:
        bits = np.asarray(values.cast(pa.int64()).fill_null(0))
    return np.where(np.asarray(values.is_valid()), bits, np.iinfo(np.int64).min + 1)
