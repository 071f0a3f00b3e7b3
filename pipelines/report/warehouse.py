"""A published result, opened to be read: its latest run, and the statistics of the accounts and channels asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from pipelines.audit.results import Mark, read_mark
from pipelines.report.period import Grain, Period, period_of
from sinks.output_folder import WAREHOUSE, current_snapshot
from sinks.views import KPI_VALUES, WINDOWS
from transforms.errors import UserError
from transforms.tables import CONVERSATIONS, KPI_CHANGES, KPI_STATISTICS, RUNS, TURNS

PARTS, TALKS, WAITS = "report_parts", "report_conversations", "report_turns"
"""Views of the session: kpi_statistics (activity basis), conversations and turns of the accounts and channels asked."""

VALUES, CHANGES = "report_values", "report_changes"
"""The same of kpi_values and kpi_changes (activity basis, days)."""

_WANTED = {"account_id": "report_accounts", "channel": "report_channels"}
_NEEDED = (KPI_STATISTICS.name, CONVERSATIONS.name, TURNS.name, KPI_CHANGES.name, RUNS.name, WINDOWS.name, KPI_VALUES)


@dataclass(frozen=True)
class Filters:
    """Which rows a report is about; no name means all, and the empty name of an account means the one that is null."""

    accounts: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def as_json(self) -> str:
        """One text for each choice, whatever the order in which it was made."""
        return json.dumps([sorted(set(self.accounts)), sorted(set(self.channels))], ensure_ascii=True)


@dataclass(frozen=True)
class Warehouse:
    """An open result.

    Attributes:
      connection: read-only; its session has the views PARTS, TALKS, WAITS, VALUES and CHANGES.
      run: the latest row of `runs`.
      audit: the mark that the result was published with; None where none is on record.
      known_from: first local day in which anything fell; None where there is none.
      known_to: the local day of as_of; None where there is none.
    """

    connection: duckdb.DuckDBPyConnection
    run: dict[str, Any]
    audit: Mark | None
    known_from: date | None
    known_to: date | None

    @property
    def zone(self) -> str:
        """IANA zone in which the windows are cut."""
        return str(self.run["timezone"])

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """The rows of a query as mappings; moments are in UTC."""
        found = self.connection.execute(query, list(values))
        names = [column[0] for column in found.description]
        return [
            {n: v.astimezone(UTC) if isinstance(v, datetime) else v for n, v in zip(names, row, strict=True)}
            for row in found.fetchall()
        ]

    def latest(self, grain: Grain) -> Period | None:
        """The latest complete period of a grain; None where there is none yet."""
        found = self.rows("SELECT max(window_start) AS at FROM windows WHERE grain = ? AND is_complete", grain)[0]["at"]
        return found and period_of(found.astimezone(ZoneInfo(self.zone)).date(), grain, self.zone)


def open_warehouse(output: Path, filters: Filters) -> Warehouse:
    """Opens care.duckdb of a published result.

    Args:
      output: the folder that a run wrote.
      filters: what the report is about.

    Raises:
      UserError: there is no result, it is of another version, or an account or channel is not in it.
    """
    snapshot = current_snapshot(output)
    path = (snapshot or output) / WAREHOUSE
    if not path.is_file():
        raise UserError(
            f"Expected a result with {WAREHOUSE} in {output}, but there is none: name the folder that a run wrote as "
            "--output."
        )
    try:
        connection = duckdb.connect(str(path), read_only=True)
        return _prepared(connection, output, filters, read_mark(snapshot or output))
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Expected to read {output / WAREHOUSE}, but DuckDB says {reason!r}: see what is wrong by care-kpis check, "
            "and put it right by care-kpis rebuild."
        ) from error


def _prepared(connection: duckdb.DuckDBPyConnection, output: Path, filters: Filters, audit: Mark | None) -> Warehouse:
    there = {row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    missing = sorted(set(_NEEDED) - there)
    if missing:
        raise UserError(
            f"Expected a result of this version in {output}, but it has no table {missing[0]}: run "
            "care-kpis batch again."
        )
    run = connection.execute(f"SELECT * FROM {RUNS.name} ORDER BY commit_id DESC LIMIT 1")
    names, rows = [column[0] for column in run.description], run.fetchall()
    if not rows:
        raise UserError(f"Expected a result with a run in {output}, but its table runs is empty: run care-kpis batch.")
    said = dict(zip(names, rows[0], strict=True))
    connection.execute(f"SET TimeZone = '{ZoneInfo(said['timezone']).key}'")
    condition = _filter(connection, output, {"account_id": filters.accounts, "channel": filters.channels})
    for name, source, where in (
        (PARTS, KPI_STATISTICS.name, f"basis = 'activity' AND {condition}"),
        (TALKS, CONVERSATIONS.name, condition),
        (WAITS, TURNS.name, condition),
        (VALUES, KPI_VALUES, f"basis = 'activity' AND grain = 'day' AND {condition}"),
        (CHANGES, KPI_CHANGES.name, f"basis = 'activity' AND grain = 'day' AND {condition}"),
    ):
        connection.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM {source} WHERE {where}")
    known = connection.execute(
        "SELECT min(window_start)::DATE, max(window_start)::DATE FROM windows WHERE grain = 'day'"
    ).fetchall()
    return Warehouse(connection, said, audit, *known[0])


def _filter(connection: duckdb.DuckDBPyConnection, output: Path, wanted: dict[str, Sequence[str]]) -> str:
    """SQL that is true of the rows asked for; the names wait in tables of the session, never in the text of a query."""
    conditions = ["true"]
    for column, names in wanted.items():
        if not names:
            continue
        connection.execute(f"CREATE TEMP TABLE {_WANTED[column]} (name VARCHAR)")
        connection.executemany(f"INSERT INTO {_WANTED[column]} VALUES (?)", [[name] for name in names])
        # (No account and no channel has an empty name: empty text is null.)
        stored = f"SELECT DISTINCT coalesce({column}, '') FROM {KPI_VALUES} ORDER BY 1"
        known = [row[0] for row in connection.execute(stored).fetchall()]
        unknown = sorted(set(names) - set(known))
        if unknown:
            what = "account" if column == "account_id" else "channel"
            those = ", ".join(name or "'' for none" for name in known[:20]) or "none"
            raise UserError(
                f"Expected --{what} to be one of those in {output} ({those}), got {unknown[0]!r}: correct the name."
            )
        conditions.append(f"coalesce({column}, '') IN (SELECT name FROM {_WANTED[column]})")
    return " AND ".join(conditions)
