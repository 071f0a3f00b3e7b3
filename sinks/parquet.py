"""Tables as Parquet files whose types, order and bytes depend on nothing but their rows."""

from __future__ import annotations

import base64
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.encodings import dictionary_leaves, is_word, packed_leaves
from transforms.errors import UserError
from transforms.schema import WORD
from transforms.tables import CONVERSATIONS, KPI_STATISTICS, KPI_TABLE, TABLES, TURNS, Table

ROW_GROUP_ROWS = 131_072

MONTHS = {
    CONVERSATIONS.name: "started_at",
    TURNS.name: "started_at",
    KPI_TABLE.name: "window_start",
    KPI_STATISTICS.name: "window_start",
}
"""Tables that are kept in one folder a UTC month, and the column whose month it is."""

_NO_ROWS_MONTH = "1970-01"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turns what the operating system says about a place that cannot be written into a sentence for the user.

    Args:
      where: the file or folder that is being written.

    Raises:
      UserError: the disk is full, the place is not writable, or any other OSError in the block.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"Expected room to write {where}, but the disk is full (or over its quota): free some space or choose "
                "another output folder, then run again; an earlier result is untouched."
            ) from error
        if error.errno in _REFUSED:
            raise UserError(
                f"Expected to be allowed to write {where}, but the system says {error.strerror!r}: change its "
                "permissions or choose another output folder."
            ) from error
        raise UserError(
            f"Expected to write {where}, but the system says {error.strerror or str(error)!r}: choose another output "
            "folder on a disk of this machine and run again."
        ) from error


@dataclass(frozen=True)
class WrittenFile:
    """One Parquet file that was written: where it is, its rows and its size in bytes."""

    path: Path
    rows: int
    bytes: int


def conform(table: pa.Table, spec: Table) -> pa.Table:
    """Brings a table to the columns, order and types of its specification.

    Args:
      table: the columns of `spec` in any order; types that cast to it without loss. Text may be dictionary-encoded
        and stays so.
      spec: what the table has to be.

    Returns:
      The same rows; text columns are strings or dictionaries of strings, all others have exactly the type of `spec`.

    Raises:
      ValueError: a column is missing, unknown, null where it must not be, or cannot be cast without loss.
    """
    wanted = {column.name for column in spec.columns}
    if set(table.column_names) != wanted or table.num_columns != len(wanted):
        raise ValueError(
            f"expected the columns of {spec.name}: missing {sorted(wanted - set(table.column_names))}, "
            f"unknown {sorted(set(table.column_names) - wanted)}, {table.num_columns} in all"
        )
    columns = []
    for column in spec.columns:
        values = table.column(column.name)
        try:
            columns.append(_as_type(values, column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"expected {spec.name}.{column.name} as {column.type}, got {values.type}") from error
        if not column.nullable and columns[-1].null_count:
            raise ValueError(f"expected no null in {spec.name}.{column.name}, got {columns[-1].null_count}")
    fields = [field.with_type(values.type) for field, values in zip(spec.schema, columns, strict=True)]
    return pa.table(columns, schema=pa.schema(fields, metadata=spec.schema.metadata))


def write_table(table: pa.Table, path: Path, spec: Table, sorted_by: tuple[str, ...] = ()) -> WrittenFile:
    """Writes one Parquet file; safe to call from several threads or processes.

    zstd, row groups of ROW_GROUP_ROWS rows with statistics and a page index. Readers see the types of `spec` (text as
    string however it came) and, in the Arrow schema of the file, the sentence of each column. A table without rows
    gives a file with the schema.

    Args:
      table: see `conform`.
      path: the file; folders are made.
      spec: the table that it is.
      sorted_by: columns by which the rows are in ascending order already; noted in the file for readers.

    Returns:
      What was written.

    Raises:
      ValueError: the table is not what `spec` says.
      UserError: the disk is full or not writable.
    """
    return write_parts([table], path, spec, sorted_by)


def write_parts(parts: Iterable[pa.Table], path: Path, spec: Table, sorted_by: tuple[str, ...] = ()) -> WrittenFile:
    """As write_table, of a table that comes part by part: the file is the same, and memory that of a row group.

    Args:
      parts: the rows, one part after another.
      path: see write_table.
      spec: see write_table.
      sorted_by: see write_table; of all rows together.
    """
    stored = pa.schema([pa.field(c.name, WORD if is_word(c) else c.type, c.nullable) for c in spec.columns])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is there may be a hard link to a file that was published.
        if path.is_file():
            path.unlink()
        with pq.ParquetWriter(
            path,
            stored,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionary_leaves(spec),
            column_encoding=dict.fromkeys(packed_leaves(spec), "DELTA_BINARY_PACKED"),
            write_page_index=True,
            sorting_columns=[pq.SortingColumn(spec.schema.get_field_index(name)) for name in sorted_by] or None,
            store_schema=False,
        ) as writer:
            written = 0
            for rows in _groups(conform(part, spec) for part in parts):
                group = [_as_stored(values, f.type) for values, f in zip(rows.columns, stored, strict=True)]
                writer.write_table(pa.table(group, schema=stored), row_group_size=ROW_GROUP_ROWS)
                written += rows.num_rows
            # Left to itself the writer would store an Arrow schema that restores dictionaries in readers of Arrow;
            # this one says what was meant, with the sentences.
            arrow_schema = base64.b64encode(spec.schema.serialize().to_pybytes()).decode("ascii")
            writer.add_key_value_metadata({"ARROW:schema": arrow_schema, "description": spec.grain})
        return WrittenFile(path, written, path.stat().st_size)


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of some parts, in pieces of ROW_GROUP_ROWS; the last one has what is left."""
    held: list[pa.Table] = []
    count = 0
    for part in parts:
        while count + part.num_rows >= ROW_GROUP_ROWS:
            wanted = ROW_GROUP_ROWS - count
            yield pa.concat_tables([*held, part.slice(0, wanted)])
            held, count, part = [], 0, part.slice(wanted)
        if part.num_rows:
            held.append(part)
            count += part.num_rows
    if held:
        yield pa.concat_tables(held)


def write_partitioned(table: pa.Table, root: Path, spec: Table, by_month_of: str, part: str) -> list[WrittenFile]:
    """Writes one file per UTC month: `<root>/started_month=2026-01/part-<part>.parquet`.

    The folder is named after `by_month_of` without its ending (started_at: started_month; window_start:
    window_month) and is no column of the file.

    Args:
      table: see `conform`; rows of one month that follow each other are written without a copy.
      root: the folder of the table.
      spec: the table that it is.
      by_month_of: a timestamp column without nulls.
      part: ending of the file names; differs among those who write to the same root.

    Returns:
      The files, by month; none where the table has no rows (`fill_missing` sees to a table without any file).

    Raises:
      ValueError: the table is not what `spec` says.
      UserError: the disk is full or not writable.
    """
    if not table.num_rows:
        return []
    instants = table.column(by_month_of).cast(pa.timestamp("us")).combine_chunks().to_numpy()
    is_sorted = bool(np.all(instants[1:] >= instants[:-1]))
    if not is_sorted:
        order = np.argsort(instants.astype("datetime64[M]"), kind="stable")
        table, instants = table.take(pa.array(order)), instants[order]
    starts, months = _month_runs(instants)
    return [
        write_table(
            table.slice(start, end - start),
            root / month_folder(by_month_of, month) / f"part-{part}.parquet",
            spec,
            (by_month_of,) if is_sorted else (),
        )
        for start, end, month in zip(starts, [*starts[1:], len(instants)], months, strict=True)
    ]


def fill_missing(root: Path) -> list[WrittenFile]:
    """Gives every table that has no file yet under `root`/<table> one without rows, so that readers find its schema.

    Args:
      root: the folder of a result.

    Returns:
      The files that were added.

    Raises:
      UserError: the disk is full or not writable.
    """
    added = []
    for spec in TABLES:
        folder = root / spec.name
        if next(folder.rglob("*.parquet"), None) is None:
            month = MONTHS.get(spec.name)
            place = folder / month_folder(month, _NO_ROWS_MONTH) if month else folder
            added.append(write_table(spec.schema.empty_table(), place / "part-0.parquet", spec))
    return added


def _month_runs(instants: np.ndarray) -> tuple[list[int], list[str]]:
    """Where each month begins in instants that are in order of months, and its name (YYYY-MM)."""
    months = instants.astype("datetime64[M]")
    starts = np.concatenate(([0], np.flatnonzero(months[1:] != months[:-1]) + 1))
    return starts.tolist(), months[starts].astype(str).tolist()


def month_folder(by_month_of: str, month: str) -> str:
    """Hive name of the folder of a month (YYYY-MM), by the column whose month it is."""
    return f"{by_month_of.rsplit('_', 1)[0]}_month={month}"


def _as_type(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Casts without loss; dictionary-encoded text stays encoded."""
    if pa.types.is_dictionary(values.type):
        if values.type == WORD and kind == WORD.value_type and not any(c.dictionary.null_count for c in values.chunks):
            return values
        values = values.cast(values.type.value_type)
    return values if values.type == kind else values.cast(kind)


def _as_stored(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The rows of one group in one piece; words with a dictionary of their own, in order of appearance.

    So the bytes depend neither on chunks nor on how text came, and no group carries the dictionary of the whole table.
    """
    if not pa.types.is_dictionary(values.type):
        array = values.combine_chunks()
        return array.dictionary_encode() if kind == WORD else array
    if kind != WORD:
        return values.cast(kind).combine_chunks()
    array = values.unify_dictionaries().combine_chunks()
    used = array.indices.dictionary_encode()
    return pa.DictionaryArray.from_arrays(used.indices, array.dictionary.take(used.dictionary))
