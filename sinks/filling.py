"""Rows into the tables of a warehouse."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from sinks.catalog import name_of
from sinks.parquet import conform
from sinks.views import KPI_VALUES, WINDOWS
from transforms.calendars import make_grid
from transforms.errors import UserError
from transforms.schema import TIMESTAMP
from transforms.tables import KPI_CHANGES, Table


@contextmanager
def said_clearly(path: Path) -> Iterator[None]:
    """Turns what DuckDB says about a file that cannot be written into a sentence for the user.

    Args:
      path: the file that is being written.

    Raises:
      UserError: the disk is full, or the file is not writable.
    """
    try:
        yield
    except (duckdb.IOException, duckdb.TransactionException, duckdb.FatalException) as error:
        raise UserError(
            f"Expected to write {path}, but DuckDB says {str(error)!r}: free some space or choose another output "
            "folder, then run again; an earlier result is untouched."
        ) from error


def fill_windows(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Fills the table `windows` anew, from the windows of kpis and the latest run."""
    warehouse.execute(f"DELETE FROM {WINDOWS.name}")
    load(warehouse, WINDOWS, _windows(warehouse))


def load(warehouse: duckdb.DuckDBPyConnection, spec: Table, rows: pa.Table | Sequence[Path]) -> None:
    """Adds rows to one table.

    Args:
      warehouse: with the tables defined.
      spec: the table.
      rows: as an Arrow table, or as Parquet files.

    Raises:
      ValueError: a table is not what its specification says.
    """
    name = name_of(spec)
    if isinstance(rows, pa.Table):
        warehouse.execute("SET preserve_insertion_order = true")
        warehouse.register("rows_to_load", conform(rows, spec))
        warehouse.execute(f"INSERT INTO {name} SELECT * FROM rows_to_load")
        warehouse.unregister("rows_to_load")
    elif rows:
        # In the order of the files each row group would wait for the one before: twice the time.
        warehouse.execute("SET preserve_insertion_order = false")
        columns, options = ", ".join(column.name for column in spec.columns), "hive_partitioning = false"
        if spec == KPI_CHANGES:
            # Files that outlive the version that wrote them may lack a KPI of today, or have one more.
            columns = f"COLUMNS(lambda name: list_contains({list(spec.schema.names)}, name))"
            options += ", union_by_name = true"
        warehouse.execute(
            f"INSERT INTO {name} BY NAME SELECT {columns} FROM read_parquet(?, {options})",
            [[glob.escape(str(file)) for file in rows]],
        )


def _windows(warehouse: duckdb.DuckDBPyConnection) -> pa.Table:
    """Every window of every grain from its first one with a row in kpis to the one of as_of."""
    last = warehouse.execute("SELECT epoch_us(as_of), timezone FROM runs ORDER BY commit_id DESC LIMIT 1").fetchone()
    firsts = warehouse.execute(f"SELECT grain, epoch_us(min(window_start)) FROM {KPI_VALUES} GROUP BY grain").fetchall()
    if last is None or last[0] is None or not firsts:
        return WINDOWS.schema.empty_table()
    as_of, timezone = last
    return pa.concat_tables(_windows_of(grain, timezone, first, as_of) for grain, first in sorted(firsts))


def _windows_of(grain: str, timezone: str, first: int, as_of: int) -> pa.Table:
    """The windows of one grain from an instant to another, both in microseconds."""
    grid = make_grid(timezone, first, as_of)
    slices = grid.slice_starts[(grid.slice_starts >= first // 1_000_000) & (grid.slice_starts * 1_000_000 <= as_of)]
    starts, ends = grid.windows_of(grain, slices)
    starts, place = np.unique(starts, return_index=True)
    ends = ends[place] * 1_000_000
    return pa.table(
        [
            pa.repeat(grain, len(starts)),
            pa.array(starts * 1_000_000).cast(TIMESTAMP),
            pa.array(ends).cast(TIMESTAMP),
            pa.array(ends <= as_of),
        ],
        schema=WINDOWS.schema,
    )
