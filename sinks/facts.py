"""Conversations and turns as Parquet files that are rewritten where a row changes, and linked where none does.

A file holds the rows of one month and one part of the keys: part-00003-of-00008.parquet has those whose hash falls into
the part 3 of 8. So the file of a row is known without looking for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.parquet import MONTHS, month_folder, words_of, write_table
from sinks.publish import Snapshot
from transforms.calendars import month_name, month_of
from transforms.schema import WORD
from transforms.shards import shard_of
from transforms.tables import Table

ROWS_A_FILE = 500_000
"""About as many rows has a file of a month that had none before."""

_PART = re.compile(r"part-(\d+)-of-(\d+)\.parquet")


def part_name(part: int, parts: int) -> str:
    """What stands between `part-` and the ending of the file of a part of the keys."""
    return f"{part:05}-of-{parts:05}"


def parts_of(name: str) -> int | None:
    """How many parts the keys of a month are in, by the name of one of its files; None: it has no such name."""
    found = _PART.fullmatch(Path(name).name)
    return int(found.group(2)) if found else None


@dataclass(frozen=True)
class _Edit:
    """One file to be written: the old one if there is one, rows that go, rows that come."""

    path: Path
    old: Path | None
    removed: pa.Table
    added: pa.Table


def restate_facts(snapshot: Snapshot, spec: Table, removed: pa.Table, added: pa.Table) -> list[Path]:
    """Takes rows out of a table of the result before and puts others in; files without either are linked.

    Args:
      snapshot: the result in the making.
      spec: CONVERSATIONS or TURNS.
      removed: the key columns of `spec` and key_hash, of rows that are in the result before.
      added: the columns of `spec` and key_hash.

    Returns:
      The files that were written.
    """
    edits = list(_edits(snapshot, spec, removed, added))
    for name in snapshot.previous_files(spec.name):
        if snapshot.path / name not in {edit.path for edit in edits}:
            snapshot.link(name)
    with ThreadPoolExecutor(2) as pool:
        return [path for path in pool.map(lambda edit: _apply(edit, spec), edits) if path is not None]


def _edits(snapshot: Snapshot, spec: Table, removed: pa.Table, added: pa.Table) -> Iterator[_Edit]:
    """The files that have to be written, each with the rows that go and come."""
    by_month: dict[str, list[str]] = {}
    for name in snapshot.previous_files(spec.name):
        if parts_of(name) is not None:
            by_month.setdefault(Path(name).parent.name, []).append(name)
    months = [_months(table, spec) for table in (removed, added)]
    for month in np.unique(np.concatenate(months)).tolist():
        folder = month_folder(MONTHS[spec.name], month_name(month))
        chosen = [table.filter(pa.array(of == month)) for table, of in zip((removed, added), months, strict=True)]
        files = by_month.get(folder, [])
        # A new month has as many parts as those before it had.
        known = files or [name for names in by_month.values() for name in names]
        parts = max((parts_of(name) or 1 for name in known), default=1)
        if not files:
            parts = max(parts, -(-chosen[1].num_rows // ROWS_A_FILE))
        owners = [shard_of(table["key_hash"].to_numpy(), parts) for table in chosen]
        for part in np.unique(np.concatenate(owners)).tolist():
            name = f"{spec.name}/{folder}/part-{part_name(part, parts)}.parquet"
            old = snapshot.previous_file(name) if name in files else None
            sides = [table.filter(pa.array(of == part)) for table, of in zip(chosen, owners, strict=True)]
            yield _Edit(snapshot.path / name, old, *sides)


def _months(table: pa.Table, spec: Table) -> np.ndarray:
    return month_of(table[MONTHS[spec.name]].cast(pa.int64()).to_numpy())


def _apply(edit: _Edit, spec: Table) -> Path | None:
    """Writes one file; none where no row is left."""
    words = words_of(spec)
    schema = pa.schema([f.with_type(WORD) if f.name in words else f for f in spec.schema.remove_metadata()])
    rows, stays = _encoded(edit.added.select(schema.names), words).cast(schema), np.empty(0, np.int64)
    if edit.old is not None:
        old = pq.read_table(edit.old, partitioning=None, read_dictionary=words).select(schema.names).cast(schema)
        stays = _staying(old, edit.removed, spec)
        rows = pa.concat_tables([old, rows]).unify_dictionaries()
    came = rows.num_rows - edit.added.num_rows
    kept = np.concatenate([stays, np.arange(came, rows.num_rows)])
    if not len(kept):
        return None
    started_at = rows["started_at"].cast(pa.int64()).to_numpy()[kept]
    # Nearly in order already, which a stable sort takes advantage of; those who came are in order of their key.
    order = kept[np.argsort(started_at, kind="stable")]
    write_table(rows.take(pa.array(order)), edit.path, spec, ("started_at",))
    return edit.path


def _encoded(rows: pa.Table, words: list[str]) -> pa.Table:
    """The rows with some text columns dictionary-encoded."""
    for place, name in enumerate(rows.column_names):
        if name in words and pa.types.is_string(rows.schema.types[place]):
            rows = rows.set_column(place, name, rows[name].dictionary_encode())
    return rows


def _staying(old: pa.Table, removed: pa.Table, spec: Table) -> np.ndarray:
    """Row numbers of the rows of a file whose keys are not among those removed."""
    if not removed.num_rows:
        return np.arange(old.num_rows)
    names = list(spec.key)
    keys = old.select(names).append_column("row", pa.array(np.arange(old.num_rows)))
    gone = removed.select(names).cast(keys.select(names).schema)
    stays = keys.join(gone, names, join_type="left anti")["row"].to_numpy()
    if len(stays) + gone.num_rows != old.num_rows:
        raise AssertionError(f"expected {gone.num_rows} rows of {spec.name} to go, {old.num_rows - len(stays)} did")
    return np.sort(stays)
