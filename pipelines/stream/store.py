"""The live store of a stream: a DuckDB file that each cycle changes in one transaction, and files of open rows.

    OUTPUT/.live/live.duckdb    statistics, what changed since the last publish, keys, and the state (one row of JSON)
    OUTPUT/.live/rows/*.arrow   open rows; complete and on disk before the transaction that names them

Nobody else reads it. A file of open rows that the state does not name any more is removed only after a checkpoint: were
the write-ahead log cut short, the state of the last checkpoint would want it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.stream.live_tables import CHANGES, LIVE_TABLES, PENDING, CycleResult
from pipelines.stream.state import StreamState
from sinks.filling import said_clearly
from sinks.growing import same_key
from transforms.hashing import Hashes
from transforms.tables import KPI_STATISTICS

LIVE = ".live"
"""Folder of an output folder in which its stream lives."""

_FILE, _ROWS = "live.duckdb", "rows"
_CHECKPOINT_BYTES = "1GB"
"""Checkpoints are made at moments of our own choice."""


class LiveStore:
    """The live store of an output folder; a context manager. Its connection belongs to one thread at a time.

    Attributes:
      folder: where it lies.
      state: as of the last commit.
    """

    def __init__(self, output: Path) -> None:
        """Opens it; an empty one where there is none yet.

        Raises:
          UserError: the disk is full or not writable.
          duckdb.Error: the file is damaged.
        """
        self.folder = output / LIVE
        (self.folder / _ROWS).mkdir(parents=True, exist_ok=True)
        self.path = self.folder / _FILE
        config = {"threads": 2, "autoinstall_known_extensions": False, "checkpoint_threshold": _CHECKPOINT_BYTES}
        self._live = duckdb.connect(str(self.path), config=config)
        self._live.execute("SET TimeZone = 'UTC'")
        self._live.execute("SET preserve_insertion_order = true")
        self.state: StreamState | None = None
        if self._has_tables():
            said = self._live.execute("SELECT said FROM state").fetchone()
            self.state = None if said is None else StreamState.from_json(said[0])
        self._obsolete: set[str] = set()
        self._sent = 0
        if self.state is not None:
            # Only what is in the file itself stays whatever becomes of the write-ahead log.
            self._live.execute("CHECKPOINT")
            self._obsolete = {path.name for path in (self.folder / _ROWS).iterdir()} - set(self.state.row_files)
            self._remove_obsolete()

    def __enter__(self) -> LiveStore:
        """Returns itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Closes the file."""
        self._live.close()

    def row_path(self, name: str) -> Path:
        """Where a file of open rows lies."""
        return self.folder / _ROWS / name

    def row_paths(self) -> tuple[Path, ...]:
        """The files of open rows."""
        return () if self.state is None else tuple(map(self.row_path, sorted(self.state.row_files)))

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for another thread."""
        return self._live.cursor()

    def begin(self, state: StreamState, tables: Mapping[str, pa.Table]) -> None:
        """Makes the store anew, of what a published result says.

        Args:
          state: what the first cycle begins with; its files of open rows are there.
          tables: rows of some of the tables.
        """
        with self._transaction() as live:
            for name, schema in LIVE_TABLES.items():
                live.execute(f"DROP TABLE IF EXISTS {name}")
                live.register("rows", tables.get(name, schema.empty_table()).select(schema.names).cast(schema))
                live.execute(f"CREATE TABLE {name} AS SELECT * FROM rows")
                live.unregister("rows")
            self._save(state)
        self.checkpoint()

    def commit(self, result: CycleResult) -> None:
        """Makes one cycle true, whole or not at all.

        Raises:
          UserError: the disk is full; nothing has changed.
        """
        cycle = result.state.cycle
        with self._transaction() as live:
            live.register("made", result.windows)
            for name, rows in (("kpi_statistics", result.kpi_statistics), ("kpis", result.kpis)):
                live.execute(f"DELETE FROM {name} AS t USING made AS r WHERE {same_key(KPI_STATISTICS)}")
                self._insert(name, rows)
            live.unregister("made")
            self._insert("touched_windows", result.windows, cycle=cycle)
            for spec, (removed, added) in result.facts.items():
                self._insert(CHANGES[spec], removed, cycle=cycle, is_added=False)
                self._insert(CHANGES[spec], added, cycle=cycle, is_added=True)
            for rows, is_added in zip(result.letters, (False, True), strict=True):
                self._insert("letter_changes", rows, cycle=cycle, is_added=is_added)
            self._insert("late_events", result.late_events, cycle=cycle)
            live.execute("INSERT INTO cycles VALUES (?, ?)", [cycle, result.counts])
            self._replace_keys(result)
            self._insert_contacts(result.contacts)
            live.execute("DELETE FROM outbox WHERE cycle <= ?", [self._sent])
            if result.messages:
                keys, texts = zip(*result.messages, strict=True)
                self._insert(
                    "outbox", pa.table({"message_key": keys, "message": pa.array(texts, pa.string())}), cycle=cycle
                )
            self._save(result.state)

    def has_pending(self) -> bool:
        """Whether there is anything that no published result has."""
        return self._live.execute("SELECT count(*) FROM cycles").fetchone() != (0,)

    def forget_pending(self, cycle: int) -> None:
        """Forgets what is pending up to a cycle: a published result has it."""
        with self._transaction() as live:
            for name in PENDING:
                live.execute(f"DELETE FROM {name} WHERE cycle <= ?", [cycle])

    def sent(self, cycle: int) -> None:
        """Lets the next commit forget the messages of the cycles up to one: they have arrived."""
        self._sent = cycle

    def messages(self) -> list[tuple[str, str | None]]:
        """Key and JSON of what has still to go out, in order."""
        waiting = "SELECT message_key, message FROM outbox WHERE cycle > ? ORDER BY rowid"
        return self._live.execute(waiting, [self._sent]).fetchall()

    def forget_keys(self, hashes: Hashes, moment: int) -> None:
        """Forgets keys that had ended at a moment and have not been looked at again since."""
        if len(hashes):
            with self._transaction() as live:
                live.register("gone", pa.table({"key_hash": hashes}))
                live.execute(
                    "DELETE FROM keys AS t USING gone AS r WHERE t.key_hash = r.key_hash AND ends_at < ?", [moment]
                )
                live.unregister("gone")

    def checkpoint(self) -> None:
        """Writes everything into the file itself, and removes files of open rows that nothing names any more."""
        with said_clearly(self.path):
            self._live.execute("CHECKPOINT")
        self._remove_obsolete()

    def woken(self, moment: int) -> Hashes:
        """Hashes of the keys whose wake a moment has reached."""
        with self.cursor() as live:
            found = live.execute("SELECT key_hash FROM keys WHERE wake_at <= ?", [moment]).fetchnumpy()
        return np.unique(found["key_hash"])

    def next_wake(self) -> int | None:
        """The earliest wake, microseconds."""
        found = self._live.execute("SELECT min(wake_at) FROM keys").fetchone()
        return None if found is None else found[0]

    def statistics(self, windows: Mapping[str, list[int]]) -> pa.Table:
        """Rows of kpi_statistics of some windows: by grain, window_start in seconds since the epoch."""
        chosen = " OR ".join(
            f"(grain = '{grain}' AND epoch_us(window_start) IN ({', '.join(str(s * 1_000_000) for s in starts)}))"
            for grain, starts in windows.items()
            if starts
        )
        with self.cursor() as live:
            live.execute("SET TimeZone = 'UTC'")
            rows = live.sql(f"SELECT * FROM kpi_statistics WHERE {chosen or 'false'}").to_arrow_table()
        return rows.cast(KPI_STATISTICS.schema)

    def keys_of_customers(self, customers: pa.Table) -> Hashes:
        """Hashes of the keys of all conversations with some customers (account_id, customer_id)."""
        with self.cursor() as live:
            live.register("wanted", customers)
            found = live.execute(
                "SELECT DISTINCT c.key_hash FROM contacts AS c JOIN wanted AS w "
                "ON c.customer_id = w.customer_id AND c.account_id IS NOT DISTINCT FROM w.account_id"
            ).fetchnumpy()
        return np.unique(found["key_hash"])

    def ended_keys(self, moment: int) -> Hashes:
        """Hashes of the keys that no event from a moment on can join, ascending."""
        with self.cursor() as live:
            found = live.execute("SELECT key_hash FROM keys WHERE ends_at < ?", [moment]).fetchnumpy()
        return np.unique(found["key_hash"])

    def _remove_obsolete(self) -> None:
        for name in self._obsolete:
            self.row_path(name).unlink(missing_ok=True)
        self._obsolete.clear()

    def _has_tables(self) -> bool:
        found = {name for (name,) in self._live.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        return found >= set(LIVE_TABLES)

    def _insert(self, name: str, rows: pa.Table, **more: int | bool) -> None:
        """Adds rows to a table, with the same value in the columns that they do not have."""
        if not rows.num_rows:
            return
        schema = LIVE_TABLES[name]
        for column, value in more.items():
            rows = rows.append_column(column, pa.repeat(pa.scalar(value), rows.num_rows))
        self._live.register("rows", rows.select(schema.names).cast(schema))
        self._live.execute(f"INSERT INTO {name} SELECT * FROM rows")
        self._live.unregister("rows")

    def _insert_contacts(self, contacts: pa.Table) -> None:
        if contacts.num_rows:
            self._live.register("rows", contacts)
            self._live.execute(
                "INSERT INTO contacts SELECT account_id, customer_id, key_hash FROM rows AS r WHERE NOT EXISTS (FROM "
                "contacts AS t WHERE t.key_hash = r.key_hash AND t.customer_id = r.customer_id "
                "AND t.account_id IS NOT DISTINCT FROM r.account_id)"
            )
            self._live.unregister("rows")

    def _replace_keys(self, result: CycleResult) -> None:
        hashes, ends = result.ends
        at = np.full(len(hashes), np.iinfo(np.int64).max)
        place = np.searchsorted(hashes, result.wakes["key_hash"])
        np.minimum.at(at, place, result.wakes["at"])
        self._live.register("looked_at", pa.table({"key_hash": result.looked_at}))
        self._live.execute("DELETE FROM keys AS t USING looked_at AS r WHERE t.key_hash = r.key_hash")
        self._live.unregister("looked_at")
        wakes = pa.array(at, mask=at == np.iinfo(np.int64).max)
        self._insert("keys", pa.table({"key_hash": hashes, "wake_at": wakes, "ends_at": ends}))

    def _save(self, state: StreamState) -> None:
        self._live.execute("DELETE FROM state")
        self._live.execute("INSERT INTO state VALUES (?)", [state.to_json()])
        self._saved = state

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction; what it saves as state is the state once it has ended well."""
        self._saved = self.state
        with said_clearly(self.path):
            self._live.begin()
            try:
                yield self._live
                self._live.commit()
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    self._live.rollback()
                raise
        if self.state is not None and self._saved is not None:
            self._obsolete |= self.state.row_files.keys() - self._saved.row_files.keys()
        self.state = self._saved


def sync_file(path: Path) -> None:
    """Forces a file to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
