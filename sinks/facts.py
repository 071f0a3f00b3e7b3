"""Conversations and turns as Parquet files that are rewritten where a row changes, and linked where none does.

A file holds the rows of one month and one part of the keys: part-00003-of-00008.parquet has those whose hash falls into
the part 3 of 8. So the file of a row is known without looking for it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.encodings import words_of
from sinks.parquet import MONTHS, month_folder, write_parts
from sinks.publish import Snapshot
from transforms.calendars import month_name, month_of
from transforms.schema import WORD
from transforms.shards import shard_of
from transforms.tables import Table

ROWS_A_FILE = 500_000
"""About as many rows has a file of a month that had none before."""

_ROWS_AT_ONCE = 32_768

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


def restate_facts(
    snapshot: Snapshot, spec: Table, removed: pa.Table, added: pa.Table
) -> list[Callable[[], Path | None]]:
    """Takes rows out of a table of the result before and puts others in; files without either are linked.

    Args:
      snapshot: the result in the making.
      spec: CONVERSATIONS or TURNS.
      removed: the key columns of `spec` and key_hash, of rows that are in the result before.
      added: the columns of `spec` and key_hash.

    Returns:
      What has to be done, in any order and by any thread: each call writes a file and gives its path, or None where no
      row is left.
    """
    edits = list(_edits(snapshot, spec, removed, added))
    for name in snapshot.previous_files(spec.name):
        if snapshot.path / name not in {edit.path for edit in edits}:
            snapshot.link(name)
    return [partial(_apply, edit, spec) for edit in edits]


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
    parts = _restated(edit, spec)
    first = next(parts, None)
    if first is None:
        return None
    write_parts(itertools.chain([first], parts), edit.path, spec, ("started_at",))
    return edit.path


def _restated(edit: _Edit, spec: Table) -> Iterator[pa.Table]:
    """The rows of a file without those that go and with those that come, by started_at, piece by piece.

    Of the same started_at, those that were there come first.

    Raises:
      AssertionError: not every row that goes was there.
    """
    words = words_of(spec)
    schema = pa.schema([f.with_type(WORD) if f.name in words else f for f in spec.schema.remove_metadata()])
    added = _encoded(edit.added.select(schema.names), words).cast(schema)
    added = added.take(pa.array(np.argsort(_started_at(added), kind="stable")))
    came = _started_at(added)
    begin, gone = 0, 0
    for old, next_at in _pieces(edit.old, spec) if edit.old is not None else ():
        old = old.select(schema.names).cast(schema)
        stays = _staying(old, edit.removed, spec)
        gone += old.num_rows - len(stays)
        # What is as late as the rows that follow comes after them.
        end = len(came) if next_at is None else int(np.searchsorted(came, next_at))
        rows = pa.concat_tables([old, added.slice(begin, end - begin)]).unify_dictionaries()
        kept = np.concatenate([stays, np.arange(old.num_rows, rows.num_rows)])
        begin = end
        if len(kept):
            # Nearly in order already, which a stable sort takes advantage of.
            yield rows.take(pa.array(kept[np.argsort(_started_at(rows)[kept], kind="stable")]))
    if gone != edit.removed.num_rows:
        raise AssertionError(f"expected {edit.removed.num_rows} rows of {spec.name} to go, {gone} did")
    if begin < len(came):
        yield added.slice(begin)


def _pieces(path: Path, spec: Table) -> Iterator[tuple[pa.Table, int | None]]:
    """The rows of a file, by started_at, piece by piece, each with the first started_at of the one that follows."""
    with pq.ParquetFile(path, read_dictionary=words_of(spec)) as file:
        place = spec.schema.get_field_index("started_at")
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        if all(pq.SortingColumn(place) in group.sorting_columns for group in groups):
            pieces = (pa.Table.from_batches([batch]) for batch in file.iter_batches(_ROWS_AT_ONCE))
        else:
            pieces = iter([file.read().sort_by("started_at")])
        for piece, following in itertools.pairwise(itertools.chain(pieces, [None])):
            assert piece is not None
            yield piece, None if following is None else int(_started_at(following)[0])


def _started_at(rows: pa.Table) -> np.ndarray:
    return rows["started_at"].cast(pa.int64()).to_numpy()


def _encoded(rows: pa.Table, words: list[str]) -> pa.Table:
    """The rows with some text columns dictionary-encoded."""
    for place, name in enumerate(rows.column_names):
        if name in words and pa.types.is_string(rows.schema.types[place]):
            rows = rows.set_column(place, name, rows[name].dictionary_encode())
    return rows


def _staying(old: pa.Table, removed: pa.Table, spec: Table) -> np.ndarray:
    """Row numbers of the rows whose keys are not among those removed."""
    if not removed.num_rows:
        return np.arange(old.num_rows)
    names = list(spec.key)
    keys = old.select(names).append_column("row", pa.array(np.arange(old.num_rows)))
    gone = removed.select(names).cast(keys.select(names).schema)
    return np.sort(keys.join(gone, names, join_type="left anti")["row"].to_numpy())
