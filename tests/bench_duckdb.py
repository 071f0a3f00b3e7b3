"""The yardstick of the batch bench: the same published tables, made by hand-written DuckDB SQL alone.

The SQL is in the folder bench_duckdb, in the order of the file names; this module sets the variables that it reads and
runs it. All rules of the contract that generated data touches are in it, with the contract's default settings and
split_threads per channel. The output is what the batch run publishes: Parquet files by month in order of time, a
DuckDB file with the same tables, constraints and comments, all forced to disk. Left out: repeat_contact,
infer_resolution, other limits per channel, zones that are not whole hours off; input other than Parquet with the
contract's types; views, macros and the table of windows behind them; the manifest with its checksums.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "bench_duckdb"
SPLIT_CHANNELS = ("whatsapp", "facebook")
TIMEZONE = "Europe/Berlin"
TABLES = ("conversations", "turns", "kpi_statistics", "kpis")
MONTHS = {name: "window_start" if name.startswith("kpi") else "started_at" for name in TABLES}
"""Tables with a folder a UTC month, and the column whose month it is."""
WHOLE = ("dead_letters", "late_events", "kpi_changes", "kpi_definitions", "runs")
"""Tables in one file; two of them have no rows in a batch run."""

_HOUR = 3_600_000_000
_VARIABLES = {"gap": 24 * _HOUR, "max_idle": 30 * 24 * _HOUR, "max_open": 365 * 24 * _HOUR}
_CELL_VARIABLES = """
SET VARIABLE as_of = (SELECT max(o) >> 4 FROM events);
SET VARIABLE first_hour = (SELECT (min(o) >> 4) // 3600000000 FROM events);
SET VARIABLE account_count = len(enum_range(NULL::account_word)) + 1;
SET VARIABLE channel_count = len(enum_range(NULL::channel_word));
SET VARIABLE cells_an_hour = (getvariable('account_count') * getvariable('channel_count') * 2)::INTEGER;
"""
_PARQUET = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 1000"
_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
}
"""DuckDB's words for Arrow types; what is not here is a histogram."""


class _Script:
    """Runs SQL files on connections to one database and notes how long each statement took."""

    def __init__(self, threads: int, memory_limit: str, spill: Path, inputs: Sequence[str]) -> None:
        self.steps: dict[str, float] = {}
        self._inputs = list(inputs)
        self._main = duckdb.connect(
            config={"threads": threads, "memory_limit": memory_limit, "temp_directory": str(spill)}
        )
        # Tables in memory that are checkpointed are compressed, which costs a fifth of the whole run for nothing.
        self._main.execute("SET checkpoint_threshold = '1TB'")
        # Cells and their groups are small whole numbers: up to 2 ** 20 of them go into an array and no hash table.
        self._main.execute("SET perfect_ht_threshold = 20")

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own, for one thread; variables belong to a connection."""
        connection = self._main.cursor()
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET VARIABLE inputs = ?", [self._inputs])
        connection.execute("SET VARIABLE split_channels = ?", [list(SPLIT_CHANNELS)])
        connection.execute("SET VARIABLE timezone = ?", [TIMEZONE])
        for name, value in _VARIABLES.items():
            connection.execute(f"SET VARIABLE {name} = {value}")
        return connection

    def run(self, connection: duckdb.DuckDBPyConnection, *parts: str) -> None:
        """Runs SQL files (by name) and statements, one after another."""
        for part in parts:
            text = (FOLDER / part).read_text("utf-8") if part.endswith(".sql") else part
            for statement in duckdb.extract_statements(text):
                started = time.perf_counter()
                connection.execute(statement).fetchall()
                name = _name_of(statement.query)
                self.steps[name] = self.steps.get(name, 0.0) + time.perf_counter() - started

    def close(self) -> None:
        """Lets go of everything in memory."""
        self._main.close()


def _name_of(statement: str) -> str:
    """What a statement does: `create care.turns`, `insert care.turns`, `copy care.turns`, `update events`."""
    words = next(line for line in statement.strip().splitlines() if line and not line.startswith("--")).split()
    if words[0] == "CREATE":
        return f"create {words[2]}"
    published = [word for word in words if word.startswith("care.") and words[0] != "COMMENT"]
    return " ".join([words[0].lower(), *(published or words[1:])[:1]])


def _tables() -> str:
    """SQL that makes the tables without rows, each table and column with its comment.

    In one transaction: each of the hundreds of comments would otherwise be a commit of its own.
    """
    from transforms.tables import TABLES as SPECS

    statements = ["BEGIN TRANSACTION"]
    for spec in SPECS:
        rows = [
            f"{c.name} {_TYPES.get(str(c.type), 'STRUCT(bucket SMALLINT, count INTEGER)[]')}"
            f"{'' if c.nullable else ' NOT NULL'}"
            for c in spec.columns
        ]
        if spec.name in ("kpi_definitions", "runs"):
            rows.append(f"PRIMARY KEY ({', '.join(spec.key)})")
        statements.append(f"CREATE TABLE care.{spec.name} ({', '.join(rows)})")
        statements.append(f"COMMENT ON TABLE care.{spec.name} IS {_text(spec.grain)}")
        statements += [f"COMMENT ON COLUMN care.{spec.name}.{c.name} IS {_text(c.description)}" for c in spec.columns]
    return ";\n".join([*statements, "COMMIT"])


def _text(value: str) -> str:
    """A text literal."""
    return "'" + value.replace("'", "''") + "'"


def _about() -> dict[str, object]:
    """What kpi_definitions and runs tell that is not in the events: variables of 9_runs.sql."""
    from pipelines.options import package_version
    from pipelines.settings import settings_record
    from transforms.definitions import KPIS
    from transforms.settings import ChannelSettings, Settings
    from transforms.tables import KPI_DEFINITIONS

    names = KPI_DEFINITIONS.schema.names
    channels = {channel: ChannelSettings(split_threads=True) for channel in SPLIT_CHANNELS}
    return {
        "definitions": [{name: value for name, value in asdict(kpi).items() if name in names} for kpi in KPIS],
        "settings": json.dumps(settings_record(Settings(channels=channels, timezone=TIMEZONE))),
        "version": package_version(),
    }


class _Files:
    """Writes tables as Parquet and forces each file to disk beside what comes next."""

    def __init__(self, output: Path, syncs: ThreadPoolExecutor) -> None:
        self._output, self._syncs = output, syncs
        self._pending: list[Future[None]] = []

    def write(self, script: _Script, connection: duckdb.DuckDBPyConnection, *tables: str) -> None:
        """Writes tables: a file a month where they have months, each from the rows in their order, else one file.

        A COPY for each month takes half the CPU of one with PARTITION_BY, which also loses the order.
        """
        for table in tables:
            folder, moment = self._output / table, MONTHS.get(table)
            if moment is None:
                self._write(script, connection, table, folder / "part-0.parquet", "")
                continue
            found = connection.execute(
                f"SELECT DISTINCT strftime({moment}, '%Y-%m') FROM care.{table} ORDER BY 1"
            ).fetchall()
            for month in [row[0] for row in found] or ["1970-01"]:
                path = folder / f"{moment.rsplit('_', 1)[0]}_month={month}" / "part-0.parquet"
                first = f"TIMESTAMPTZ '{month}-01'"
                where = f"WHERE {moment} >= {first} AND {moment} < {first} + INTERVAL 1 MONTH"
                self._write(script, connection, table, path, where)

    def _write(
        self, script: _Script, connection: duckdb.DuckDBPyConnection, table: str, path: Path, where: str
    ) -> None:
        path.parent.mkdir(parents=True)
        script.run(connection, f"COPY (FROM care.{table} {where}) TO '{path}' ({_PARQUET})")
        self._pending.append(self._syncs.submit(_sync, path))

    def finish(self, warehouse: Path) -> None:
        """Forces the DuckDB file and all folders to disk, and waits for the other files."""
        _sync(warehouse)
        for pending in self._pending:
            pending.result()
        for folder, _, _ in os.walk(self._output, topdown=False):
            _sync(Path(folder))


def _sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run_duckdb(
    inputs: list[str], output: Path, threads: int = 2, memory_limit: str = "12GB", is_concurrent: bool = True
) -> dict[str, Any]:
    """Makes the tables that a batch run publishes of event files.

    Args:
      inputs: Parquet files with the input columns of the contract.
      output: folder, made where it is missing; gets care.duckdb, and a folder of Parquet files (zstd, level 1) for each
        table, by month where a batch run has months. What these held before is removed.
      threads: of DuckDB.
      memory_limit: of DuckDB; what does not fit is spilled to a folder below output.
      is_concurrent: whether statements that do not depend on each other run side by side; the streaming windows use one
        thread each.

    Returns:
      seconds, cpu_seconds (user and system), steps (seconds by statement) and counts (rows by what became of them).
    """
    output.mkdir(parents=True, exist_ok=True)
    warehouse = output / "care.duckdb"
    for path in (warehouse, warehouse.with_suffix(".duckdb.wal")):
        path.unlink(missing_ok=True)
    for table in (*MONTHS, *WHOLE):
        shutil.rmtree(output / table, ignore_errors=True)
    before, started = os.times(), time.perf_counter()
    script = _Script(threads, memory_limit, output / "spill", inputs)
    first, second = script.connect(), script.connect()
    second.execute("SET VARIABLE started_at = now()")
    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(2) as syncs:
        files = _Files(output, syncs)

        def side_by_side(*works: Callable[[], None]) -> None:
            if not is_concurrent:
                for work in works:
                    work()
            else:
                for future in [pool.submit(work) for work in works]:
                    future.result()

        def define() -> None:
            script.run(second, _tables())
            for name, value in _about().items():
                second.execute(f"SET VARIABLE {name} = ?", [value])

        script.run(first, f"ATTACH '{warehouse}' AS care")
        side_by_side(lambda: script.run(first, "1_events.sql", "2_starts.sql"), define)
        for connection in (first, second):
            script.run(connection, _CELL_VARIABLES)
        side_by_side(lambda: script.run(first, "3_turns.sql", "4_lives.sql"), lambda: script.run(second, "5_facts.sql"))
        script.run(first, "6_conversations.sql")
        side_by_side(
            lambda: (
                script.run(first, "7_tables.sql"),
                files.write(script, first, "conversations", "turns", *WHOLE[:3]),
            ),
            lambda: (
                script.run(second, "SET VARIABLE committed_at = now()", "8_hours.sql", "9_kpis.sql"),
                files.write(script, second, "kpi_statistics", "kpis"),
            ),
        )
        script.run(second, "9_runs.sql")
        files.write(script, second, *WHOLE[3:])
        found = first.execute("FROM counts")
        counts = dict(zip((column[0] for column in found.description or ()), found.fetchall()[0], strict=True))
        for table in TABLES:
            counts[table] = first.execute(f"SELECT count(*) FROM care.{table}").fetchall()[0][0]
        second.close()
        script.run(first, "CHECKPOINT care", "DETACH care")
        files.finish(warehouse)
    seconds, after = time.perf_counter() - started, os.times()
    first.close()
    script.close()
    return {
        "seconds": seconds,
        "cpu_seconds": after.user + after.system - before.user - before.system,
        "steps": script.steps,
        "counts": counts,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    result = run_duckdb(sorted(str(p) for p in Path(sys.argv[1]).glob("*.parquet")), Path(sys.argv[2]))
    for step, taken in sorted(result["steps"].items(), key=lambda item: -item[1]):
        print(f"{step:40s} {taken:6.2f} s")
    print(f"{result['seconds']:.2f} s, {result['cpu_seconds']:.2f} s CPU, {result['counts']}")
