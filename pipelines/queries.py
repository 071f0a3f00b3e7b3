"""Queries of a result: asked read-only, in the zone of its last run, and shown or written."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sinks.output_folder import WAREHOUSE
from transforms.errors import UserError

SHOWN_ROWS = 200
"""How many rows are shown at most; files get all of them."""

TRANSPOSED_ROWS = 3
"""Up to how many rows a result that is too wide is shown with a line for each column."""

_BATCH_ROWS = 50_000
_WIDEST_CELL = 60
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of text that a spreadsheet takes for a formula."""


def open_warehouse(output: Path) -> duckdb.DuckDBPyConnection:
    """Opens the DuckDB file of a result for reading; times are shown, and read, in the zone of its last run.

    Args:
      output: the folder of the result.

    Raises:
      UserError: there is no result, or its file cannot be read.
    """
    path = output / WAREHOUSE
    if not path.exists():
        raise UserError(
            f"Expected a result in {output}, but there is no {WAREHOUSE}: name the folder that care-kpis batch wrote "
            "with --output."
        )
    try:
        connection = duckdb.connect(str(path), read_only=True, config={"autoinstall_known_extensions": False})
        zone = connection.execute("SELECT timezone FROM runs ORDER BY commit_id DESC LIMIT 1").fetchone()
        connection.execute("SET TimeZone = ?", [zone[0] if zone else "UTC"])
    except duckdb.Error as error:
        raise UserError(
            f"Expected {path} to be the DuckDB file of a result, but DuckDB says: {said_by(error)}: care-kpis check "
            "tells what is damaged, care-kpis rebuild makes it anew."
        ) from error
    return connection


def said_by(error: duckdb.Error) -> str:
    """What DuckDB says of an error, on one line, without the line of SQL that it repeats."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())


@contextmanager
def _asking() -> Iterator[None]:
    """Turns an error of SQL into a sentence."""
    try:
        yield
    except duckdb.Error as error:
        raise UserError(
            f"Expected SQL that DuckDB can run on this result, but it says: {said_by(error)} (SHOW TABLES lists what "
            "there is.)"
        ) from error


def answer(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader | None:
    """Asks a query.

    Args:
      connection: to a result.
      query: one or more statements; the last one gives the answer.

    Returns:
      The rows, as they come; None where the query has none.

    Raises:
      UserError: the query is no SQL, names what is not there, or would write.
    """
    with _asking():
        relation = connection.sql(query)
        return None if relation is None else relation.to_arrow_reader(_BATCH_ROWS)


def batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The rows of an answer; an error that shows only on the way becomes a sentence.

    Raises:
      UserError: the query failed.
    """
    try:
        with _asking():
            yield from reader
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split("\n\nLINE ")[0].split("\n")[0].split())
        raise UserError(f"Expected SQL that DuckDB can run on this result, but it says: {text}") from error


def show(reader: pa.RecordBatchReader, console: Console) -> None:
    """Prints an answer as a table; one that is wider than the console has a line for each column, or loses columns.

    Args:
      reader: the rows.
      console: where to.
    """
    rows: list[dict[str, Any]] = []
    more = 0
    for batch in batches(reader):
        wanted = batch.slice(0, SHOWN_ROWS - len(rows))
        rows += _rows(wanted)
        more += batch.num_rows - wanted.num_rows
    names, types = reader.schema.names, reader.schema.types
    cells = [[_shown(value) for value in row] for row in rows]
    widths = [
        max(cell_len(name), *(min(cell_len(row[place]), _WIDEST_CELL) for row in cells), 0) + 2
        for place, name in enumerate(names)
    ]
    fitting = len(names)
    if console.is_terminal and sum(widths) > console.width:
        if 0 < len(rows) <= TRANSPOSED_ROWS:
            _print(
                ["column", *(f"row {place}" for place in range(1, len(rows) + 1))],
                [False] * (len(rows) + 1),
                [[name, *(row[place] for row in cells)] for place, name in enumerate(names)],
                console,
            )
            return
        while fitting > 1 and sum(widths[:fitting]) > console.width:
            fitting -= 1
    if not console.is_terminal:
        # What reads a pipe has no width.
        console.width = max(console.width, sum(widths))
    is_number = [pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t) for t in types]
    _print(names[:fitting], is_number, [row[:fitting] for row in cells], console)
    notes = [f"{len(rows) + more:,} {'row' if len(rows) + more == 1 else 'rows'}"]
    if more:
        notes.append(f"{more:,} of them not shown")
    if fitting < len(names):
        notes.append(f"{len(names) - fitting} more columns: {', '.join(names[fitting:])}")
    console.print(Text("; ".join(notes)), soft_wrap=True)


def write_csv(reader: pa.RecordBatchReader, stream: IO[str]) -> None:
    """Writes an answer as CSV with a header; null is an empty cell, times are ISO 8601.

    Text that a spreadsheet would take for a formula gets a ' in front.
    """
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(reader.schema.names)
    for batch in batches(reader):
        writer.writerows([_csv_cell(value) for value in row] for row in _rows(batch))


def write_json(reader: pa.RecordBatchReader, stream: IO[str]) -> None:
    """Writes an answer as a JSON array of objects, one on a line; times are ISO 8601, what is not a number is null."""
    names, before = reader.schema.names, "["
    for batch in batches(reader):
        for row in _rows(batch):
            stream.write(before + "\n" + json.dumps(dict(zip(names, map(_json_value, row), strict=True)), default=str))
            before = ","
    stream.write("[]\n" if before == "[" else "\n]\n")


def write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    """Writes an answer to a Parquet file, whole or not at all.

    Args:
      reader: the rows.
      path: the file; what is there is replaced.

    Returns:
      How many rows there are.

    Raises:
      UserError: the query failed, or the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    rows = 0
    try:
        with pq.ParquetWriter(unfinished, reader.schema, compression="zstd") as writer:
            for batch in batches(reader):
                writer.write_batch(batch)
                rows += batch.num_rows
        unfinished.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected to write {path}, but {error}: choose another file, in a folder that is there."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """The rows of a batch as sequences of Python values; two columns may have the same name."""
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _print(names: list[str], is_number: list[bool], rows: list[list[str]], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, (name, right) in enumerate(zip(names, is_number, strict=False), 1):
        is_last = place == len(names)
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=not is_last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cut(cell)) for cell in row[:-1]), Text(row[-1]))
    console.print(table)


def _cut(cell: str) -> str:
    return cell if cell_len(cell) <= _WIDEST_CELL else f"{cell[: _WIDEST_CELL - 1]}…"


def _shown(value: Any) -> str:
    """A value as it is shown: null as such, six digits of a fraction, no letter that would move the cursor."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1f}"
    text = value.isoformat(" ") if isinstance(value, datetime) else str(value)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    if isinstance(value, list | dict):
        return json.dumps(_json_value(value), default=str)
    return value.isoformat() if isinstance(value, datetime) else value


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, datetime) else value
