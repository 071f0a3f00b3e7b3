"""`care-kpis rebuild`: makes what is damaged in a result anew from what is not, and publishes it as a run does.

The commit stays the same one, with its number, its rows and its history: `runs` has no new row. Only the snapshot is
another (000002.1 after 000002), in which files that are as they were published are hard links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from sinks.agreement import check_rows, compare_copies
from sinks.duckdb import load_warehouse
from sinks.facts import part_name
from sinks.links import link_or_copy
from sinks.manifest import MANIFEST, Manifest, find_damage, list_files, read_manifest
from sinks.output_folder import STATE, WAREHOUSE
from sinks.parquet import MONTHS, conform, write_table, writing
from sinks.publish import Snapshot, open_snapshot
from sinks.readings import UNREADABLE, Reading, first_line
from sinks.revisions import CHANGES_ORDER
from transforms.errors import UserError
from transforms.tables import (
    CONVERSATIONS,
    KPI_CHANGES,
    KPI_STATISTICS,
    KPI_TABLE,
    RUNS,
    TABLES,
    TURNS,
    Table,
)

_WINDOW_ORDER = ("window_start", "grain", "basis", "account_id", "channel")
_ORDERS = {
    KPI_TABLE.name: _WINDOW_ORDER,
    KPI_STATISTICS.name: _WINDOW_ORDER,
    KPI_CHANGES.name: CHANGES_ORDER,
    CONVERSATIONS.name: ("started_at", "conversation_key"),
    TURNS.name: ("started_at", "conversation_key", "turn_number"),
}
"""How a run sorts the rows of a file, where that is not by their key."""

_HISTORY = (RUNS.name, KPI_TABLE.name, KPI_CHANGES.name)
"""Tables that the next run goes on from."""

_MONTH = re.compile(r".*_month=(\d{4}-\d{2})")


@dataclass(frozen=True)
class Rebuilt:
    """What was done.

    Attributes:
      commit_id: number of the commit, the same as before.
      restored: Parquet files that were made from the warehouse, below the snapshot.
      is_warehouse_new: the warehouse was made from Parquet; else it is the one before.
      linked: how many files are those from before.
      notes: sentences on what could not be kept.
    """

    commit_id: int
    restored: tuple[str, ...]
    is_warehouse_new: bool
    linked: int
    notes: tuple[str, ...]


def rebuild(output: Path) -> Rebuilt:
    """Makes a result whole again.

    The warehouse is made anew from Parquet; Parquet files that are damaged or missing are made from the warehouse; a
    manifest that is damaged or missing is made anew where Parquet and the warehouse have the same rows.

    Args:
      output: the output folder.

    Returns:
      What was done.

    Raises:
      UserError: there is no result, another run is writing to it, or both copies of something are damaged; then nothing
        has changed.
    """
    with open_snapshot(output, rebuild=True) as snapshot:
        before = snapshot.previous
        assert before is not None
        try:
            manifest = read_manifest(before)
        except UserError:
            manifest = None
        damage = {} if manifest is None else find_damage(before, manifest.files)
        with Reading(before, manifest, damage) as reading:
            if manifest is None:
                _require_agreement(
                    reading,
                    f"Expected Parquet and DuckDB in {output} to say the same, since {MANIFEST} cannot be read and "
                    "nothing else tells what was published",
                )
                _require_commit(reading, snapshot, output)
            restored = _restore(reading, snapshot, manifest, damage, output)
            _require_this_version(reading, output)
            known = _known_files(before, reading, manifest)
        state = [path for path in known if _table_of(path) is None and path != WAREHOUSE]
        is_state_lost = (manifest is None and bool(state)) or any(path in damage for path in state)
        is_warehouse_new = not restored
        redone = {str(PurePosixPath(path).parent) for path in restored}
        kept = [
            path
            for path in known
            if path not in damage
            and not (path == WAREHOUSE and is_warehouse_new)
            and not (path in state and is_state_lost)
            and not (_table_of(path) != KPI_CHANGES.name and str(PurePosixPath(path).parent) in redone)
        ]
        for path in kept:
            _keep(snapshot, path, manifest)
        if is_warehouse_new:
            files = {spec: sorted((snapshot.path / spec.name).rglob("*.parquet")) for spec in TABLES}
            load_warehouse(snapshot.path / WAREHOUSE, files)
        with Reading(snapshot.path, None, {}) as reading:
            _require_agreement(reading, f"Expected what was made anew in {output} to agree (nothing was published)")
        unknown = sorted(set(list_files(before)) - set(known) - {MANIFEST})
        snapshot.publish({} if manifest is None else manifest.about)
    notes = [f"{path} is no part of the result and was left out." for path in unknown]
    if is_state_lost:
        notes.append(
            "what the next appending run would have begun with is damaged or unknown and was left out: to append, run "
            "over all files with --append into a new output folder."
        )
    return Rebuilt(snapshot.commit_id, tuple(restored), is_warehouse_new, len(kept), tuple(notes))


def _known_files(before: Path, reading: Reading, manifest: Manifest | None) -> list[str]:
    """The files that belong to a result; without a manifest the Parquet files of tables, and the state."""
    if manifest is not None:
        return list(manifest.files)
    tables = [str(file.relative_to(before)) for files in reading.files.values() for file in files]
    state = [path for path in list_files(before) if path.startswith(f"{STATE}/")]
    return [*tables, *state, WAREHOUSE]


def _keep(snapshot: Snapshot, path: str, manifest: Manifest | None) -> None:
    if manifest is not None:
        snapshot.link(path)
        return
    assert snapshot.previous is not None
    with writing(snapshot.path / path):
        link_or_copy(snapshot.previous / path, snapshot.path / path)


def _restore(
    reading: Reading, snapshot: Snapshot, manifest: Manifest | None, damage: Mapping[str, str], output: Path
) -> list[str]:
    """Writes the Parquet files that are damaged from the warehouse; whole months, since it knows nothing of files."""
    restored: list[str] = []
    for spec in TABLES:
        bad = [path for path in damage if _table_of(path) == spec.name]
        if not bad:
            continue
        if ("duckdb", spec.name) in reading.unusable:
            also = reading.unusable["duckdb", spec.name]
            what = (
                f"Expected Parquet or DuckDB to have {spec.name} whole, but {bad[0]} is damaged ({damage[bad[0]]}) and"
            )
            if WAREHOUSE not in damage and "cannot be opened" in also:
                way = "close it wherever it is open, and run `care-kpis rebuild` again"
            elif spec.name in _HISTORY:
                way = f"move {output} away and run `care-kpis batch` over all inputs again; its history is lost"
            else:
                way = "run `care-kpis batch` over all inputs again"
            raise UserError(f"{what} {also}: {way}.")
        assert manifest is not None
        files = manifest.of_table(spec.name)
        for path, where, covered in _files_to_write(spec, bad, files):
            rows = _rows(reading, spec, where)
            if rows.num_rows != sum(files[old].rows or 0 for old in covered):
                raise UserError(
                    f"Expected {WAREHOUSE} to have the rows of {', '.join(covered)}, but it has {rows.num_rows:,}: run "
                    "`care-kpis batch` over all inputs again."
                )
            month = MONTHS.get(spec.name)
            sorted_by = (month,) if month else CHANGES_ORDER[:1] if spec == KPI_CHANGES else ()
            write_table(rows, snapshot.path / path, spec, sorted_by)
            restored.append(path)
    return restored


def _files_to_write(
    spec: Table, bad: Iterable[str], files: Mapping[str, object]
) -> Iterable[tuple[str, str, list[str]]]:
    """For each file to write: its path, SQL that picks its rows, and the files in whose place it is."""
    if spec == KPI_CHANGES:
        # One file a commit; part-0 is the empty one of a result without changes.
        for path in bad:
            commit_id = int(PurePosixPath(path).stem.removeprefix("part-"))
            yield path, f"commit_id = {commit_id}", [path]
        return
    # One file for all keys of a month, as a run that appends names it.
    name = part_name(0, 1) if spec in (CONVERSATIONS, TURNS) else "0"
    for folder in sorted({str(PurePosixPath(path).parent) for path in bad}):
        month = _MONTH.fullmatch(folder)
        where = (
            f"date_trunc('month', {MONTHS[spec.name]}) = TIMESTAMPTZ '{month[1]}-01 00:00:00+00'" if month else "true"
        )
        covered = [path for path in files if str(PurePosixPath(path).parent) == folder]
        yield f"{folder}/part-{name}.parquet", where, covered


def _rows(reading: Reading, spec: Table, where: str) -> pa.Table:
    """Rows of the warehouse, in the order of files."""
    order = ", ".join(f"{name} NULLS FIRST" for name in _ORDERS.get(spec.name, spec.key))
    columns = ", ".join(spec.schema.names)
    sql = f"SELECT {columns} FROM {reading.of_warehouse(spec)} WHERE {where} ORDER BY {order}"
    return conform(reading.arrow(sql), spec)


def _require_agreement(reading: Reading, expected: str) -> None:
    """Raises UserError where Parquet and DuckDB cannot both be read, or do not say the same."""
    try:
        verdicts = check_rows(reading, None), compare_copies(reading)
        wrong = [words for verdict in verdicts for words in (*verdict.problems, *verdict.left_out)]
    except UNREADABLE as error:
        wrong = [first_line(error)]
    if wrong:
        raise UserError(f"{expected}, but {wrong[0]}: run `care-kpis batch` over all inputs again.")


def _require_commit(reading: Reading, snapshot: Snapshot, output: Path) -> None:
    """Raises UserError where the runs are not those of this snapshot."""
    last = reading.rows(f"SELECT coalesce(max(commit_id), 0) FROM {RUNS.name}")[0][0]
    if last != snapshot.commit_id:
        raise UserError(
            f"Expected runs in {output} to end with commit {snapshot.commit_id}, but the last one is {last}: run "
            "`care-kpis batch` over all inputs again."
        )


def _require_this_version(reading: Reading, output: Path) -> None:
    """Raises UserError where intact Parquet files have not the columns of this version."""
    for (copy, name), why in reading.unusable.items():
        if copy == "parquet" and why in reading.columns:
            raise UserError(
                f"Expected {name} in {output} as this version writes it, but {why}: run `care-kpis batch` over all "
                "inputs again."
            )


def _table_of(path: str) -> str | None:
    """The table that a file belongs to; None for other files."""
    name = PurePosixPath(path).parts[0]
    return name if any(spec.name == name for spec in TABLES) else None
