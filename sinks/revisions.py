"""Which windows a commit restates: what its rows of `kpis` are called from now on, and what they said before.

A window is compared with what it said before, all or some of them; that it became complete is no restatement.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sinks.parquet import conform
from transforms.schema import TIMESTAMP
from transforms.tables import COMMIT_COLUMNS, KPI_CHANGES, KPI_TABLE, Table

UNREVISED = Table(KPI_TABLE.name, KPI_TABLE.grain, KPI_TABLE.key, KPI_TABLE.columns[: -len(COMMIT_COLUMNS)])
"""`kpis` as computed: without the columns of the commit."""

CHANGES_ORDER = ("window_start", "grain", "basis", "account_id", "channel")
"""In this order the rows of one commit lie in kpi_changes, null first."""

_SAID = tuple(c.name for c in UNREVISED.columns if c.name not in (*KPI_TABLE.key, "is_complete"))
"""Columns in which a row has to differ to be restated."""


class Restated(NamedTuple):
    """What a commit makes of the windows that it looked at.

    Attributes:
      kpis: columns of KPI_TABLE: the rows to store.
      changes: columns of KPI_CHANGES: the rows that it replaces or takes away, as they were.
    """

    kpis: pa.Table
    changes: pa.Table


def restate(
    before: pa.Table,
    after: pa.Table,
    commit_id: int,
    committed_at: datetime,
    earlier: pa.Table | None = None,
) -> Restated:
    """Compares windows with what they said before: all of a result, or those that a commit touched.

    Windows in neither table are none of its business: restating parts of the windows gives the parts of the whole.

    Args:
      before: columns of KPI_TABLE; the rows that these windows have so far.
      after: columns of KPI_TABLE without those of the commit; the rows that they are to have. A window that is only
        in `before` has vanished.
      commit_id: of this commit.
      committed_at: when it is made; exactly the value that it has in `runs`.
      earlier: key columns and `revision` of KPI_CHANGES, all or those of the windows in question: a window that comes
        back counts on from its last revision. None: it begins at 1.

    Returns:
      The rows of `after` in their order: with `revision` and `changed_at` of before where every value is as it was,
      with one more and committed_at where one differs, and with 1 (or one more than the last in `earlier`) and
      committed_at where the window is new. And the rows of kpi_changes of this commit, in CHANGES_ORDER.

    Raises:
      ValueError: a table has not the columns, types or nulls that its specification says.
    """
    before, after = conform(before, KPI_TABLE), conform(after, UNREVISED)
    tables = [before, after] if earlier is None else [before, after, earlier]
    codes, windows = _window_codes(tables)
    place = np.full(windows, -1)
    place[codes[0]] = np.arange(before.num_rows)
    place = place[codes[1]]
    known = np.flatnonzero(place >= 0)
    is_same = _are_the_same(before.take(pa.array(place[known])), after.take(pa.array(known)))

    last = np.zeros(windows, np.int64)
    if earlier is not None:
        np.maximum.at(last, codes[2], earlier["revision"].to_numpy())
    last[codes[0]] = before["revision"].to_numpy()
    revision = last[codes[1]] + 1
    revision[known[is_same]] -= 1
    now = pa.scalar(committed_at, TIMESTAMP).cast(pa.int64()).as_py()
    changed_at = np.full(after.num_rows, now)
    changed_at[known[is_same]] = before["changed_at"].cast(pa.int64()).to_numpy()[place[known[is_same]]]
    kpis = after.append_column("revision", pa.array(revision))
    kpis = kpis.append_column("changed_at", pa.array(changed_at).cast(TIMESTAMP))

    is_kept = np.zeros(before.num_rows, bool)
    is_kept[place[known[is_same]]] = True
    gone = before.filter(pa.array(~is_kept))
    gone = gone.append_column("commit_id", pa.repeat(commit_id, gone.num_rows))
    gone = gone.append_column("replaced_at", pa.repeat(pa.scalar(committed_at, TIMESTAMP), gone.num_rows))
    changes = gone.select(KPI_CHANGES.schema.names).cast(KPI_CHANGES.schema)
    order = pc.sort_indices(changes, [(name, "ascending", "at_start") for name in CHANGES_ORDER])
    return Restated(conform(kpis, KPI_TABLE), changes.take(order))


def _window_codes(tables: Sequence[pa.Table]) -> tuple[list[np.ndarray], int]:
    """A number for each window of any of the tables, the same in all of them, and how many there are.

    Null is an account: it equals itself.
    """
    codes = np.zeros(sum(table.num_rows for table in tables), np.int64)
    count = 1
    for name in KPI_TABLE.key:
        kind = KPI_TABLE.schema.field(name).type
        values, different = _numbered(pa.chunked_array([c for t in tables for c in t[name].cast(kind).chunks], kind))
        codes, count = _numbered(pa.chunked_array([pa.array(codes * different + values)]))
    return np.split(codes, np.cumsum([table.num_rows for table in tables])[:-1]), count


def _numbered(values: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Equal values as equal numbers from 0 on, and how many there are."""
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)


def _are_the_same(before: pa.Table, after: pa.Table) -> np.ndarray:
    """Row by row: is every value as it was? Null equals null."""
    same = np.ones(after.num_rows, bool)
    for name in _SAID:
        old, new = before[name], after[name]
        both_null = pc.and_(pc.is_null(old), pc.is_null(new))
        same &= pc.or_(pc.fill_null(pc.equal(old, new), False), both_null).to_numpy()
    return same
