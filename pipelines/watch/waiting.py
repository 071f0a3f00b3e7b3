"""Who waits longest, as the published result of an output folder says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from pipelines.queries import open_warehouse, said_by
from sinks.output_folder import current_snapshot
from transforms.errors import UserError

LONGEST = 20
"""So many of those who wait are read."""


@dataclass(frozen=True)
class PublishedResult:
    """What a published result says of those who wait.

    Attributes:
      commit_id: of its commit.
      committed_at: when it was made, UTC.
      as_of: the moment up to which time has passed in it, UTC; None where there is no event.
      waiting_turn_count: rows of waiting_now.
      waiting: the first LONGEST of them: all columns of waiting_now by name; moments in UTC.
    """

    commit_id: int
    committed_at: datetime
    as_of: datetime | None
    waiting_turn_count: int
    waiting: tuple[dict[str, Any], ...]


class Results:
    """Reads the published result of an output folder, again after each publish."""

    def __init__(self, output: Path) -> None:
        """Takes the folder."""
        self._output = output
        self._read: tuple[Path, PublishedResult] | None = None

    def latest(self) -> PublishedResult | None:
        """The result that the folder shows; None where there is none.

        Raises:
          UserError: it cannot be read.
        """
        snapshot = current_snapshot(self._output)
        if snapshot is None:
            return None
        if self._read is None or self._read[0] != snapshot:
            self._read = snapshot, _read(snapshot)
        return self._read[1]


def _read(snapshot: Path) -> PublishedResult:
    # In the snapshot itself, which stays until the second publish from now.
    with open_warehouse(snapshot) as warehouse:
        try:
            [run] = _rows(warehouse, "SELECT commit_id, committed_at, as_of FROM runs ORDER BY commit_id DESC LIMIT 1")
            waiting = _rows(warehouse, f"SELECT *, count(*) OVER () AS total FROM waiting_now LIMIT {LONGEST}")
        except duckdb.Error as error:
            raise UserError(
                f"Expected a result of this version in {snapshot}, but DuckDB says: {said_by(error)}: care-kpis check "
                "tells what is wrong with it."
            ) from error
    total = waiting[0]["total"] if waiting else 0
    rows = tuple({name: value for name, value in row.items() if name != "total"} for row in waiting)
    return PublishedResult(run["commit_id"], run["committed_at"], run["as_of"], total, rows)


def _rows(warehouse: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    found = warehouse.execute(query)
    names = [column[0] for column in found.description]
    return [
        {n: v.astimezone(UTC) if isinstance(v, datetime) else v for n, v in zip(names, row, strict=True)}
        for row in found.fetchall()
    ]
