"""What every value of a table has to fulfil, made from the definitions of tables and KPIs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sinks.sql import sql_text
from transforms.definitions import KPIS, STATISTICS
from transforms.schema import REASONS, TIMESTAMP, Column
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

Kind = Literal["known", "range", "set"]
Bound = float | datetime | None

FINITE = sys.float_info.max
_FIRST, _LAST = datetime(1969, 12, 1, tzinfo=UTC), datetime(2101, 3, 1, tzinfo=UTC)
"""Events are of 1970 to 2100; the weeks and months that they fall into reach a little further."""

_VALUES = {
    "basis": ("opened", "activity"),
    "grain": ("hour", "day", "week", "month"),
    "state": ("open", "resolved", "dismissed"),
    "outcome": ("answered", "resolved", "dismissed", "waiting"),
    "stage": ("read", "parse", "pair"),
    "reason": REASONS,
}
_FROM_ONE = ("commit_id", "revision", "turn_number")
_DIFFERENCES = (
    "rows_read_count",
    "events_kept_count",
    "dead_letter_count",
    "exact_duplicate_count",
    "late_event_count",
    "stray_event_count",
)
"""Counts of `runs` that tell what a commit adds: a later copy of an event may take one away."""

_BY_UNIT: dict[str, tuple[float, float | None]] = {
    "count": (0, None),
    "seconds": (0.0, FINITE),
    "rate": (0.0, 1.0),
    "score": (1.0, 5.0),
}
_UNITS = {"count": "count", "millionths": "count", "row": "count", "seconds": "seconds", "rate": "rate"}
"""Unit of a column by the last word of its name."""

_KPIS = {kpi.name: kpi for kpi in KPIS}
_KINDS = {statistic.name: statistic.kind for statistic in STATISTICS}

_NOT_BEFORE = (
    (CONVERSATIONS, "last_event_at", "started_at"),
    (CONVERSATIONS, "opened_at", "started_at"),
    (CONVERSATIONS, "first_response_at", "opened_at"),
    (CONVERSATIONS, "first_reply_at", "opened_at"),
    (TURNS, "turn_ended_at", "turn_started_at"),
    (KPI_STATISTICS, "window_end", "window_start"),
    (KPI_TABLE, "window_end", "window_start"),
)
"""Times of a row of which the first is never before the second."""


@dataclass(frozen=True)
class Rule:
    """What the values of a column, or of an expression, have to fulfil.

    Attributes:
      table: whose rows.
      column: what the value is called.
      sql: the value, over a row of `source`.
      source: SQL name of the rows.
      kind: known (not null), range (from low to high, where known) or set (one of some texts, where known).
      sentence: what has to hold.
      low: least value allowed; None: none.
      high: greatest value allowed; None: none.
      values: texts allowed.
    """

    table: Table
    column: str
    sql: str
    source: str
    kind: Kind
    sentence: str
    low: Bound = None
    high: Bound = None
    values: tuple[str, ...] = ()

    @property
    def broken(self) -> str:
        """SQL that is true of the rows that break it."""
        if self.kind == "known":
            return f"({self.sql}) IS NULL"
        if self.kind == "set":
            return f"({self.sql}) NOT IN ({', '.join(map(sql_text, self.values))})"
        limits = [f"({self.sql}) {sign} {_literal(bound)}" for sign, bound in ((">=", self.low), ("<=", self.high))]
        kept = " AND ".join(limit for limit, b in zip(limits, (self.low, self.high), strict=True) if b is not None)
        # Parquet does not tell of values that are no numbers, so that DuckDB passes them over unread unless as text.
        no_number = f"({self.sql})::VARCHAR = 'nan' OR " if isinstance(self.low, float) else ""
        return f"({self.sql}) IS NOT NULL AND ({no_number}NOT ({kept}))"


def column_rules(table: Table) -> list[Rule]:
    """What each column of a table has to fulfil, by its name, type and definition."""
    return [rule for column in table.columns for rule in _of_column(table, column)]


def order_rules() -> list[Rule]:
    """Times in their order, percentiles that rise, and running sums that are never below zero."""
    rules = [
        Rule(
            table,
            f"{table.name}: {after} - {before}",
            f"epoch({after}) - epoch({before})",
            table.name,
            "range",
            f"{after} is not before {before}.",
            1.0 if before == "window_start" else 0.0,
        )
        for table, after, before in _NOT_BEFORE
    ]
    for histogram in dict.fromkeys(kpi.numerator for kpi in KPIS if kpi.kind == "percentile"):
        percentiles = sorted((k for k in KPIS if k.numerator == histogram), key=lambda kpi: kpi.quantile or 0)
        for low, high in itertools.pairwise(kpi.name for kpi in percentiles):
            name, sentence = f"{KPI_TABLE.name}: {high} - {low}", f"{high} is not below {low}."
            rules.append(Rule(KPI_TABLE, name, f"{high} - {low}", KPI_TABLE.name, "range", sentence, 0.0))
    # A running sum is not stored: the view of the warehouse makes it.
    rules += [
        Rule(
            KPI_TABLE,
            f"{KPI_TABLE.name}: {kpi.name}",
            kpi.name,
            f"warehouse.{KPI_TABLE.name}",
            "range",
            f"{kpi.label} is never below zero.",
            0,
        )
        for kpi in KPIS
        if kpi.kind == "running"
    ]
    return rules


def _of_column(table: Table, column: Column) -> Iterator[Rule]:
    name = column.name
    if not column.nullable:
        yield Rule(table, name, name, table.name, "known", f"{name} is known in each row.")
    if name in _VALUES:
        values = _VALUES[name]
        yield Rule(table, name, name, table.name, "set", f"{name} is one of {', '.join(values)}.", values=values)
    limits = _limits(table, column)
    if limits is not None:
        yield Rule(table, name, name, table.name, "range", _in_words(name, *limits), *limits)


def _limits(table: Table, column: Column) -> tuple[Bound, Bound] | None:
    """The least and the greatest value of a column; None where it has none."""
    name = column.name
    if column.type == TIMESTAMP:
        return _FIRST, _LAST
    if name in _KPIS and table in (KPI_TABLE, KPI_CHANGES):
        return None if _KPIS[name].kind == "change" else _BY_UNIT[_KPIS[name].unit]
    if table == RUNS and name in _DIFFERENCES:
        return None
    if table == KPI_STATISTICS and name in _KINDS:
        return {"histogram": None, "count": (0, None)}.get(_KINDS[name], (0.0, FINITE))
    if name in _FROM_ONE:
        return 1, None
    if name == "csat_score":
        return _BY_UNIT["score"]
    unit = _UNITS.get(name.rpartition("_")[2])
    return None if unit is None else _BY_UNIT[unit]


def _in_words(name: str, low: Bound, high: Bound) -> str:
    if isinstance(low, datetime) and isinstance(high, datetime):
        return f"{name} lies from {low.date()} to {high.date()}."
    if high is None:
        return f"{name} is {low:g} or more."
    return f"{name} is {low:g} or more, and finite." if high == FINITE else f"{name} is from {low:g} to {high:g}."


def _literal(bound: Bound) -> str:
    if isinstance(bound, datetime):
        return f"TIMESTAMPTZ {sql_text(bound.isoformat())}"
    return f"{bound!r}::DOUBLE" if isinstance(bound, float) else str(bound)


RULES: dict[str, list[Rule]] = {**{table.name: column_rules(table) for table in TABLES}, "order": order_rules()}
"""Every rule by its suite: one for each table, and one for values that stand in an order."""
