"""What the expectations look at: small frames that DuckDB makes of whole tables, and the rows that break a rule.

The frame of a table has its columns. In each stand the values that decide: the least and the greatest, every text of a
column that allows few, and a null where there is one. If these are as they should be, so are all rows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.audit.results import printable
from pipelines.audit.rules import RULES, Rule
from sinks.check import Finding, check_snapshot
from sinks.manifest import MANIFEST
from sinks.readings import Reading
from transforms.tables import TABLES, Table

AGREEMENT = "agreement"
"""The suite of what `care-kpis check` asks, too: is nothing lost, and do the parts agree?"""

ROWS = 20
"""So many of the rows that break a rule are named."""

TEXTS = 50
"""So many different texts of a column that allows few are looked at; the rare ones first."""

_OF_THE_FILES = ("manifest", "files", "unknown files")
"""Checks of what is there only once a result is published."""


def findings_of(snapshot: Path) -> list[Finding]:
    """What `care-kpis check` says of a result: of one that is published all of it, else what can be said already."""
    findings = check_snapshot(snapshot)
    if (snapshot / MANIFEST).exists():
        return findings
    return [finding for finding in findings if finding.check not in _OF_THE_FILES]


def agreement_frame(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row: of each check its state, and what was found where that is not "ok"."""
    said = {f.check: "ok" if f.state == "ok" else f"{f.state}: {escaped(f.found)}" for f in findings}
    return pd.DataFrame({check: [text] for check, text in said.items()}, dtype=object)


def table_frame(reading: Reading, table: Table) -> pd.DataFrame:
    """The values of a table that decide, under its columns as they are there."""
    found = reading.rows(f"SELECT column_name FROM (DESCRIBE {table.name})")
    columns = [str(row[0]) for row in found]
    rules = [rule for rule in RULES[table.name] if rule.column in columns]
    decisive = _decisive(reading, table.name, rules)
    return _frame({escaped(name): decisive.get(name, ["known"] if decisive else []) for name in columns})


def order_frame(reading: Reading) -> pd.DataFrame:
    """The least and greatest of the differences that must not be below zero."""
    decisive: dict[str, list[Any]] = {}
    rules = [rule for rule in RULES["order"] if reading.why_not(rule.table) is None]
    for source in dict.fromkeys(rule.source for rule in rules):
        of_source = [rule for rule in rules if rule.source == source]
        decisive |= _decisive(reading, source, of_source) or {rule.column: [] for rule in of_source}
    return _frame(decisive)


def broken_rows(reading: Reading, rule: Rule) -> tuple[int, tuple[str, ...]]:
    """How many rows break a rule, and the keys of the first of them."""
    keys = ", ".join(rule.table.key)
    broken = f"FROM {rule.source} WHERE {rule.broken}"
    count = reading.rows(f"SELECT count(*) {broken}")[0][0]
    rows = reading.rows(f"SELECT {keys}, {rule.sql} AS value {broken} ORDER BY ALL LIMIT {ROWS}")
    return count, tuple(_named((*rule.table.key, rule.column), row) for row in rows)


def _decisive(reading: Reading, source: str, rules: Sequence[Rule]) -> dict[str, list[Any]]:
    """The deciding values by column; nothing where there is no row."""
    asked = []
    for rule in rules:
        if rule.kind == "known":
            asked.append(f"count(*) - count({rule.sql})")
        elif rule.kind == "range":
            asked.append(f"[min({rule.sql}), max({rule.sql})]")
        else:
            asked.append(f"histogram({rule.sql})")
    row = reading.rows(f"SELECT count(*), {', '.join(asked)} FROM {source}")[0]
    found: dict[str, list[Any]] = {}
    for rule, said in zip(rules, row[1:], strict=True):
        values = found.setdefault(rule.column, [])
        if rule.kind == "known":
            values += [None] if said else []
        elif rule.kind == "range":
            # What is not a number is no missing value either.
            values += [math.inf if isinstance(v, float) and math.isnan(v) else v for v in said or ()]
        else:
            values += [escaped(text) for text in sorted(said or {}, key=lambda text: (said[text], text))[:TEXTS]]
    if not row[0]:
        return {}
    return {name: values or ["known"] for name, values in found.items()}


def _frame(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Columns of unlike length side by side; a short one goes on with a value that it has."""
    longest = max(map(len, columns.values()), default=0)
    full = {name: [*values, *values[:1] * (longest - len(values))] for name, values in columns.items()}
    series = {
        name: pd.Series(values, dtype="datetime64[us, UTC]" if _are_times(values) else None if values else object)
        for name, values in full.items()
    }
    return pd.DataFrame(series)


def _are_times(values: Sequence[Any]) -> bool:
    return any(isinstance(value, datetime) for value in values)


def escaped(text: str) -> str:
    """Text for pages that show it as it is: Data Docs do not escape the values that they show."""
    return html.escape(printable(text))


def _named(names: Sequence[str], row: Sequence[Any]) -> str:
    """A row by its key, and the value that breaks the rule."""
    said = []
    for name, value in zip(names, row, strict=True):
        shown = value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        said.append(f"{name} {'null' if shown is None else shown}")
    return printable(", ".join(said))[:500]


def readable_tables(reading: Reading) -> list[Table]:
    """The tables of which one copy can be used."""
    return [table for table in TABLES if reading.why_not(table) is None]
