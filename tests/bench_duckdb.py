"""The yardstick of the batch bench: the same published tables, made by hand-written DuckDB SQL alone.

The SQL is in the folder bench_duckdb, in the order of the file names; this module sets the variables that it reads and
runs it. All rules of the contract that generated data touches are in it, with the contract's default settings and
split_threads per channel. Left out: repeat_contact, infer_resolution, other limits per channel, zones that are not
whole hours off, the texts of dead letters (they are counted), comments and partitions by month.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb

FOLDER = Path(__file__).parent / "bench_duckdb"
SPLIT_CHANNELS = ("whatsapp", "facebook")
TIMEZONE = "Europe/Berlin"
TABLES = ("conversations", "turns", "kpi_statistics", "kpis")

_HOUR = 3_600_000_000
_VARIABLES = {"gap": 24 * _HOUR, "max_idle": 30 * 24 * _HOUR, "max_open": 365 * 24 * _HOUR}
_CELL_VARIABLES = """
SET VARIABLE as_of = (SELECT max(o) >> 4 FROM events);
SET VARIABLE first_hour = (SELECT (min(o) >> 4) // 3600000000 FROM events);
SET VARIABLE account_count = len(enum_range(NULL::account_word)) + 1;
SET VARIABLE channel_count = len(enum_range(NULL::channel_word));
SET VARIABLE cells_an_hour = (getvariable('account_count') * getvariable('channel_count') * 2)::INTEGER;
"""


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
    """What a statement does: `create care.turns`, `copy care.turns`, `update events`."""
    words = next(line for line in statement.strip().splitlines() if line and not line.startswith("--")).split()
    return f"{words[0].lower()} {words[2]}" if words[0] == "CREATE" else " ".join(words[:2]).lower()


def _copies(output: Path, *tables: str) -> list[str]:
    return [
        f"COPY care.{table} TO '{output / table}.parquet' "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 1000)"
        for table in tables
    ]


def run_duckdb(
    inputs: list[str], output: Path, threads: int = 2, memory_limit: str = "12GB", is_concurrent: bool = True
) -> dict[str, Any]:
    """Makes conversations, turns, kpi_statistics and kpis of event files.

    Args:
      inputs: Parquet files with the input columns of the contract.
      output: folder, made where it is missing; gets one Parquet file a table (zstd, level 1) and care.duckdb.
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
    before, started = os.times(), time.perf_counter()
    script = _Script(threads, memory_limit, output / "spill", inputs)
    first, second = script.connect(), script.connect()
    with ThreadPoolExecutor(2) as pool:

        def side_by_side(*works: Callable[[], None]) -> None:
            if not is_concurrent:
                for work in works:
                    work()
            else:
                for future in [pool.submit(work) for work in works]:
                    future.result()

        script.run(first, f"ATTACH '{warehouse}' AS care", "1_events.sql", "2_starts.sql")
        for connection in (first, second):
            script.run(connection, _CELL_VARIABLES)
        side_by_side(lambda: script.run(first, "3_turns.sql", "4_lives.sql"), lambda: script.run(second, "5_facts.sql"))
        script.run(first, "6_conversations.sql")
        side_by_side(
            lambda: script.run(first, "7_tables.sql", *_copies(output, "conversations", "turns")),
            lambda: script.run(second, "8_hours.sql", "9_kpis.sql", *_copies(output, "kpi_statistics", "kpis")),
        )
    found = first.execute("FROM counts")
    counts = dict(zip((column[0] for column in found.description or ()), found.fetchall()[0], strict=True))
    for table in TABLES:
        counts[table] = first.execute(f"SELECT count(*) FROM care.{table}").fetchall()[0][0]
    second.close()
    script.run(first, "DETACH care")
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
    result = run_duckdb(sorted(str(p) for p in Path(sys.argv[1]).glob("*.parquet")), Path(sys.argv[2]))
    for step, taken in sorted(result["steps"].items(), key=lambda item: -item[1]):
        print(f"{step:40s} {taken:6.2f} s")
    print(f"{result['seconds']:.2f} s, {result['cpu_seconds']:.2f} s CPU, {result['counts']}")
