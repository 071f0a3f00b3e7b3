"""Adds what a cycle changed to a result: DuckDB in one transaction, Parquet file by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

import duckdb
import numpy as np
import pyarrow as pa

from sinks.catalog import name_of
from sinks.duckdb import definitions_table
from sinks.facts import restate_facts
from sinks.filling import fill_windows, load, said_clearly
from sinks.history import keep_changes
from sinks.parquet import MONTHS, conform, month_folder, write_table
from sinks.publish import WAREHOUSE, Snapshot
from sinks.revisions import restate
from sinks.views import KPI_VALUES
from transforms.calendars import month_name, month_of
from transforms.tables import (
    DEAD_LETTERS,
    KPI_CHANGES,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    Table,
)

MEMORY_LIMIT = "256MB"
"""What DuckDB may hold in memory while a result grows: more does not make it faster, however large the result is."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KPI_ORDER = "window_start, grain, basis, account_id NULLS FIRST, channel"


@dataclass(frozen=True)
class Restatement:
    """What a cycle changes in a result.

    Attributes:
      facts: rows of CONVERSATIONS and TURNS that go and that come (with key_hash).
      kpis: rows of the windows that were made anew, without the commit's columns.
      kpi_statistics: the same of KPI_STATISTICS.
      windows: keys of the windows that were made anew or have become empty.
      letters_removed: rows of DEAD_LETTERS that go.
      letters_added: rows of DEAD_LETTERS that come.
      run: the row of RUNS.
      late_added: rows of LATE_EVENTS that come.
    """

    facts: Mapping[Table, tuple[pa.Table, pa.Table]]
    kpis: pa.Table
    kpi_statistics: pa.Table
    windows: pa.Table
    letters_removed: pa.Table
    letters_added: pa.Table
    run: pa.Table
    late_added: pa.Table = field(default_factory=LATE_EVENTS.schema.empty_table)


class WarehouseCopy:
    """The DuckDB file of the result before, copied into the one in the making beside what else goes on."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Begins to copy."""
        self._snapshot = snapshot
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warehouse")
        self._copied = self._thread.submit(self._copy)

    def __enter__(self) -> WarehouseCopy:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the thread."""
        self._thread.shutdown()

    def finish(self) -> Path:
        """Waits for the copy.

        Raises:
          UserError: there is no file to copy, or the disk is full.
        """
        return self._copied.result()

    def _copy(self) -> Path:
        return self._snapshot.copy(WAREHOUSE)


def grow_result(snapshot: Snapshot, change: Restatement) -> pa.Table:
    """Makes the result before and a restatement into the result in the making.

    Args:
      snapshot: its care.duckdb is a copy of the one before (WarehouseCopy).
      change: what changes.

    Returns:
      The rows of kpi_statistics by month.

    Raises:
      UserError: the disk is full, or the result before is damaged.
    """
    with ThreadPoolExecutor(1) as pool:
        # Parquet files are written beside what DuckDB does; one at a time, for DuckDB takes the other core.
        writing_files: list[Future[object]] = [
            pool.submit(write)
            for spec, (removed, added) in change.facts.items()
            for write in restate_facts(snapshot, spec, removed, added)
        ]
        with _opened(snapshot.path / WAREHOUSE) as warehouse:
            warehouse.begin()
            for spec, (removed, added) in change.facts.items():
                _replace(warehouse, spec, removed, added)
            months = _months_to_write(warehouse, change)
            changes = _restate_kpis(warehouse, change)
            _replace(warehouse, KPI_STATISTICS, change.windows, change.kpi_statistics)
            _replace(warehouse, DEAD_LETTERS, change.letters_removed, change.letters_added)
            load(warehouse, LATE_EVENTS, change.late_added)
            load(warehouse, RUNS, change.run)
            fill_windows(warehouse)
            warehouse.commit()
            for path, spec, rows in _months_of_windows(snapshot, warehouse, months):
                writing_files.append(pool.submit(write_table, rows, path, spec, (MONTHS[spec.name],)))
            commit_id = _commit_of(change.run)[0]
            if change.letters_removed.num_rows:
                order = "ORDER BY source, source_partition NULLS FIRST, source_row"
                write_table(_rows(warehouse, DEAD_LETTERS, order), _only_file(snapshot, DEAD_LETTERS), DEAD_LETTERS)
            else:
                _add_file(snapshot, DEAD_LETTERS, change.letters_added, commit_id)
            _add_file(snapshot, LATE_EVENTS, change.late_added, commit_id)
            by_month = _rows(warehouse, KPI_STATISTICS, "WHERE grain = 'month'")
            write_table(_rows(warehouse, RUNS, "ORDER BY commit_id"), _only_file(snapshot, RUNS), RUNS)
            warehouse.execute("CHECKPOINT")
        keep_changes(snapshot.path, snapshot.previous, changes, commit_id)
        write_table(definitions_table(), _only_file(snapshot, KPI_DEFINITIONS), KPI_DEFINITIONS)
        for written in writing_files:
            written.result()
    return by_month


@contextmanager
def _opened(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with said_clearly(path):
        config = {"threads": 2, "autoinstall_known_extensions": False, "memory_limit": MEMORY_LIMIT}
        with duckdb.connect(str(path), config=config) as warehouse:
            warehouse.execute("SET TimeZone = 'UTC'")
            yield warehouse


def _commit_of(run: pa.Table) -> tuple[int, datetime]:
    commit_id, committed_at = (run[name].cast(pa.int64())[-1].as_py() for name in ("commit_id", "committed_at"))
    return commit_id, _EPOCH + timedelta(microseconds=committed_at)


def _replace(warehouse: duckdb.DuckDBPyConnection, spec: Table, removed: pa.Table, added: pa.Table) -> None:
    """Takes rows out of a table, by their keys, and puts others in."""
    if removed.num_rows:
        warehouse.register("removed", removed.select(list(spec.key)))
        warehouse.execute(f"DELETE FROM {name_of(spec)} AS t USING removed AS r WHERE {same_key(spec)}")
        warehouse.unregister("removed")
    if added.num_rows:
        load(warehouse, spec, added.select(spec.schema.names))


def same_key(spec: Table) -> str:
    """SQL that holds where the rows t and r of a table have the same key."""
    nullable = {column.name for column in spec.columns if column.nullable}
    return " AND ".join(f"t.{name} {'IS NOT DISTINCT FROM' if name in nullable else '='} r.{name}" for name in spec.key)


def _months_to_write(warehouse: duckdb.DuckDBPyConnection, change: Restatement) -> np.ndarray:
    """Months of the windows that were made anew, and months in which others have become complete."""
    flipped = warehouse.execute(
        f"SELECT DISTINCT epoch_us(window_start) FROM {KPI_VALUES} WHERE is_complete <> (epoch_us(window_end) <= ?)",
        [_as_of(change.run)],
    ).fetchall()
    starts = change.windows["window_start"].cast(pa.int64()).to_numpy()
    return np.unique(np.concatenate([month_of(starts), month_of(np.array(flipped, np.int64).reshape(-1))]))


def _as_of(run: pa.Table) -> int:
    as_of = run["as_of"].cast(pa.int64())[-1].as_py()
    return as_of if as_of is not None else -1


def _restate_kpis(warehouse: duckdb.DuckDBPyConnection, change: Restatement) -> pa.Table:
    """Puts the new values of the windows in; gives the rows of kpi_changes back."""
    warehouse.register("windows_made", change.windows)
    before = warehouse.sql(f"SELECT t.* FROM {KPI_VALUES} AS t JOIN windows_made AS r ON {same_key(KPI_TABLE)}")
    known = before.to_arrow_table()
    keys = ", ".join(f"t.{name}" for name in KPI_TABLE.key)
    earlier = warehouse.sql(
        f"SELECT {keys}, t.revision FROM {KPI_CHANGES.name} AS t JOIN windows_made AS r ON {same_key(KPI_TABLE)}"
    ).to_arrow_table()
    warehouse.unregister("windows_made")
    commit_id, committed_at = _commit_of(change.run)
    restated = restate(known.select(KPI_TABLE.schema.names), change.kpis, commit_id, committed_at, earlier)
    _replace(warehouse, KPI_TABLE, change.windows, restated.kpis)
    load(warehouse, KPI_CHANGES, restated.changes)
    warehouse.execute(
        f"UPDATE {KPI_VALUES} SET is_complete = NOT is_complete WHERE is_complete <> (epoch_us(window_end) <= ?)",
        [_as_of(change.run)],
    )
    return restated.changes


def _rows(warehouse: duckdb.DuckDBPyConnection, spec: Table, rest: str) -> pa.Table:
    """Rows of a table as its specification has them."""
    columns = ", ".join(spec.schema.names)
    return conform(warehouse.sql(f"SELECT {columns} FROM {name_of(spec)} {rest}").to_arrow_table(), spec)


def _months_of_windows(
    snapshot: Snapshot, warehouse: duckdb.DuckDBPyConnection, months: np.ndarray
) -> Iterator[tuple[Path, Table, pa.Table]]:
    """The months of kpis and kpi_statistics in which something changed: file, table and rows. Links the others."""
    for spec in (KPI_STATISTICS, KPI_TABLE):
        folders = {m: f"{spec.name}/{month_folder(MONTHS[spec.name], month_name(m))}" for m in months.tolist()}
        for name in snapshot.previous_files(spec.name):
            if str(Path(name).parent) not in folders.values():
                snapshot.link(name)
            elif spec == KPI_STATISTICS:
                # It was read; what is made of it must not be made of damage.
                snapshot.previous_file(name)
        for month, folder in folders.items():
            within = (
                f"WHERE window_start >= make_timestamptz({_micros(month)}) "
                f"AND window_start < make_timestamptz({_micros(month + 1)}) ORDER BY {_KPI_ORDER}"
            )
            rows = _rows(warehouse, spec, within)
            if rows.num_rows:
                yield snapshot.path / folder / "part-0.parquet", spec, rows


def _micros(month: int) -> int:
    """The first instant of a month since January 1970, microseconds since the epoch."""
    return int(np.datetime64(month, "M").astype("datetime64[us]").astype(np.int64))


def _add_file(snapshot: Snapshot, spec: Table, added: pa.Table, commit_id: int) -> None:
    """Adds a file of the new rows of a table of places to those of the commits before."""
    for name in snapshot.previous_files(spec.name):
        snapshot.link(name)
    if added.num_rows:
        path = snapshot.path / spec.name / f"part-{commit_id:06}.parquet"
        write_table(added.sort_by([(name, "ascending") for name in spec.key]), path, spec)


def _only_file(snapshot: Snapshot, spec: Table) -> Path:
    return snapshot.path / spec.name / "part-0.parquet"
