"""`care-kpis compact`: small files of open rows are merged, months that grew too large are cut, DuckDB is packed."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.cycle import ROWS_A_SHARD
from pipelines.growth import ROWS_FOLDER, STATE
from sinks.duckdb import load_warehouse
from sinks.facts import ROWS_A_FILE, part_name, parts_of
from sinks.manifest import read_manifest
from sinks.output_folder import WAREHOUSE
from sinks.parquet import write_table
from sinks.publish import Snapshot, open_snapshot
from transforms.hashing import hash_conversation_keys
from transforms.open_rows import count_rows, merge_rows
from transforms.shards import shard_of
from transforms.tables import CONVERSATIONS, DEAD_LETTERS, TABLES, TURNS, Table

_ROWS_FOLDER = f"{STATE}/{ROWS_FOLDER}"


@dataclass(frozen=True)
class Compacted:
    """What a compaction came to: numbers of files and bytes before and after.

    Attributes:
      commit_id: number of the commit, the same as before.
      files: files of the result, before and after.
      row_files: files of open rows, before and after.
      warehouse_bytes: size of the DuckDB file, before and after.
    """

    commit_id: int
    files: tuple[int, int]
    row_files: tuple[int, int]
    warehouse_bytes: tuple[int, int]


def compact(output: Path) -> Compacted:
    """Packs a result; the tables are the same. In memory is one file at a time.

    Args:
      output: the output folder.

    Raises:
      UserError: there is no result, it is damaged, another run is writing to it, or the disk is full.
    """
    with open_snapshot(output, rebuild=True) as snapshot:
        assert snapshot.previous is not None
        names = snapshot.previous_files()
        done = {WAREHOUSE}
        for spec in (CONVERSATIONS, TURNS):
            done |= _cut_months(snapshot, spec)
        done |= _merge_letters(snapshot)
        done |= _merge_rows(snapshot)
        for name in names:
            if name not in done:
                snapshot.link(name)
        tables = {spec: sorted((snapshot.path / spec.name).rglob("*.parquet")) for spec in TABLES}
        load_warehouse(snapshot.path / WAREHOUSE, tables)
        after = [path for path in snapshot.path.rglob("*") if path.is_file()]
        sizes = tuple((root / WAREHOUSE).stat().st_size for root in (snapshot.previous, snapshot.path))
        was = len([name for name in names if name.startswith(_ROWS_FOLDER)])
        now = len([path for path in after if path.parent.name == ROWS_FOLDER])
        snapshot.publish(read_manifest(snapshot.previous).about)
    return Compacted(snapshot.commit_id, (len(names), len(after)), (was, now), (sizes[0], sizes[1]))


def _cut_months(snapshot: Snapshot, spec: Table) -> set[str]:
    """Cuts months whose files have become too large into more parts.

    Returns:
      The files that are replaced.
    """
    by_month: dict[str, list[str]] = {}
    for name in snapshot.previous_files(spec.name):
        by_month.setdefault(str(PurePosixPath(name).parent), []).append(name)
    replaced = set()
    for folder, names in by_month.items():
        sizes = {name: pq.read_metadata(snapshot.previous_file(name)).num_rows for name in names}
        parts = max(parts_of(name) or 1 for name in names)
        times = 1
        while max(sizes.values()) > 2 * ROWS_A_FILE * times:
            times *= 2
        if times == 1:
            continue
        for name in names:
            # A part of n is the parts k and k + 1 of 2 n: each file is cut on its own.
            for part, rows in _cut(snapshot.previous_file(name), spec, parts * times):
                path = snapshot.path / folder / f"part-{part_name(part, parts * times)}.parquet"
                write_table(rows, path, spec, ("started_at",))
            replaced.add(name)
    return replaced


def _cut(file: Path, spec: Table, parts: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a file by the part of their key."""
    rows = pq.read_table(file, partitioning=None).select(spec.schema.names)
    owner = shard_of(hash_conversation_keys(rows["conversation_key"].to_pylist()), parts)
    for part in np.unique(owner).tolist():
        yield part, rows.filter(pa.array(owner == part))


def _merge_letters(snapshot: Snapshot) -> set[str]:
    """Puts the dead letters of all commits into one file."""
    names = snapshot.previous_files(DEAD_LETTERS.name)
    if len(names) < 2:
        return set()
    parts = [pq.read_table(snapshot.previous_file(name), partitioning=None) for name in names]
    letters = pa.concat_tables([part.select(DEAD_LETTERS.schema.names).cast(DEAD_LETTERS.schema) for part in parts])
    order = [(name, "ascending") for name in DEAD_LETTERS.key]
    write_table(letters.sort_by(order), snapshot.path / DEAD_LETTERS.name / "part-0.parquet", DEAD_LETTERS)
    return set(names)


def _merge_rows(snapshot: Snapshot) -> set[str]:
    """Cuts the open rows into files of equal ranges of hashes, however many files they were in."""
    names = snapshot.previous_files(_ROWS_FOLDER)
    files = [snapshot.previous_file(name) for name in names]
    wanted = max(1, -(-sum(map(count_rows, files)) // ROWS_A_SHARD))
    if len(files) <= wanted:
        return set()
    edges = [(1 << 64) * place // wanted for place in range(wanted + 1)]
    for low, high in itertools.pairwise(edges):
        merge_rows(files, snapshot.path / _ROWS_FOLDER / f"{uuid.uuid4().hex}.arrow", low, high)
    return set(names)
