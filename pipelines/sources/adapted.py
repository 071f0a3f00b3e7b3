"""Reads an export that an adapter turns into events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.sources.blocks import BLOCK_ROWS, Block
from pipelines.sources.delimited import csv_blocks, read_fields
from pipelines.sources.files import InputFile
from pipelines.sources.tables import TableRows
from transforms.adapters import ADAPTERS, SOURCE_ROW, Adapter
from transforms.errors import UserError
from transforms.raw_rows import RawRows, Rows
from transforms.values import as_text


@dataclass(frozen=True)
class ExportRows:
    """Rows of an export, to be given back for the dead letters of the events that were made of them."""

    table: pa.Table
    rows: Rows

    def restate(self, rows: Rows) -> list[str]:
        """JSON text of the export's rows, in the columns that the adapter reads."""
        return TableRows(self.table).restate(self.rows[rows])


def read_adapter(files: Sequence[InputFile], source: str | Adapter) -> Iterator[Block]:
    """Reads all files of an export at once, and gives the events that the adapter makes of them, a block at a time.

    Args:
      files: CSV files with a header row.
      source: the adapter that turns their rows into events, or its name.

    Raises:
      UserError: there is no such adapter; a file is damaged, is no CSV, or lacks a column that the adapter reads.
    """
    adapter = source if isinstance(source, Adapter) else ADAPTERS.get(source)
    if adapter is None:
        raise UserError(f"Expected a source out of {', '.join(sorted(ADAPTERS))}, but got {source!r}.")
    tables, positions, starts = [], [], [0]
    for file in files:
        if file.format != "csv":
            raise UserError(f"Expected CSV for --source {adapter.name}, but {file.path} is {file.format}.")
        for block in csv_blocks(file, adapter.columns, adapter.columns):
            missing = [name for name in adapter.columns if name not in block.header]
            if missing:
                raise UserError(
                    f"Expected the columns {', '.join(adapter.columns)} for --source {adapter.name}, but {file.path}"
                    f" lacks {', '.join(missing)}: give the export as it was published."
                )
            fields = read_fields(block, adapter.columns)
            tables.append(pa.table({name: as_text(fields.columns[name])[0] for name in adapter.columns}))
            positions.append(fields.positions)
            if len(fields.unreadable.positions):
                nothing = np.empty(0, np.int64)
                rows = RawRows(file.path, {}, nothing, fields.records.take(nothing), unreadable=fields.unreadable)
                yield Block(file.path, "rows", block.first_row, rows)
        starts.append(sum(map(len, positions)))
    if starts[-1]:
        yield from _made(files, adapter, pa.concat_tables(tables).combine_chunks(), np.concatenate(positions), starts)


def _made(
    files: Sequence[InputFile], adapter: Adapter, export: pa.Table, positions: Rows, starts: list[int]
) -> Iterator[Block]:
    """Blocks of events, file by file; `starts`: where each file's rows begin in the export."""
    events = adapter.convert(export)
    made_of = events.column(SOURCE_ROW).to_numpy()
    order = np.argsort(made_of, kind="stable")
    events = events.drop_columns([SOURCE_ROW]).take(pa.array(order))
    made_of = made_of[order]
    for file, start, stop in zip(files, starts, starts[1:], strict=False):
        low, high = np.searchsorted(made_of, [start, stop]).tolist()
        for begin in range(low, high, BLOCK_ROWS):
            rows = made_of[begin : min(begin + BLOCK_ROWS, high)]
            part = events.slice(begin, len(rows)).combine_chunks()
            columns = {name: part.column(name).combine_chunks() for name in part.column_names}
            raw = RawRows(file.path, columns, positions[rows], ExportRows(export, rows))
            yield Block(file.path, "rows", int(positions[rows[0]]), raw)
