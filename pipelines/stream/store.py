"""The live store of a stream: a DuckDB file that each cycle changes in one transaction, and files of open rows.

    OUTPUT/.live/live.duckdb        statistics, keys, and the state (one row of JSON)
    OUTPUT/.live/rows/*.arrow       open rows
    OUTPUT/.live/pending/*.arrows   what each cycle changed since the last publish

Files are complete and on disk before the transaction that names them. One that the state does not name any more is
removed only after a checkpoint: were the write-ahead log cut short, the state of the last one would want it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.stream.live_tables import LIVE_TABLES, CycleResult
from pipelines.stream.pending import read_pending, save_pending
from pipelines.stream.recent import RecentStatistics, Windows
from pipelines.stream.state import StreamState
from sinks.filling import said_clearly
from transforms.hashing import Hashes

LIVE = ".live"
"""Folder of an output folder in which its stream lives."""

_FILE, _ROWS, _PENDING = "live.duckdb", "rows", "pending"
_CHECKPOINT_BYTES = "1GB"
"""Checkpoints are made at moments of our own choice."""

_MEMORY_LIMIT = "1GB"
"""More than the keys of tens of millions of conversations take."""


class LiveStore:
    """The live store of an output folder; a context manager. Its connection belongs to one thread at a time.

    Attributes:
      folder: where it lies.
      state: as of the last commit.
      recent: statistics of the windows that were looked at lately.
    """

    def __init__(self, output: Path) -> None:
        """Opens it; an empty one where there is none yet.

        Raises:
          UserError: the disk is full or not writable.
          duckdb.Error: the file is damaged.
        """
        self.folder = output / LIVE
        for name in (_ROWS, _PENDING):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.path = self.folder / _FILE
        config = {
            "threads": 2,
            "autoinstall_known_extensions": False,
            "checkpoint_threshold": _CHECKPOINT_BYTES,
            "memory_limit": _MEMORY_LIMIT,
        }
        self._live = duckdb.connect(str(self.path), config=config)
        self._live.execute("SET TimeZone = 'UTC'")
        self._live.execute("SET preserve_insertion_order = true")
        self.state: StreamState | None = None
        if self._tables() == set(LIVE_TABLES):
            said = self._live.execute("SELECT said FROM state").fetchone()
            self.state = None if said is None else StreamState.from_json(said[0])
        self._obsolete: set[Path] = set()
        self._sent = 0
        self.recent = RecentStatistics(self.cursor)
        if self.state is not None:
            # Only what is in the file itself stays whatever becomes of the write-ahead log.
            self._live.execute("CHECKPOINT")
            there = {path for name in (_ROWS, _PENDING) for path in (self.folder / name).iterdir()}
            self._obsolete = there - self._files(self.state)
            self._remove_obsolete()
        if self.is_whole():
            for path in self.pending_paths():
                tables = read_pending(path)
                self.recent.change(tables["windows"], tables["kpi_statistics"])

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

    def pending_paths(self) -> tuple[Path, ...]:
        """The files of what is pending, in the order of their cycles."""
        return () if self.state is None else tuple(map(self._pending_path, self.state.pending))

    def is_whole(self) -> bool:
        """Whether there is a state, and every file that it names."""
        return self.state is not None and all(path.is_file() for path in self._files(self.state))

    def _pending_path(self, cycle: int) -> Path:
        return self.folder / _PENDING / f"{cycle:012}.arrows"

    def _files(self, state: StreamState) -> set[Path]:
        return {*map(self.row_path, state.row_files), *map(self._pending_path, state.pending)}

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
            for name in self._tables():
                live.execute(f"DROP TABLE {name}")
            for name, schema in LIVE_TABLES.items():
                live.register("rows", tables.get(name, schema.empty_table()).select(schema.names).cast(schema))
                live.execute(f"CREATE TABLE {name} AS SELECT * FROM rows")
                live.unregister("rows")
            self._save(state)
        self.recent = RecentStatistics(self.cursor)
        self.checkpoint()

    def commit(self, result: CycleResult) -> None:
        """Makes one cycle true, whole or not at all.

        Raises:
          UserError: the disk is full; nothing has changed.
        """
        cycle = result.state.cycle
        save_pending(result, self._pending_path(cycle))
        with self._transaction() as live:
            self._replace_keys(result)
            self._insert_contacts(result.contacts)
            live.execute("DELETE FROM outbox WHERE cycle <= ?", [self._sent])
            if result.messages:
                keys, texts = zip(*result.messages, strict=True)
                number = pa.repeat(pa.scalar(cycle), len(keys))
                self._insert(
                    "outbox", pa.table({"cycle": number, "message_key": keys, "message": pa.array(texts, pa.string())})
                )
            self._save(replace(result.state, pending=(*result.state.pending, cycle)))
        self.recent.change(result.windows, result.kpi_statistics)

    def has_pending(self) -> bool:
        """Whether there is anything that no published result has."""
        return self.state is not None and bool(self.state.pending)

    def forget_pending(self, cycle: int) -> None:
        """Forgets what is pending up to a cycle: a published result has it."""
        assert self.state is not None
        left = tuple(each for each in self.state.pending if each > cycle)
        if left != self.state.pending:
            with self._transaction() as live:
                self.recent.save(live)
                self._save(replace(self.state, pending=left))
            self.recent.settle()

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
        """Writes everything into the file itself, and removes files that nothing names any more."""
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

    def statistics(self, windows: Windows) -> pa.Table:
        """Rows of kpi_statistics of some windows: by grain, window_start in seconds since the epoch."""
        return self.recent.of(windows)

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
        for path in self._obsolete:
            path.unlink(missing_ok=True)
        self._obsolete.clear()

    def _tables(self) -> set[str]:
        return {name for (name,) in self._live.execute("SELECT table_name FROM duckdb_tables()").fetchall()}

    def _insert(self, name: str, rows: pa.Table) -> None:
        """Adds rows to a table."""
        if rows.num_rows:
            schema = LIVE_TABLES[name]
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
            self._obsolete |= self._files(self.state) - self._files(self._saved)
        self.state = self._saved
