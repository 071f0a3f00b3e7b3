"""What a stream has committed since its last publish: one file a cycle, complete and on disk before the commit.

A file holds one Arrow stream after another, one for each table of PENDING_TABLES. Nobody writes to it again, so that
another process can read it while cycles go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines.stream.live_tables import CycleResult
from sinks.growing import same_key
from sinks.manifest import sync
from sinks.parquet import writing
from sinks.revisions import UNREVISED
from transforms.kpis import WINDOW_KEY
from transforms.tables import CONVERSATIONS, DEAD_LETTERS, KPI_STATISTICS, LATE_EVENTS, TURNS, Table

_IS_ADDED = pa.field("is_added", pa.bool_(), False)
_KEY_HASH = pa.field("key_hash", pa.uint64(), False)

PENDING_TABLES: Mapping[str, pa.Schema] = {
    "windows": WINDOW_KEY,
    "kpis": UNREVISED.schema.remove_metadata(),
    "kpi_statistics": KPI_STATISTICS.schema.remove_metadata(),
    "conversations": pa.schema([*CONVERSATIONS.schema, _KEY_HASH, _IS_ADDED]),
    "turns": pa.schema([*TURNS.schema, _KEY_HASH, _IS_ADDED]),
    "dead_letters": pa.schema([*DEAD_LETTERS.schema, _IS_ADDED]),
    "late_events": LATE_EVENTS.schema.remove_metadata(),
    "counts": pa.schema([pa.field("counts", pa.string(), False)]),
}
"""The windows that were made anew, with their rows as they are then; what goes and comes; and counts, as JSON."""

Change = tuple[pa.Table, pa.Table]
"""The rows that go and the rows that come."""


def save_pending(result: CycleResult, path: Path) -> None:
    """Writes what one cycle changes in a published result, and forces it to disk.

    Args:
      result: of the cycle.
      path: the file; of the same name may only be one that no commit has named.

    Raises:
      UserError: the disk is full or not writable.
    """
    changes = {spec.name: result.facts[spec] for spec in (CONVERSATIONS, TURNS)} | {"dead_letters": result.letters}
    tables = {
        "windows": result.windows,
        "kpis": result.kpis,
        "kpi_statistics": result.kpi_statistics,
        "late_events": result.late_events,
        "counts": pa.table({"counts": [result.counts]}),
        **{name: _both(*sides) for name, sides in changes.items()},
    }
    with writing(path):
        with pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), 1 << 20) as sink:
            for name, schema in PENDING_TABLES.items():
                with pa.ipc.new_stream(sink, schema) as writer:
                    writer.write_table(tables[name].select(schema.names).cast(schema))
        sync(path)


def _both(removed: pa.Table, added: pa.Table) -> pa.Table:
    sides = (removed, False), (added, True)
    return pa.concat_tables(
        [rows.append_column(_IS_ADDED, pa.repeat(pa.scalar(is_added), rows.num_rows)) for rows, is_added in sides]
    )


def read_pending(path: Path) -> dict[str, pa.Table]:
    """The tables of a file, by name, mapped into memory."""
    tables = {}
    with pa.memory_map(str(path)) as source:
        for name in PENDING_TABLES:
            with pa.ipc.open_stream(source) as reader:
                tables[name] = reader.read_all()
    return tables


@dataclass(frozen=True)
class NetChange:
    """What some cycles come to, all taken together.

    Attributes:
      facts: rows of CONVERSATIONS and TURNS that go and that come (with key_hash).
      letters: rows of DEAD_LETTERS, likewise.
      windows: keys of the windows that were made anew or have become empty, each once.
      kpis: their rows, without the commit's columns.
      kpi_statistics: the same of KPI_STATISTICS.
      late_events: rows of LATE_EVENTS.
      counts: of each cycle, as JSON, in their order.
    """

    facts: Mapping[Table, Change]
    letters: Change
    windows: pa.Table
    kpis: pa.Table
    kpi_statistics: pa.Table
    late_events: pa.Table
    counts: Sequence[str]


def net_change(paths: Sequence[Path]) -> NetChange:
    """Reads what is pending.

    Args:
      paths: of the files, in the order of their cycles.
    """
    parts: dict[str, list[pa.Table]] = {name: [] for name in PENDING_TABLES}
    for cycle, path in enumerate(paths):
        for name, rows in read_pending(path).items():
            parts[name].append(rows.append_column("cycle", pa.repeat(pa.scalar(cycle), rows.num_rows)))
    tables = {name: pa.concat_tables(some) for name, some in parts.items()}
    with duckdb.connect(":memory:", config={"threads": 1}) as memory:
        memory.execute("SET TimeZone = 'UTC'")
        for name, rows in tables.items():
            memory.register(name, rows)
        key = ", ".join(WINDOW_KEY.names)
        memory.execute(f"CREATE TABLE touched AS SELECT {key}, max(cycle) AS last FROM windows GROUP BY ALL")
        kpis, statistics = (
            memory.sql(
                f"SELECT {', '.join(f't.{column}' for column in PENDING_TABLES[name].names)} FROM {name} AS t "
                f"JOIN touched AS r ON {same_key(KPI_STATISTICS)} AND t.cycle = r.last"
            )
            .to_arrow_table()
            .cast(PENDING_TABLES[name])
            for name in ("kpis", "kpi_statistics")
        )
        windows = memory.sql(f"SELECT {key} FROM touched").to_arrow_table().cast(WINDOW_KEY)
        facts = {spec: _net(memory, spec, "key_hash") for spec in (CONVERSATIONS, TURNS)}
        letters = _net(memory, DEAD_LETTERS)
    late = tables["late_events"].drop_columns("cycle")
    return NetChange(facts, letters, windows, kpis, statistics, late, tables["counts"]["counts"].to_pylist())


def _net(memory: duckdb.DuckDBPyConnection, spec: Table, *more: str) -> Change:
    """The rows of a table that go and that come, all cycles taken together."""
    columns, key = ", ".join([*spec.schema.names, *more]), ", ".join(spec.key)
    schema = pa.schema([*spec.schema, *(PENDING_TABLES[spec.name].field(column) for column in more)])
    sides = []
    for order, wanted in (("cycle, is_added", "NOT is_added"), ("cycle DESC, is_added DESC", "is_added")):
        # What a row was before all of them, or is after all of them.
        ranked = f"SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY {order}) AS place FROM {spec.name}"
        rows = memory.sql(f"SELECT {columns} FROM ({ranked}) WHERE place = 1 AND {wanted}").to_arrow_table()
        sides.append(rows.cast(schema))
    return sides[0], sides[1]
