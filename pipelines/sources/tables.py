"""Reads table files: Parquet, a row group a block, and Arrow IPC, record batches put together to blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.blocks import BLOCK_ROWS, Block
from pipelines.sources.files import InputFile, damaged, open_stored, open_stream
from transforms.errors import UserError
from transforms.raw_rows import RawRows, Rows, Unreadable
from transforms.schema import EVENT_COLUMNS, PARSED_EVENTS, RAW_LIMIT, WORD
from transforms.times import is_text
from transforms.values import is_readable_as_text

PART_ROWS = 1 << 20
"""A larger row group or record batch is taken in parts of this many rows."""

COLUMN_NAMES = tuple(column.name for column in EVENT_COLUMNS)

REQUIRED_COLUMNS = tuple(column.name for column in EVENT_COLUMNS if not column.nullable)

WORD_COLUMNS = frozenset(
    name
    for name in COLUMN_NAMES
    if name in ("event_type", "author_type") or (name != "text" and PARSED_EVENTS.field(name).type == WORD)
)


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, to be given back for the dead letters."""

    table: pa.Table

    def restate(self, rows: Rows) -> list[str]:
        """JSON text of the rows with these places, without `text` and nulls."""
        names = [name for name in self.table.column_names if name != "text"]
        columns = [_restated(self.table.column(name), rows) for name in names]
        return [
            json.dumps(
                {n: v for n, v in zip(names, row, strict=True) if v is not None}, ensure_ascii=False, default=str
            )
            for row in (zip(*columns, strict=True) if names else ((),) * len(rows))
        ]


def _restated(column: pa.ChunkedArray, rows: Rows) -> list[object]:
    """Some values of a column as JSON can hold them: moments as text in UTC, NaN and infinity as text."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))
    if pa.types.is_duration(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_temporal(kind):
        column = column.cast(pa.string())
    try:
        values = column.take(pa.array(rows)).to_pylist()
    except pa.ArrowNotImplementedError:
        values = [column[row].as_py() for row in rows.tolist()]
    return [str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in values]


def _wanted(schema: pa.Schema, path: str) -> tuple[list[str], tuple[str, ...]]:
    """Columns to read and columns that the contract does not have.

    `text` is read only where its type makes its rows wrong.
    """
    twice = sorted({name for name in schema.names if name in COLUMN_NAMES and schema.names.count(name) > 1})
    if twice:
        raise UserError(f"Expected each column once, but {path} has {twice[0]} more than once: rename or drop one.")
    if not set(REQUIRED_COLUMNS) & set(schema.names):
        raise UserError(
            f"Expected the columns {', '.join(REQUIRED_COLUMNS)}, but {path} has none of them: give the right file."
        )
    names = [name for name in COLUMN_NAMES if name in schema.names]
    if "text" in names and is_readable_as_text(schema.field("text").type):
        names.remove("text")
    return names, tuple(sorted(set(schema.names) - set(COLUMN_NAMES)))


def parquet_blocks(file: InputFile) -> Iterator[Block]:
    """One block a row group.

    Raises:
      UserError: the file's footer cannot be read.
    """
    metadata = _metadata(file)
    first = 1
    for group in range(metadata.num_row_groups):
        yield Block(file.path, "parquet", first, metadata, row_group=group)
        first += metadata.row_group(group).num_rows


def _metadata(file: InputFile) -> pq.FileMetaData:
    try:
        with pq.ParquetFile(open_stored(file.path)) as parquet:
            return parquet.metadata
    except (pa.ArrowException, OSError) as error:
        raise UserError(damaged(file.path, "its footer", error)) from error


def read_parquet(block: Block) -> list[RawRows]:
    """Reads one row group: only the contract's columns, words as dictionaries.

    Raises:
      UserError: the row group is damaged.
    """
    try:
        schema = block.payload.schema.to_arrow_schema()
        words = [name for name in WORD_COLUMNS if name in schema.names and is_text(schema.field(name).type)]
        names, unknown = _wanted(schema, block.source)
        source = open_stored(block.source)
        with pq.ParquetFile(source, metadata=block.payload, pre_buffer=True, read_dictionary=words) as parquet:
            table = parquet.read_row_group(block.row_group, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(damaged(block.source, f"row group {block.row_group + 1}", error)) from error
    return _parts(block, table, unknown)


def arrow_blocks(file: InputFile) -> Iterator[Block]:
    """Record batches of an Arrow IPC file or stream, put together to blocks.

    Raises:
      UserError: the file is damaged.
    """
    first, waiting, waiting_rows, number = 1, list[pa.RecordBatch](), 0, 0
    names: list[str] = []
    unknown: tuple[str, ...] = ()
    try:
        reader = _arrow_reader(file)
        names, unknown = _wanted(reader.schema, file.path)
        for batch in _batches(reader):
            number += 1
            waiting.append(batch)
            waiting_rows += batch.num_rows
            if waiting_rows >= BLOCK_ROWS:
                yield Block(file.path, "arrow", first, pa.Table.from_batches(waiting).select(names), header=unknown)
                first, waiting, waiting_rows = first + waiting_rows, [], 0
    except (pa.ArrowException, OSError, EOFError) as error:
        raise UserError(damaged(file.path, f"record batch {number + 1}", error)) from error
    if waiting_rows:
        yield Block(file.path, "arrow", first, pa.Table.from_batches(waiting).select(names), header=unknown)


def _arrow_reader(file: InputFile) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    if file.compression == "none":
        stored = open_stored(file.path)
        if stored.read(6) == b"ARROW1":
            stored.seek(0)
            return pa.ipc.open_file(stored)
        stored.seek(0)
        return pa.ipc.open_stream(stored)
    return pa.ipc.open_stream(open_stream(file))


def _batches(reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def read_arrow(block: Block) -> list[RawRows]:
    """The rows of a block of Arrow record batches."""
    return _parts(block, block.payload, block.header)


def _parts(block: Block, table: pa.Table, unknown: tuple[str, ...]) -> list[RawRows]:
    parts = []
    for start in range(0, table.num_rows, PART_ROWS):
        rows = table.slice(start, PART_ROWS)
        positions = np.arange(block.first_row + start, block.first_row + start + rows.num_rows, dtype=np.int64)
        rows, positions, unreadable = _without_bad_text(_without_views(rows), positions)
        columns = {name: _whole(rows.column(name)) for name in rows.column_names}
        parts.append(
            RawRows(block.source, columns, positions, TableRows(rows), unreadable=unreadable, unknown_columns=unknown)
        )
    return parts


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _without_views(table: pa.Table) -> pa.Table:
    """The table with text of the plain kind: Arrow cannot pick rows of a string view."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.large_string()))
    return table


def _without_bad_text(table: pa.Table, positions: Rows) -> tuple[pa.Table, Rows, Unreadable]:
    """Takes out the rows with text that is not UTF-8; Arrow itself does not look when it reads."""
    bad = np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        if not all(_is_utf8(chunk) for chunk in column.chunks):
            bad |= [_is_bad(value) for value in _bytes_of(column)]
    if not bad.any():
        return table, positions, Unreadable()
    rows = np.flatnonzero(bad)
    texts = [
        c
        for c in table.column_names
        if is_text(table.schema.field(c).type) or pa.types.is_dictionary(table.schema.field(c).type)
    ]
    shown, kept = table.take(pa.array(rows)), table.filter(pa.array(~bad))
    for name in texts:
        place = table.schema.get_field_index(name)
        values = [None if v is None else v.decode("utf-8", "replace") for v in _bytes_of(shown.column(name))]
        shown = shown.set_column(place, name, pa.chunked_array([pa.array(values, pa.string())]))
        # A dictionary would still hold the words that are no text.
        kept = kept.set_column(place, name, _decoded(kept.column(name)))
    raw = tuple(text[:RAW_LIMIT] for text in TableRows(shown).restate(np.arange(len(rows))))
    return kept, positions[~bad], Unreadable(positions[rows], raw)


def _is_utf8(chunk: pa.Array) -> bool:
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary
    try:
        if is_text(chunk.type):
            chunk.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)


def _bytes_of(column: pa.ChunkedArray) -> list[bytes | None]:
    values: list[bytes | None] = _decoded(column).cast(pa.large_binary()).to_pylist()
    return values


def _is_bad(value: bytes | None) -> bool:
    try:
        return value is not None and value.decode() is None
    except UnicodeDecodeError:
        return True


def estimate_rows(file: InputFile) -> int:
    """Rows of a Parquet file, exactly; about how many an Arrow file has, from its first record batch."""
    if file.format == "parquet":
        return int(_metadata(file).num_rows)
    try:
        reader = _arrow_reader(file)
        batch = next(_batches(reader), None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(damaged(file.path, "its beginning", error)) from error
    if batch is None:
        return 0
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return int(batch.num_rows * reader.num_record_batches)
    return int(batch.num_rows * max(1.0, file.size / max(1, batch.nbytes)))
