"""The warehouse: every table of a result in one DuckDB file, with comments, macros and views."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import duckdb
import numpy as np
import pyarrow as pa

from sinks.history import append_run, revise
from sinks.parquet import MONTHS, conform, write_partitioned, write_table
from sinks.publish import WAREHOUSE
from sinks.views import KPI_VALUES, WINDOWS, comments, statements
from transforms.calendars import make_grid
from transforms.definitions import KPIS
from transforms.errors import UserError
from transforms.schema import TIMESTAMP
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TABLES,
    TURNS,
    Table,
)

_INDEXED = (KPI_DEFINITIONS.name, RUNS.name)
"""Tables with a primary key. Of the others, some have a key with null in it, which DuckDB does not take; on
conversations and turns an index takes longer than loading them (1.6 M and 3.4 M rows: 6 s more than 3 s)."""

_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    TIMESTAMP: "TIMESTAMPTZ",
}


class WarehouseLoader:
    """A DuckDB file of all tables in the making, with comments, macros and views; loading goes on in a thread.

    Files may be added while others are still being written. A context manager: without `finish` the file is of no use.

    Attributes:
      path: the file.
      added: the files that were added.
    """

    def __init__(self, path: Path, threads: int = 2) -> None:
        """Begins the file; what is there is replaced.

        Args:
          path: the file.
          threads: how many DuckDB may use.
        """
        self.path = path
        self.added: set[Path] = set()
        self._threads = threads
        self._warehouse: duckdb.DuckDBPyConnection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warehouse")
        self._pending = [self._thread.submit(self._open)]

    def __enter__(self) -> WarehouseLoader:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and closes the file."""
        self._thread.shutdown(cancel_futures=True)
        if self._warehouse is not None:
            self._warehouse.close()

    def add_files(self, spec: Table, files: Sequence[Path]) -> None:
        """Loads rows of a table from Parquet files, beside what the caller does next."""
        self.added.update(files)
        self._pending.append(self._thread.submit(self._load_files, spec, files))

    def finish(self, sources: Mapping[Table, pa.Table | Sequence[Path]]) -> Path:
        """Loads the rest and closes the file.

        Args:
          sources: rows of tables, as Arrow tables or as Parquet files (no files: no rows).

        Returns:
          The file, closed and without a write-ahead log.

        Raises:
          ValueError: a table is not what its specification says.
          UserError: the disk is full or not writable.
        """
        for spec, rows in sources.items():
            if not isinstance(rows, pa.Table):
                self.add_files(spec, rows)
        self._pending[0].result()
        assert self._warehouse is not None
        # Rows in memory are loaded beside those from files, on a connection of their own.
        with self._warehouse.cursor() as beside, self._said_clearly():
            for spec, rows in sources.items():
                if isinstance(rows, pa.Table):
                    _load(beside, spec, rows)
        for loading in self._pending:
            loading.result()
        with self._said_clearly():
            self._warehouse.commit()
            _load(self._warehouse, WINDOWS, _windows(self._warehouse))
            self._warehouse.execute("CHECKPOINT")
            self._warehouse.close()
            self._warehouse = None
        return self.path

    def _open(self) -> None:
        for file in (self.path, self.path.with_name(self.path.name + ".wal")):
            file.unlink(missing_ok=True)
        with self._said_clearly():
            config = {"threads": self._threads, "autoinstall_known_extensions": False}
            self._warehouse = duckdb.connect(str(self.path), config=config)
            # In one transaction: each of the hundreds of comments would otherwise be a commit of its own.
            self._warehouse.begin()
            _define(self._warehouse, (*TABLES, WINDOWS))
            self._warehouse.commit()
            # Facts too: a transaction writes whole row groups, however small the files are.
            self._warehouse.begin()

    def _load_files(self, spec: Table, files: Sequence[Path]) -> None:
        assert self._warehouse is not None
        with self._said_clearly():
            _load(self._warehouse, spec, files)

    @contextmanager
    def _said_clearly(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.IOException, duckdb.TransactionException) as error:
            raise UserError(
                f"Expected to write {self.path}, but DuckDB says {str(error)!r}: free some space or choose another "
                "output folder, then run again; an earlier result is untouched."
            ) from error


def build_warehouse(
    root: Path,
    *,
    kpis: pa.Table,
    kpi_statistics: pa.Table,
    dead_letters: pa.Table,
    runs: pa.Table,
    late_events: pa.Table | None = None,
    previous: Path | None = None,
    loader: WarehouseLoader | None = None,
) -> Path:
    """Completes a result whose conversations and turns lie under `root` as Parquet: the other tables, and care.duckdb.

    Args:
      root: the folder of the result in the making.
      kpis: columns of KPI_TABLE without those of the commit.
      kpi_statistics: columns of KPI_STATISTICS.
      dead_letters: columns of DEAD_LETTERS.
      runs: the one row of RUNS of this commit.
      late_events: columns of LATE_EVENTS; None is none.
      previous: the folder of the result before, or None: its runs are kept, and rows of kpis that are as they were
        keep their revision and changed_at.
      loader: of root/care.duckdb, with the files of conversations and turns that it has taken; None begins one.

    Returns:
      The DuckDB file, closed and without a write-ahead log.

    Raises:
      ValueError: a table has not the columns, types or nulls that its specification says.
      UserError: the disk is full or not writable, or the previous result cannot be read.
    """
    runs = conform(runs, RUNS)
    committed_at = datetime.fromtimestamp(runs["committed_at"].cast(pa.int64())[-1].as_py() / 1e6, UTC)
    tables = {
        KPI_TABLE: revise(kpis, previous, committed_at),
        KPI_STATISTICS: kpi_statistics,
        KPI_DEFINITIONS: definitions_table(),
        DEAD_LETTERS: dead_letters,
        LATE_EVENTS: LATE_EVENTS.schema.empty_table() if late_events is None else late_events,
        RUNS: append_run(runs, previous),
    }
    facts = {spec: sorted((root / spec.name).rglob("*.parquet")) for spec in (CONVERSATIONS, TURNS)}
    with ThreadPoolExecutor(1) as pool, loader or WarehouseLoader(root / WAREHOUSE) as loader:
        writing_tables = pool.submit(_write_tables, root, tables)
        rest = {spec: [file for file in files if file not in loader.added] for spec, files in facts.items()}
        loader.finish({**rest, **tables})
        writing_tables.result()
    return root / WAREHOUSE


def load_warehouse(path: Path, sources: Mapping[Table, pa.Table | Sequence[Path]]) -> Path:
    """Makes a DuckDB file at once; see WarehouseLoader.

    Args:
      path: the file; what is there is replaced.
      sources: rows of tables, as Arrow tables or as Parquet files.
    """
    with WarehouseLoader(path) as loader:
        return loader.finish(sources)


def definitions_table() -> pa.Table:
    """The rows of `kpi_definitions`, one per KPI in the order of the columns of `kpis`."""
    rows = [{column.name: getattr(kpi, column.name) for column in KPI_DEFINITIONS.columns} for kpi in KPIS]
    return pa.Table.from_pylist(rows, schema=KPI_DEFINITIONS.schema)


def _write_tables(root: Path, tables: dict[Table, pa.Table]) -> None:
    """Writes the Parquet files of tables below `root`."""
    for spec, table in tables.items():
        if spec.name in MONTHS:
            write_partitioned(table, root / spec.name, spec, MONTHS[spec.name], "0")
        else:
            write_table(table, root / spec.name / "part-0.parquet", spec)


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


def _define(warehouse: duckdb.DuckDBPyConnection, tables: Iterable[Table]) -> None:
    """Makes all tables, macros and views, empty, with their comments."""
    for spec in tables:
        name = _name_of(spec)
        columns = [f"{c.name} {_type(c.type)}{'' if c.nullable else ' NOT NULL'}" for c in spec.columns]
        key = [f"PRIMARY KEY ({', '.join(spec.key)})"] if name in _INDEXED else []
        warehouse.execute(f"CREATE TABLE {name} ({', '.join(columns + key)})")
        note = "" if key else ", unique without being an index"
        sentence = f"{spec.grain} Key: {', '.join(spec.key)}{note}."
        for statement in comments("TABLE", name, sentence, spec.columns):
            warehouse.execute(statement)
    for statement in statements():
        warehouse.execute(statement)


def _load(warehouse: duckdb.DuckDBPyConnection, spec: Table, rows: pa.Table | Sequence[Path]) -> None:
    """Fills one table."""
    name = _name_of(spec)
    if isinstance(rows, pa.Table):
        warehouse.execute("SET preserve_insertion_order = true")
        warehouse.register("rows_to_load", conform(rows, spec))
        warehouse.execute(f"INSERT INTO {name} SELECT * FROM rows_to_load")
        warehouse.unregister("rows_to_load")
    elif rows:
        # In the order of the files each row group would wait for the one before: twice the time.
        warehouse.execute("SET preserve_insertion_order = false")
        warehouse.execute(
            f"INSERT INTO {name} SELECT {', '.join(c.name for c in spec.columns)} "
            "FROM read_parquet(?, hive_partitioning = false)",
            [[glob.escape(str(file)) for file in rows]],
        )


def _name_of(spec: Table) -> str:
    """Name in the warehouse; `kpis` is the view over its stored part."""
    return KPI_VALUES if spec == KPI_TABLE else spec.name


def _type(kind: pa.DataType) -> str:
    """The DuckDB type of a column."""
    return _TYPES.get(kind) or "STRUCT(bucket SMALLINT, count INTEGER)[]"
