"""What a commit keeps of the result before it: the runs, the revisions of KPIs, and what windows said earlier."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sinks.links import link_or_copy
from sinks.manifest import REPAIR
from sinks.parquet import conform, write_table, writing
from sinks.revisions import CHANGES_ORDER, Restated, restate
from transforms.errors import UserError
from transforms.tables import KPI_CHANGES, KPI_TABLE, RUNS, Table

_NO_CHANGES = "part-0.parquet"
"""What a result without any change has, so that readers find the schema; commits count from 1."""


def revise(kpis: pa.Table, previous: Path | None, commit_id: int, committed_at: datetime) -> Restated:
    """Tells which of all windows this commit restates.

    Args:
      kpis: columns of KPI_TABLE without those of the commit; all rows of the result.
      previous: the folder of the result before, or None.
      commit_id: of this commit.
      committed_at: when it is made.

    Returns:
      See `restate`; without a previous result every row is of revision 1, and there are no changes.

    Raises:
      UserError: the previous result cannot be read.
    """
    if previous is None:
        return restate(KPI_TABLE.schema.empty_table(), kpis, commit_id, committed_at)
    before = _read_previous(previous, KPI_TABLE)
    earlier = _read(previous, KPI_CHANGES, [*KPI_TABLE.key, "revision"]) if _change_files(previous) else None
    return restate(before, kpis, commit_id, committed_at, earlier)


def keep_changes(root: Path, previous: Path | None, changes: pa.Table, commit_id: int) -> list[Path]:
    """Writes what a commit changed as a file of its own, beside those of the commits before.

    The files of kpi_changes are never written again: where the file system allows it, a result shares them with the one
    before by hard links.

    Args:
      root: the folder of the result in the making; it has no kpi_changes yet.
      previous: the folder of the result before, or None.
      changes: columns of KPI_CHANGES, those of this commit.
      commit_id: of this commit.

    Returns:
      All files of kpi_changes under `root`, by commit; none where no commit changed anything.

    Raises:
      ValueError: `changes` is not what its specification says.
      UserError: the disk is full or not writable.
    """
    folder = root / KPI_CHANGES.name
    files = [folder / file.name for file in _change_files(previous)]
    with writing(folder):
        for file in files:
            assert previous is not None
            link_or_copy(previous / KPI_CHANGES.name / file.name, file)
    if changes.num_rows:
        file = folder / f"part-{commit_id}.parquet"
        # A file of that name would be one that older results show too.
        if file.exists():
            raise ValueError(f"expected commit {commit_id} to be a new one, but {file} is there")
        files.append(write_table(changes, file, KPI_CHANGES, CHANGES_ORDER[:1]).path)
    return files


def append_run(run: pa.Table, previous: Path | None) -> pa.Table:
    """The runs of the result before, and this one.

    Args:
      run: rows of RUNS.
      previous: the folder of the result before, or None.

    Raises:
      UserError: the previous result cannot be read.
    """
    if previous is None:
        return run
    return conform(pa.concat_tables([_read_previous(previous, RUNS), run]).sort_by("commit_id"), RUNS)


def _change_files(result: Path | None) -> list[Path]:
    """The files of kpi_changes that have rows, by commit; none in a result that was made before there were any."""
    if result is None:
        return []
    files = [file for file in (result / KPI_CHANGES.name).glob("part-*.parquet") if file.name != _NO_CHANGES]
    return sorted(files, key=lambda file: int(file.stem.removeprefix("part-")))


def _read_previous(previous: Path, spec: Table) -> pa.Table:
    """A table of an earlier result: null in columns that it did not have yet, without those that it has no more."""
    table = _read(previous, spec)
    for column in spec.columns:
        if column.name not in table.column_names:
            table = table.append_column(column.name, pa.nulls(table.num_rows, column.type))
    try:
        return conform(table.select(spec.schema.names), spec)
    except ValueError as error:
        raise UserError(
            f"Expected {spec.name} of the previous result in {previous} to be of this version, but {error}: choose "
            "another output folder."
        ) from error


def _read(previous: Path, spec: Table, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of an earlier result as its files have it."""
    try:
        return pq.read_table(previous / spec.name, partitioning=None, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"Expected the previous result in {previous} to be readable, but {spec.name} is not ({error}): {REPAIR}."
        ) from error
