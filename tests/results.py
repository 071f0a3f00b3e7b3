"""A published result to break: made once a session by the real pipeline, in two commits, and copied for each test."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import duckdb

from pipelines.batch import run
from pipelines.options import BatchOptions
from pipelines.settings import load_settings
from sinks.catalog import name_of
from sinks.manifest import MANIFEST, read_manifest, seal
from sinks.parquet import MONTHS, conform, write_partitioned, write_table
from sinks.publish import current_snapshot
from sinks.readings import Reading
from transforms.tables import TABLES, Table

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample"
FIRST_ROWS = 1_200
_FOLDER = tempfile.TemporaryDirectory(prefix="care-kpis-")
"""Removed when the tests end."""


@cache
def parts_of_sample() -> tuple[Path, Path]:
    """The events of the sample in two files."""
    lines = (SAMPLE / "events.ndjson").read_text(encoding="utf-8").splitlines(keepends=True)
    files = Path(_FOLDER.name, "first.ndjson"), Path(_FOLDER.name, "second.ndjson")
    for file, part in zip(files, (lines[:FIRST_ROWS], lines[FIRST_ROWS:]), strict=True):
        file.write_text("".join(part), encoding="utf-8")
    return files


def add_to(output: Path, *files: Path, append: bool = True) -> None:
    """Runs over files of the sample with its settings."""
    settings = load_settings(SAMPLE / "care.toml", {}, {}).settings
    run(BatchOptions(inputs=tuple(map(str, files)), output=output, settings=settings, append=append))


@cache
def _made() -> Path:
    output = Path(_FOLDER.name, "output")
    for file in parts_of_sample():
        add_to(output, file)
    return output


def copy_of_result(folder: Path) -> Path:
    """A result of two commits, the second of which restated windows; of one's own, to do with as one likes."""
    return Path(shutil.copytree(_made(), folder / "output", symlinks=True))


def snapshot_of(output: Path) -> Path:
    """The folder that an output shows."""
    snapshot = current_snapshot(output)
    assert snapshot is not None
    return snapshot


def files_of(output: Path, table: str) -> list[Path]:
    """The Parquet files of a table."""
    return sorted((snapshot_of(output) / table).rglob("*.parquet"))


def seal_again(output: Path) -> None:
    """Makes the manifest say what the files are now."""
    snapshot = snapshot_of(output)
    before = read_manifest(snapshot)
    (snapshot / MANIFEST).unlink()
    seal(snapshot, before.commit_id, before.about, {})


def change(output: Path, *statements: str, copied: tuple[Table, ...] = ()) -> None:
    """Changes the warehouse by SQL and writes the Parquet files of some tables from it, as if a run had made it so."""
    snapshot = snapshot_of(output)
    with duckdb.connect(str(snapshot / "care.duckdb")) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        for statement in statements:
            warehouse.execute(statement)
        for spec in copied:
            columns = ", ".join(spec.schema.names)
            rows = conform(warehouse.sql(f"SELECT {columns} FROM {name_of(spec)}").to_arrow_table(), spec)
            shutil.rmtree(snapshot / spec.name)
            if spec.name in MONTHS:
                write_partitioned(rows, snapshot / spec.name, spec, MONTHS[spec.name], "0")
            else:
                write_table(rows, snapshot / spec.name / "part-0.parquet", spec)
    seal_again(output)


def rows_of_tables(output: Path) -> dict[str, object]:
    """Number and hash of the rows of every table, of Parquet and of the warehouse."""
    found: dict[str, object] = {}
    with Reading(snapshot_of(output), None, {}) as reading:
        assert not reading.unusable
        for spec in TABLES:
            columns = ", ".join(spec.schema.names)
            for source in (reading.of_parquet(spec), reading.of_warehouse(spec)):
                found[source] = reading.rows(f"SELECT count(*), sum(hash({columns})) FROM {source}")
    return found
