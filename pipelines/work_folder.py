"""What a pipeline leaves for the commit: tables of the result, and in a work folder what the commit still needs."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsSingleton

from pipelines.stages import Stages
from sinks.parquet import write_partitioned
from transforms.batches import ThreadedFn
from transforms.steps import AddCountsCombineFn
from transforms.tables import DEAD_LETTERS, Table

COUNTS_FILE = "counts.json"
LETTERS_FOLDER = "letters"
KPI_FILES = ("kpis.arrow", "kpi_statistics.arrow", "totals.arrow")


class WriteTables(beam.PTransform):
    """(shard, table) -> Parquet files of a table of the result, by month."""

    def __init__(self, root: Path, table: Table, by_month_of: str, token: str) -> None:
        """Takes the snapshot in the making, the table, the column that names the month and the token of the run."""
        super().__init__()
        self._write = _WriteFn(root, table, by_month_of, token)

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return tables | beam.ParDo(self._write)


class _WriteFn(ThreadedFn):
    def __init__(self, root: Path, table: Table, by_month_of: str, token: str) -> None:
        super().__init__()
        self._root, self._table, self._by_month_of, self._token = root, table, by_month_of, token

    def work(self, element: tuple[int, pa.Table], side: None) -> None:
        shard, rows = element
        folder = self._root / self._table.name
        files = write_partitioned(rows, folder, self._table, self._by_month_of, f"{shard:05}")
        Stages.wrote(self._token, self._table, [file.path for file in files])

    def emit(self, result: None) -> Iterator[Any]:
        return iter(())


class KeepTables(beam.PTransform):
    """The one element (a tuple of tables) -> Arrow files in the work folder."""

    def __init__(self, work: Path) -> None:
        """Takes the work folder."""
        super().__init__()
        self._work = work

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return tables | beam.Map(_keep_tables, self._work)


def _keep_tables(tables: tuple[pa.Table, ...], work: Path) -> None:
    for name, table in zip(KPI_FILES, tables, strict=True):
        _write_arrow(table, work / name)


class KeepLetters(beam.PTransform):
    """Tables of dead letters -> Arrow files in the work folder."""

    def __init__(self, work: Path) -> None:
        """Takes the work folder."""
        super().__init__()
        self._work = work

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return letters | beam.Map(_keep_letters, self._work / LETTERS_FOLDER)


def _keep_letters(letters: pa.Table, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _write_arrow(letters, folder / f"{uuid.uuid4().hex}.arrow")


class KeepCounts(beam.PTransform):
    """Numbers of rows by name -> one JSON file in the work folder, with the latest occurred_at beside them."""

    def __init__(self, work: Path, read: beam.PCollection, kept: beam.PCollection) -> None:
        """Takes the work folder and the latest occurred_at read and kept, PCollections of one value or None."""
        super().__init__()
        self._work, self._read, self._kept = work, read, kept

    def expand(self, counts: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        total = counts | beam.CombineGlobally(AddCountsCombineFn())
        return total | beam.Map(_keep_counts, self._work, AsSingleton(self._read), AsSingleton(self._kept))


def _keep_counts(counts: Counter[str], work: Path, read: int | None, kept: int | None) -> None:
    said = {"rows": counts, "latest_read": read, "latest_kept": kept}
    (work / COUNTS_FILE).write_text(json.dumps(said), encoding="utf-8")


@dataclass(frozen=True)
class Counts:
    """What a pipeline counted.

    Attributes:
      rows: numbers of rows by name.
      latest_read: latest occurred_at of the valid rows, microseconds; None where there is none.
      latest_kept: latest occurred_at of the events kept.
    """

    rows: Counter[str]
    latest_read: int | None
    latest_kept: int | None


def read_counts(work: Path) -> Counts:
    """What the pipeline counted."""
    said = json.loads((work / COUNTS_FILE).read_text(encoding="utf-8"))
    return Counts(Counter(said["rows"]), said["latest_read"], said["latest_kept"])


def read_tables(work: Path) -> list[pa.Table]:
    """kpis, kpi_statistics and the totals."""
    return [_read_arrow(work / name) for name in KPI_FILES]


def read_letters(work: Path, one: bool = False) -> pa.Table:
    """All dead letters in the order of their places; or those of one block, where any will do."""
    files = sorted((work / LETTERS_FOLDER).glob("*.arrow"))[: 1 if one else None]
    if not files:
        return DEAD_LETTERS.schema.empty_table()
    letters = pa.concat_tables([_read_arrow(file) for file in files])
    return letters.sort_by([(name, "ascending") for name in DEAD_LETTERS.key]).combine_chunks()


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
