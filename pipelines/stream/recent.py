"""Statistics of the windows that cycles look at: in memory, so that a cycle neither asks nor changes DuckDB for them.

The same few windows change in every cycle. Their rows as of the last commit are here; the table in the live store gets
them all at once, whenever what is pending was published. Until then they are in the files of what is pending too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sinks.growing import same_key
from transforms.kpis import WINDOW_KEY
from transforms.tables import KPI_STATISTICS

Windows = Mapping[str, list[int]]
"""By grain, window_start in seconds since the epoch."""

_NO_KEYS = pa.array([], pa.string())


@dataclass(frozen=True)
class Recent:
    """All rows of kpi_statistics of some windows, as of the last commit.

    Attributes:
      rows: the rows.
      windows: names of the windows (grain and window_start in microseconds, as text), also of those without a row.
    """

    rows: pa.Table = field(default_factory=KPI_STATISTICS.schema.empty_table)
    windows: frozenset[str] = frozenset()


class RecentStatistics:
    """Knows the windows that were looked at lately. Whoever asks from another thread takes `now` once.

    Attributes:
      now: what is known.
    """

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        """Takes what gives a connection of its own to the live store."""
        self._cursor = cursor
        self.now = Recent()
        self._looked_at: set[str] = set()
        self._changed = WINDOW_KEY.empty_table()

    def of(self, windows: Windows) -> pa.Table:
        """The rows of some windows, and of others that were looked at lately."""
        names = {_name(grain, start): (grain, start) for grain, starts in windows.items() for start in starts}
        self._looked_at |= names.keys()
        unknown: dict[str, list[int]] = {}
        for name in names.keys() - self.now.windows:
            grain, start = names[name]
            unknown.setdefault(grain, []).append(start)
        if unknown:
            rows = pa.concat_tables([self.now.rows, self._read(unknown)]).combine_chunks()
            self.now = Recent(rows, self.now.windows | names.keys())
        return self.now.rows

    def change(self, windows: pa.Table, rows: pa.Table) -> None:
        """Takes what was committed.

        Args:
          windows: keys of the windows that were made anew or have become empty.
          rows: their rows.
        """
        if not windows.num_rows:
            return
        touched: dict[str, list[int]] = {}
        starts = windows["window_start"].cast(pa.int64()).to_pylist()
        for grain, start in set(zip(windows["grain"].to_pylist(), starts, strict=True)):
            touched.setdefault(grain, []).append(start // 1_000_000)
        self.of(touched)
        known = self.now.rows
        stays = known.filter(pc.invert(pc.is_in(_keys_of(known), _keys_of(windows))))
        self.now = Recent(pa.concat_tables([stays, rows.cast(known.schema)]).combine_chunks(), self.now.windows)
        new = windows.filter(pc.invert(pc.is_in(_keys_of(windows), _keys_of(self._changed))))
        self._changed = pa.concat_tables([self._changed, new.cast(WINDOW_KEY)]).combine_chunks()

    def all_rows(self, live: duckdb.DuckDBPyConnection) -> str:
        """SQL that gives all rows of kpi_statistics in a connection, of another thread too, until it is asked again."""
        # (Taken before the query begins: what has gone from here since is in the table.)
        recent = self.now
        live.register("recent_rows", recent.rows)
        live.register("recent_windows", pa.table({"name": pa.array(list(recent.windows), pa.string())}))
        others = "concat(grain, ' ', epoch_us(window_start)) NOT IN (FROM recent_windows)"
        return f"(SELECT * FROM kpi_statistics WHERE {others} UNION ALL FROM recent_rows)"

    def save(self, live: duckdb.DuckDBPyConnection) -> None:
        """Puts into the table what it does not have yet, in a transaction that is under way."""
        rows = self.now.rows
        live.register("changed_keys", self._changed)
        live.register("changed_rows", rows.filter(pc.is_in(_keys_of(rows), _keys_of(self._changed))))
        live.execute(f"DELETE FROM kpi_statistics AS t USING changed_keys AS r WHERE {same_key(KPI_STATISTICS)}")
        live.execute("INSERT INTO kpi_statistics SELECT * FROM changed_rows")
        live.unregister("changed_rows")
        live.unregister("changed_keys")

    def settle(self) -> None:
        """What was saved is committed: forgets windows that nobody has looked at since the last time."""
        windows = self.now.windows & self._looked_at
        rows = self.now.rows
        stays = pc.is_in(_windows_of(rows), pa.array(list(windows), pa.string()))
        self.now = Recent(rows.filter(stays).combine_chunks(), windows)
        self._looked_at, self._changed = set(), WINDOW_KEY.empty_table()

    def _read(self, windows: Windows) -> pa.Table:
        """Rows of some windows that the table has."""
        chosen, moments = [], [start * 1_000_000 for starts in windows.values() for start in starts]
        for grain, starts in windows.items():
            listed = ", ".join(str(start * 1_000_000) for start in starts)
            chosen.append(f"(grain = '{grain}' AND epoch_us(window_start) IN ({listed}))")
        # Whole parts of the table are passed over by their least and latest window_start.
        within = "window_start BETWEEN make_timestamptz(?) AND make_timestamptz(?)"
        query = f"SELECT * FROM kpi_statistics WHERE {within} AND ({' OR '.join(chosen)})"
        with self._cursor() as live:
            live.execute("SET TimeZone = 'UTC'")
            rows = live.sql(query, params=[min(moments), max(moments)]).to_arrow_table()
        return rows.cast(KPI_STATISTICS.schema)


def _name(grain: str, start: int) -> str:
    return f"{grain} {start * 1_000_000}"


def _windows_of(rows: pa.Table) -> pa.Array:
    """The name of the window of each row."""
    return _joined([rows["grain"], _moments(rows)], " ")


def _keys_of(rows: pa.Table) -> pa.Array:
    """The whole key of each row, as text."""
    return _joined([_moments(rows) if name == "window_start" else rows[name] for name in WINDOW_KEY.names], "\x1f")


def _moments(rows: pa.Table) -> pa.ChunkedArray:
    return rows["window_start"].cast(pa.int64()).cast(pa.string())


def _joined(columns: list[pa.ChunkedArray], separator: str) -> pa.Array:
    if not len(columns[0]):
        return _NO_KEYS
    text = [column.cast(pa.string()) for column in columns]
    joined = pc.binary_join_element_wise(*text, separator, null_handling="replace", null_replacement="\x00")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
