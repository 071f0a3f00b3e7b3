"""The warehouse: every table of a result in one DuckDB file, with comments, macros and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa

from sinks.catalog import define
from sinks.filling import fill_windows, load, said_clearly
from sinks.history import append_run, keep_changes, revise
from sinks.manifest import require_intact
from sinks.parquet import MONTHS, conform, write_partitioned, write_table
from sinks.publish import WAREHOUSE
from sinks.sql import sql_text
from sinks.views import WINDOWS
from transforms.definitions import KPIS
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_CHANGES,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TABLES,
    TURNS,
    Table,
)

ROW_GROUP_ROWS = 61_440
"""Half of DuckDB's own: row groups are packed side by side, also those of tables that have but a few."""

MEMORY_LIMIT = "1500MB"
"""What DuckDB may hold in memory while it loads: rows go through, and what is written is let go."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
        with self._warehouse.cursor() as beside, said_clearly(self.path):
            beside.execute("USE care")
            for spec, rows in sources.items():
                if isinstance(rows, pa.Table):
                    load(beside, spec, rows)
        for loading in self._pending:
            loading.result()
        with said_clearly(self.path):
            self._warehouse.commit()
            fill_windows(self._warehouse)
            self._warehouse.execute("CHECKPOINT")
            self._warehouse.close()
            self._warehouse = None
        return self.path

    def _open(self) -> None:
        for file in (self.path, self.path.with_name(self.path.name + ".wal")):
            file.unlink(missing_ok=True)
        with said_clearly(self.path):
            config = {"threads": self._threads, "autoinstall_known_extensions": False, "memory_limit": MEMORY_LIMIT}
            self._warehouse = duckdb.connect(config=config)
            self._warehouse.execute(f"ATTACH {sql_text(str(self.path))} AS care (ROW_GROUP_SIZE {ROW_GROUP_ROWS})")
            self._warehouse.execute("USE care")
            # In one transaction: each of the hundreds of comments would otherwise be a commit of its own.
            self._warehouse.begin()
            define(self._warehouse, (*TABLES, WINDOWS))
            self._warehouse.commit()
            # Facts too: a transaction writes whole row groups, however small the files are.
            self._warehouse.begin()

    def _load_files(self, spec: Table, files: Sequence[Path]) -> None:
        assert self._warehouse is not None
        with said_clearly(self.path):
            load(self._warehouse, spec, files)


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
      previous: the folder of the result before, or None: its runs are kept, rows of kpis that are as they were keep
        their revision and changed_at, and kpi_changes holds what the others were, added to what it held before.
      loader: of root/care.duckdb, with the files of conversations and turns that it has taken; None begins one.

    Returns:
      The DuckDB file, closed and without a write-ahead log.

    Raises:
      ValueError: a table has not the columns, types or nulls that its specification says.
      UserError: the disk is full or not writable, or the previous result cannot be read.
    """
    if previous is not None:
        require_intact(previous, (RUNS.name, KPI_TABLE.name, KPI_CHANGES.name))
    runs = conform(runs, RUNS)
    commit_id, committed_at = (runs[name].cast(pa.int64())[-1].as_py() for name in ("commit_id", "committed_at"))
    revised = revise(kpis, previous, commit_id, _EPOCH + timedelta(microseconds=committed_at))
    tables = {
        KPI_TABLE: revised.kpis,
        KPI_STATISTICS: kpi_statistics,
        KPI_DEFINITIONS: definitions_table(),
        DEAD_LETTERS: dead_letters,
        LATE_EVENTS: LATE_EVENTS.schema.empty_table() if late_events is None else late_events,
        RUNS: append_run(runs, previous),
    }
    files = {spec: sorted((root / spec.name).rglob("*.parquet")) for spec in (CONVERSATIONS, TURNS)}
    files[KPI_CHANGES] = keep_changes(root, previous, revised.changes, commit_id)
    with ThreadPoolExecutor(1) as pool, loader or WarehouseLoader(root / WAREHOUSE) as loader:
        writing_tables = pool.submit(_write_tables, root, tables)
        rest = {spec: [file for file in found if file not in loader.added] for spec, found in files.items()}
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
