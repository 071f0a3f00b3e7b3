"""What a commit keeps of the one before: the runs, and the revisions of KPIs that are as they were."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sinks.parquet import conform
from transforms.errors import UserError
from transforms.schema import TIMESTAMP
from transforms.tables import COMMIT_COLUMNS, KPI_TABLE, RUNS, Table


def revise(kpis: pa.Table, previous: Path | None, committed_at: datetime) -> pa.Table:
    """Tells which rows of `kpis` this commit changes.

    Args:
      kpis: columns of KPI_TABLE without those of the commit.
      previous: the folder of the result before, or None.
      committed_at: when this commit is made.

    Returns:
      The rows in the order given, with `revision` and `changed_at`: those of before where every other column is as it
      was, one more and committed_at where one differs, 1 and committed_at where the row is new.

    Raises:
      UserError: the previous result cannot be read.
    """
    spec = Table(KPI_TABLE.name, KPI_TABLE.grain, KPI_TABLE.key, KPI_TABLE.columns[: -len(COMMIT_COLUMNS)])
    kpis = conform(kpis, spec)
    revision = pa.array(np.ones(kpis.num_rows, np.int64))
    changed_at = pa.repeat(pa.scalar(committed_at, TIMESTAMP), kpis.num_rows)
    if previous is not None:
        before = _read_previous(previous, KPI_TABLE)
        names = set(before.column_names)
        same = " AND ".join(
            f"n.{c.name} IS NOT DISTINCT FROM {f'p.{c.name}' if c.name in names else 'NULL'}"
            for c in spec.columns
            if c.name not in spec.key
        )
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
            connection.register("before", before)
            connection.register("after", kpis.append_column("place", pa.array(np.arange(kpis.num_rows))))
            found = connection.sql(
                f"SELECT place, {same} AS is_same, revision, epoch_us(changed_at) AS changed_at "
                f"FROM after AS n JOIN before AS p ON "
                + " AND ".join(f"n.{name} IS NOT DISTINCT FROM p.{name}" for name in spec.key)
            ).to_arrow_table()
        place, is_same = found["place"].to_numpy(), found["is_same"].to_numpy()
        revisions, changes = np.ones(kpis.num_rows, np.int64), changed_at.cast(pa.int64()).to_numpy().copy()
        revisions[place] = found["revision"].to_numpy() + ~is_same
        changes[place[is_same]] = found["changed_at"].to_numpy()[is_same]
        revision, changed_at = pa.array(revisions), pa.array(changes).cast(TIMESTAMP)
    return conform(kpis.append_column("revision", revision).append_column("changed_at", changed_at), KPI_TABLE)


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
    before = _read_previous(previous, RUNS)
    try:
        return conform(pa.concat_tables([before, run], promote_options="default").sort_by("commit_id"), RUNS)
    except ValueError as error:
        raise UserError(
            f"Expected the runs of the previous result in {previous} to be of this version, but {error}: choose "
            "another output folder."
        ) from error


def _read_previous(previous: Path, spec: Table) -> pa.Table:
    """A table of an earlier result, without the columns that it did not have yet or has no more."""
    try:
        table = pq.read_table(previous / spec.name, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"Expected the previous result in {previous} to be readable, but {spec.name} is not ({error}): move the "
            "output folder away, or choose another one, and run again."
        ) from error
    return table.select([name for name in spec.schema.names if name in table.column_names])
