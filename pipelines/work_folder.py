"""What a pipeline leaves for the commit: tables of the result, and in a work folder what the commit still needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsIter

from pipelines.stages import Stages
from sinks.facts import part_name
from sinks.parquet import MONTHS, write_partitioned
from transforms.batches import ThreadedFn
from transforms.hashing import Hashes
from transforms.pair_steps import TableChange
from transforms.paired_rows import NO_ENDS, Ends
from transforms.steps import Gather
from transforms.tables import DEAD_LETTERS, Table
from transforms.wakes import Wakes

COUNTS_FILE = "counts.json"
LETTERS_FOLDER = "letters"
WAS_LETTERS_FOLDER, NOW_LETTERS_FOLDER = "was_letters", "now_letters"
LATE_FOLDER = "late_events"
CHANGES_FOLDER, WAKES_FOLDER = "changes", "wakes"
KPI_FILES = ("kpis.arrow", "kpi_statistics.arrow", "totals.arrow", "windows.arrow")


class WriteTables(beam.PTransform):
    """(shard, table) -> Parquet files of a table of the result, by month."""

    def __init__(self, root: Path, table: Table, shards: int, token: str) -> None:
        """Takes the snapshot in the making, the table, the number of shards and the token of the run."""
        super().__init__()
        self._write = _WriteFn(root, table, shards, token)

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return tables | beam.ParDo(self._write)


class _WriteFn(ThreadedFn):
    def __init__(self, root: Path, table: Table, shards: int, token: str) -> None:
        super().__init__()
        self._root, self._table, self._shards, self._token = root, table, shards, token

    def work(self, element: tuple[int, pa.Table], side: None) -> None:
        shard, rows = element
        folder, month = self._root / self._table.name, MONTHS[self._table.name]
        files = write_partitioned(rows, folder, self._table, month, part_name(shard, self._shards))
        Stages.wrote(self._token, self._table, [file.path for file in files])

    def emit(self, result: None) -> Iterator[Any]:
        return iter(())


class KeepTables(beam.PTransform):
    """The one element (a tuple of tables) -> what `read_tables` gives.

    Where the step runs in the process that put the pipeline together they are held in memory, which spares writing and
    reading again what is hundreds of megabytes of a large result; elsewhere they go into files in the work folder.
    """

    def __init__(self, work: Path) -> None:
        """Takes the work folder."""
        super().__init__()
        self._work = work

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return tables | beam.Map(_keep_tables, self._work, _this_process())


_PROCESS = uuid.uuid4().hex
_held: dict[Path, tuple[pa.Table, ...]] = {}
"""Tables by work folder, from the end of the pipeline until they are read."""


def _this_process() -> tuple[str, int]:
    """Differs among processes, on any machines; a fork has its parent's module, but not its number."""
    return _PROCESS, os.getpid()


def _keep_tables(tables: tuple[pa.Table, ...], work: Path, reader: tuple[str, int]) -> None:
    if reader == _this_process():
        _held[work] = tables
        return
    for name, table in zip(KPI_FILES, tables, strict=True):
        _write_arrow(table, work / name)


class KeepLetters(beam.PTransform):
    """Tables of dead letters, or of other rows that have a place, -> Arrow files in the work folder."""

    def __init__(self, work: Path, folder: str = LETTERS_FOLDER, key: Sequence[str] = DEAD_LETTERS.key) -> None:
        """Takes the work folder, the name of the folder in it, and the columns of a place."""
        super().__init__()
        self._folder, self._key = work / folder, key

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return letters | beam.Map(_keep_table, self._folder, self._key)


def _keep_table(table: pa.Table, folder: Path, key: Sequence[str]) -> None:
    """Keeps a part under the name of its first key, which no other part has: made anew, it takes its own place."""
    folder.mkdir(exist_ok=True, parents=True)
    first = table.select(list(key)).sort_by([(name, "ascending") for name in key]).slice(0, 1).to_pylist()
    _write_arrow(table, folder / f"{hashlib.sha256(repr(first).encode()).hexdigest()}.arrow")


class KeepChanges(beam.PTransform):
    """TableChange -> Arrow files in the work folder: for each table the rows that go and the rows that come."""

    def __init__(self, work: Path) -> None:
        """Takes the work folder."""
        super().__init__()
        self._work = work

    def expand(self, changes: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return changes | beam.Map(_keep_change, self._work / CHANGES_FOLDER)


def _keep_change(change: TableChange, folder: Path) -> None:
    _keep_table(change.removed, folder / f"{change.table}-removed", ["key_hash"])
    _keep_table(change.added, folder / f"{change.table}-added", ["key_hash"])


class KeepWakes(beam.PTransform):
    """(keys looked at, wakes found, ends of keys) -> numpy files in the work folder."""

    def __init__(self, work: Path) -> None:
        """Takes the work folder."""
        super().__init__()
        self._work = work

    def expand(self, wakes: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return wakes | beam.Map(_keep_wakes, self._work / WAKES_FOLDER)


def _keep_wakes(wakes: tuple[Hashes, Wakes, Ends], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    looked_at, found, ends = wakes
    first = np.sort(np.concatenate([looked_at, found["key_hash"]]))[:1]
    with _whole(folder / f"{first.tobytes().hex()}.npz") as path, path.open("wb") as file:
        np.savez(file, looked_at=looked_at, found=found, keys=ends[0], ends_at=ends[1])


class KeepCounts(beam.PTransform):
    """Numbers of rows by name -> one JSON file in the work folder, with the latest occurred_at beside their sums."""

    def __init__(self, work: Path, read: beam.PCollection, kept: beam.PCollection, was: beam.PCollection) -> None:
        """Takes the work folder and moments of which the latest are those of Counts."""
        super().__init__()
        self._work, self._moments = work, tuple(map(AsIter, (read, kept, was)))

    def expand(self, counts: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        return counts | Gather(keep_counts, self._work, *self._moments)


def keep_counts(
    counts: Iterable[Counter[str]], work: Path, read: Iterable[int], kept: Iterable[int], was: Iterable[int]
) -> None:
    """Writes the sums of numbers of rows, and the latest of some moments, into the work folder (see Counts)."""
    rows: Counter[str] = Counter()
    for part in counts:
        rows.update(part)
    latest = {"latest_read": read, "latest_kept": kept, "was_latest": was}
    said = {"rows": rows, **{name: max(moments, default=None) for name, moments in latest.items()}}
    (work / COUNTS_FILE).write_text(json.dumps(said), encoding="utf-8")


@dataclass(frozen=True)
class Counts:
    """What a pipeline counted.

    Attributes:
      rows: numbers of rows by name.
      latest_read: latest occurred_at of the valid rows, microseconds; None where there is none.
      latest_kept: latest occurred_at of the events kept, of the keys that were looked at.
      was_latest: the same of these keys in the result before.
    """

    rows: Counter[str]
    latest_read: int | None
    latest_kept: int | None
    was_latest: int | None


def read_counts(work: Path) -> Counts:
    """What the pipeline counted."""
    said = json.loads((work / COUNTS_FILE).read_text(encoding="utf-8"))
    return Counts(Counter(said["rows"]), said["latest_read"], said["latest_kept"], said["was_latest"])


def read_tables(work: Path) -> list[pa.Table]:
    """kpis, kpi_statistics, the totals and the keys of the windows that were made; they can be read once."""
    if work in _held:
        return list(_held.pop(work))
    return [_read_arrow(work / name) for name in KPI_FILES]


def read_letters(work: Path, folder: str | None = None, table: Table = DEAD_LETTERS) -> pa.Table:
    """Rows of a table that were kept, in the order of their places; of the folder LETTERS_FOLDER or another one."""
    files = sorted((work / (folder or LETTERS_FOLDER)).glob("*.arrow"))
    if not files:
        return table.schema.empty_table()
    letters = pa.concat_tables([_read_arrow(file) for file in files])
    return letters.sort_by([(name, "ascending") for name in table.key]).combine_chunks()


def read_change(work: Path, table: Table) -> tuple[pa.Table, pa.Table]:
    """The rows of a table that go and the rows that come, with key_hash."""
    columns = [*table.schema.names, "key_hash"]
    empty = pa.schema([*table.schema, pa.field("key_hash", pa.uint64())]).empty_table()
    sides = []
    for side in ("removed", "added"):
        files = sorted((work / CHANGES_FOLDER / f"{table.name}-{side}").glob("*.arrow"))
        parts = [_read_arrow(file).select(columns).cast(empty.schema) for file in files]
        sides.append(pa.concat_tables([empty, *parts]).combine_chunks())
    return sides[0], sides[1]


def read_wakes(work: Path) -> tuple[Hashes, list[Wakes], Ends]:
    """The keys that were looked at, the wakes that were found, and the ends of keys."""
    files = sorted((work / WAKES_FOLDER).glob("*.npz"))
    looked_at, found, keys, ends_at = [np.empty(0, np.uint64)], [], [NO_ENDS[0]], [NO_ENDS[1]]
    for file in files:
        with np.load(file) as said:
            looked_at.append(said["looked_at"])
            found.append(said["found"])
            keys.append(said["keys"])
            ends_at.append(said["ends_at"])
    hashes = np.concatenate(keys)
    order = np.argsort(hashes)
    return np.concatenate(looked_at), found, (hashes[order], np.concatenate(ends_at)[order])


def _write_arrow(table: pa.Table, path: Path) -> None:
    with _whole(path) as whole, pa.OSFile(str(whole), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` in one step: a worker that dies leaves no half file under its name."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    yield unfinished
    os.replace(unfinished, path)


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
