"""What change files change in a result: of every key, and of every window, the highest version stands.

A change tells of a key, with a version, everything that begins in a span of time. So a row stands where no higher
version of its key has its beginning in its span, in whatever order changes come, and however often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from sinks.catalog import name_of
from sinks.parquet import conform
from sinks.sql import sql_text
from transforms.changes import changed_rows
from transforms.key_changes import KEYS_KIND, LETTERS_KIND, WINDOWS_KIND
from transforms.restating import KEYS
from transforms.tables import CONVERSATIONS, DEAD_LETTERS, KPI_STATISTICS, LATE_EVENTS, TURNS, Table
from transforms.window_groups import WINDOWS

KNOWN_KEYS = KEYS.append(pa.field("conversation_key", pa.string()))
"""What is remembered of keys: the versions that say something, and the name once a conversation of it was there."""

KNOWN_LETTERS = pa.schema(
    [("key_hash", pa.uint64()), ("occurred_at", pa.int64()), *DEAD_LETTERS.schema.remove_metadata()]
)
"""Conflicting duplicates that stand, with their keys and times."""

KNOWN_WINDOWS = pa.schema([WINDOWS.field(name) for name in (*KPI_STATISTICS.key, "row_count", "effect_count")])
"""Versions of the windows."""

PROGRESS = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("next_offset", pa.int64()),
        ("rows_read", pa.int64()),
        ("watermark", pa.int64()),
    ]
)
"""How far the source had come when it wrote: the first offset not read, the rows before it, and the watermark."""

PROGRESS_KIND = "progress"

_HIGHER = "({0}.row_count > {1}.row_count OR ({0}.row_count = {1}.row_count AND {0}.effect_count > {1}.effect_count))"
_COUNTS = ("kept_count", "exact_duplicate_count", "stray_count")


@dataclass(frozen=True)
class Known:
    """What is remembered of the changes that were merged: KNOWN_KEYS, KNOWN_LETTERS, KNOWN_WINDOWS and PROGRESS."""

    keys: pa.Table
    letters: pa.Table
    windows: pa.Table
    progress: pa.Table

    @staticmethod
    def nothing() -> Known:
        """Before the first change."""
        return Known(*(kind.empty_table() for kind in (KNOWN_KEYS, KNOWN_LETTERS, KNOWN_WINDOWS, PROGRESS)))


@dataclass(frozen=True)
class Merged:
    """What changes change.

    Attributes:
      known: what is remembered from now on.
      facts: rows of CONVERSATIONS and TURNS that go and that come, with key_hash.
      letters: rows of DEAD_LETTERS that go and that come.
      late: rows of LATE_EVENTS that come.
      windows: schema WINDOWS; the windows that changed, with their statistics.
      counts: by how much the sums of KEYS grow.
    """

    known: Known
    facts: Mapping[Table, tuple[pa.Table, pa.Table]]
    letters: tuple[pa.Table, pa.Table]
    late: pa.Table
    windows: pa.Table
    counts: Mapping[str, int]


def merge_changes(known: Known, changes: Mapping[str, Sequence[pa.Table]], warehouse: Path | None) -> Merged:
    """Finds out what changes change.

    Args:
      known: what is remembered of those before.
      changes: by kind, the tables of each change.
      warehouse: DuckDB file of the result so far; None: there is none.
    """
    with duckdb.connect(config={"threads": 2, "autoinstall_known_extensions": False}) as db:
        db.execute("SET TimeZone = 'UTC'")
        if warehouse is not None:
            db.execute(f"ATTACH {sql_text(str(warehouse))} AS result (READ_ONLY)")
        merging = _Merging(db, changes, warehouse is not None)
        counts, keys = merging.keys(known.keys)
        facts = {spec: merging.facts(spec) for spec in (CONVERSATIONS, TURNS)}
        letters, known_letters = merging.pair_letters(known.letters)
        parsed = merging.rows_of_places(DEAD_LETTERS)
        windows, versions = merging.windows(known.windows)
        return Merged(
            Known(keys, known_letters, versions, merging.progress(known.progress)),
            facts,
            (letters[0], pa.concat_tables([letters[1], parsed])),
            merging.rows_of_places(LATE_EVENTS),
            windows,
            counts,
        )


class _Merging:
    """The steps, on tables of a database in memory."""

    def __init__(self, db: duckdb.DuckDBPyConnection, changes: Mapping[str, Sequence[pa.Table]], grows: bool) -> None:
        self._db, self._changes, self._grows = db, changes, grows

    def _new(self, name: str, kind: str, schema: pa.Schema) -> None:
        """Makes a table of the rows of a kind; `part` is the change that they came with."""
        parts = [schema.empty_table().append_column("part", pa.nulls(0, pa.int64()))]
        for number, table in enumerate(self._changes.get(kind, ())):
            plain = table.select(schema.names).cast(schema)
            parts.append(plain.append_column("part", pa.array(np.full(table.num_rows, number))))
        self._db.register("arrived", pa.concat_tables(parts))
        self._db.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM arrived")
        self._db.unregister("arrived")

    def _old(self, name: str, rows: pa.Table) -> None:
        self._db.register("arrived", rows)
        self._db.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM arrived")
        self._db.unregister("arrived")

    def _rows(self, query: str, schema: pa.Schema) -> pa.Table:
        return self._db.sql(query).to_arrow_table().select(schema.names).cast(schema)

    def keys(self, known: pa.Table) -> tuple[dict[str, int], pa.Table]:
        """Puts the versions of keys together, as `heads`; gives by how much their sums grow, and what is known now."""
        self._new("new_keys", KEYS_KIND, KEYS)
        self._new("new_conversations", CONVERSATIONS.name, _versioned(CONVERSATIONS))
        self._old("old_keys", known)
        names = ", ".join(KEYS.names)
        self._db.execute(
            f"""CREATE TEMP TABLE heads AS
            SELECT {names}, bool_or(is_old) AS is_old FROM (
              SELECT {names}, true AS is_old FROM old_keys WHERE key_hash IN (SELECT key_hash FROM new_keys)
              UNION ALL SELECT {names}, false FROM new_keys
            ) GROUP BY ALL"""
        )
        self._db.execute(
            """CREATE TEMP TABLE names AS
            SELECT key_hash, any_value(conversation_key) AS conversation_key FROM (
              SELECT key_hash, conversation_key FROM old_keys WHERE key_hash IN (SELECT key_hash FROM new_keys)
              UNION ALL SELECT key_hash, conversation_key FROM new_conversations
            ) WHERE conversation_key IS NOT NULL GROUP BY key_hash"""
        )
        self._db.execute(
            f"""CREATE TEMP TABLE standing_heads AS
            SELECT DISTINCT ON (key_hash, row_count, effect_count) {names} FROM heads AS h WHERE NOT EXISTS (
              FROM heads AS o WHERE o.key_hash = h.key_hash AND {_HIGHER.format("o", "h")}
                AND o.begins_at <= h.begins_at AND o.ends_at >= h.ends_at
            ) ORDER BY key_hash, row_count, effect_count, begins_at"""
        )
        sums = ", ".join(f"coalesce(sum({name}), 0)::BIGINT" for name in _COUNTS)
        now = self._db.sql(f"SELECT {sums} FROM standing_heads").fetchall()[0]
        was = self._db.sql(f"SELECT {sums} FROM old_keys WHERE key_hash IN (SELECT key_hash FROM new_keys)").fetchall()[
            0
        ]
        after = self._rows(
            f"""SELECT {names}, conversation_key FROM old_keys WHERE key_hash NOT IN (SELECT key_hash FROM new_keys)
            UNION ALL BY NAME
            SELECT s.*, n.conversation_key FROM standing_heads AS s LEFT JOIN names AS n USING (key_hash)
            ORDER BY key_hash, row_count, effect_count""",
            KNOWN_KEYS,
        )
        return {name: b - a for name, a, b in zip(_COUNTS, was, now, strict=True)}, after

    def facts(self, spec: Table) -> tuple[pa.Table, pa.Table]:
        """The rows of a table that go and that come."""
        if spec != CONVERSATIONS:
            self._new(f"new_{spec.name}", spec.name, _versioned(spec))
        columns, key = ", ".join(spec.schema.names), ", ".join(spec.key)
        old = f"SELECT NULL::UBIGINT AS key_hash, {columns} FROM new_{spec.name} WHERE false"
        if self._grows:
            old = f"SELECT n.key_hash, r.* FROM result.{name_of(spec)} AS r JOIN names AS n USING (conversation_key)"
        self._db.execute(
            f"""CREATE TEMP TABLE old_{spec.name} AS
            SELECT r.*, {_is_beaten("epoch_us(r.started_at)")} AS is_beaten FROM ({old}) AS r"""
        )
        schema = pa.schema([("key_hash", pa.uint64()), *spec.schema.remove_metadata()])
        removed = self._rows(f"SELECT key_hash, {columns} FROM old_{spec.name} WHERE is_beaten", schema)
        added = self._rows(
            f"""SELECT key_hash, {columns} FROM new_{spec.name} AS r
            WHERE {_stands("epoch_us(r.started_at)")}
            AND ({key}) NOT IN (SELECT ({key}) FROM old_{spec.name} WHERE NOT is_beaten)
            QUALIFY row_number() OVER (PARTITION BY {key}) = 1 ORDER BY started_at, conversation_key, {key}""",
            schema,
        )
        gone, come = changed_rows(removed, added, spec.key)
        return removed.take(pa.array(gone)), added.take(pa.array(come))

    def pair_letters(self, known: pa.Table) -> tuple[tuple[pa.Table, pa.Table], pa.Table]:
        """Conflicting duplicates that go and that come, and those that stand."""
        versions = [("row_count", pa.int64()), ("effect_count", pa.int64())]
        self._new("new_letters", LETTERS_KIND, pa.schema([*KNOWN_LETTERS, *versions]))
        self._old("old_letters", known)
        names = ", ".join(KNOWN_LETTERS.names)
        # Where the same version was written twice, each of its rows came twice.
        after = self._rows(
            f"""SELECT {names} FROM (SELECT DISTINCT {names}, copy FROM (
              SELECT {names}, row_number() OVER (PARTITION BY {names}) AS copy
              FROM old_letters AS r WHERE NOT {_is_beaten("r.occurred_at")}
              UNION ALL SELECT {names}, row_number() OVER (PARTITION BY part, {names}, row_count, effect_count)
              FROM new_letters AS r WHERE {_stands("r.occurred_at")}))""",
            KNOWN_LETTERS,
        )
        self._old("letters_now", after)
        sides = [
            self._rows(f"SELECT {names} FROM {a} EXCEPT ALL SELECT {names} FROM {b}", KNOWN_LETTERS)
            for a, b in (("old_letters", "letters_now"), ("letters_now", "old_letters"))
        ]
        removed, added = (conform(side.select(DEAD_LETTERS.schema.names), DEAD_LETTERS) for side in sides)
        return (removed, added), after

    def rows_of_places(self, spec: Table) -> pa.Table:
        """Rows of DEAD_LETTERS or LATE_EVENTS that are not in the result yet; one place may have several."""
        names = ", ".join(spec.schema.names)
        self._new(f"new_{spec.name}_rows", spec.name, spec.schema.remove_metadata())
        numbered = f"SELECT {names}, row_number() OVER (PARTITION BY part, {names}) AS copy FROM new_{spec.name}_rows"
        query = f"SELECT {names} FROM (SELECT DISTINCT {names}, copy FROM ({numbered}))"
        if self._grows:
            query += f" EXCEPT ALL SELECT {names} FROM result.{name_of(spec)}"
        return conform(self._rows(query, spec.schema.remove_metadata()), spec)

    def windows(self, known: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The windows that changed, and the versions of all."""
        self._new("new_windows", WINDOWS_KIND, WINDOWS)
        self._old("old_windows", known)
        key, names = ", ".join(KPI_STATISTICS.key), ", ".join(KNOWN_WINDOWS.names)
        same = " AND ".join(f"o.{name} IS NOT DISTINCT FROM w.{name}" for name in KPI_STATISTICS.key)
        self._db.execute(
            f"""CREATE TEMP TABLE windows_now AS SELECT * FROM new_windows AS w
            QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY row_count DESC, effect_count DESC) = 1"""
        )
        self._db.execute(
            f"""DELETE FROM windows_now AS w USING old_windows AS o
            WHERE {same} AND NOT {_HIGHER.format("w", "o")}"""
        )
        versions = self._rows(
            f"""SELECT {names} FROM windows_now UNION ALL
            SELECT {names} FROM old_windows AS w WHERE NOT EXISTS (FROM windows_now AS o WHERE {same})""",
            KNOWN_WINDOWS,
        )
        return self._rows(f"SELECT {', '.join(WINDOWS.names)} FROM windows_now", WINDOWS), versions

    def progress(self, known: pa.Table) -> pa.Table:
        """How far each partition was read."""
        self._new("new_progress", PROGRESS_KIND, PROGRESS)
        self._old("old_progress", known)
        return self._rows(
            """SELECT topic, partition, max(next_offset) AS next_offset, max(rows_read) AS rows_read,
              max(watermark) AS watermark
            FROM (FROM old_progress UNION ALL BY NAME SELECT * EXCLUDE (part) FROM new_progress)
            GROUP BY ALL ORDER BY ALL""",
            PROGRESS,
        )


def _versioned(spec: Table) -> pa.Schema:
    return pa.schema(
        [
            *spec.schema.remove_metadata(),
            ("key_hash", pa.uint64()),
            ("row_count", pa.int64()),
            ("effect_count", pa.int64()),
        ]
    )


def _stands(at: str) -> str:
    """SQL: no higher version of its key speaks of where row r begins."""
    return f"""NOT EXISTS (FROM heads AS h WHERE h.key_hash = r.key_hash
        AND {at} BETWEEN h.begins_at AND h.ends_at AND {_HIGHER.format("h", "r")})"""


def _is_beaten(at: str) -> str:
    """SQL: a version higher than all those before speaks of where row r, which stood, begins."""
    within = f"h.key_hash = r.key_hash AND {at} BETWEEN h.begins_at AND h.ends_at"
    return f"""EXISTS (FROM heads AS h WHERE NOT h.is_old AND {within} AND NOT EXISTS (
        FROM heads AS o WHERE o.is_old AND o.key_hash = r.key_hash AND {at} BETWEEN o.begins_at AND o.ends_at
        AND NOT {_HIGHER.format("h", "o")}))"""
