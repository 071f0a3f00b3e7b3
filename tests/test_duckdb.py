"""The warehouse: types and comments, what the views say against plain Python, revisions, and refusals."""

from __future__ import annotations

import math
import resource
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinks.duckdb import append_run, build_warehouse, definitions_table, load_warehouse, revise
from sinks.parquet import write_partitioned, write_table
from sinks.views import MACROS, VIEWS, WINDOWS
from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.errors import UserError
from transforms.statistics import bucket_middle, bucket_of
from transforms.tables import (
    COMMIT_COLUMNS,
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TABLES,
    TURNS,
    WINDOW,
    Table,
)

GRAINS = ("hour", "day", "week", "month")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Fact = tuple[str, datetime, str | None, str, str, int]
"""basis, when, account, channel, statistic, and how much: a count, or whole millionths."""


def facts_of(seed: int, days: int = 40) -> list[Fact]:
    """Facts at random moments over some days, more of them on both bases than on one; some accounts are null."""
    random = Random(seed)
    facts = []
    for statistic in STATISTICS:
        for _ in range(60):
            at = datetime(2026, 2, 20, tzinfo=UTC) + timedelta(seconds=random.randrange(days * 86_400))
            where = random.choice(["activity", "opened"]), at, random.choice([None, "a", "b"]), random.choice("xyz")
            much = random.randrange(4) if statistic.kind == "count" else int(random.lognormvariate(18, 4))
            if statistic.name.startswith(("backlog", "waiting")):
                where = "activity", *where[1:]
            facts.append((*where, statistic.name, random.choice([0, much])))
    return facts


def window_of(grain: str, at: datetime, timezone: str) -> tuple[datetime, datetime]:
    """The window of an instant, by the calendar of Python; for zones without changes of clocks at midnight."""
    zone = ZoneInfo(timezone)
    local = at.astimezone(zone)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if grain == "hour":
        start = at.replace(minute=0, second=0, microsecond=0)
        return start, start + timedelta(hours=1)
    if grain == "week":
        day, end = day - timedelta(days=day.weekday()), day + timedelta(days=7 - day.weekday())
    elif grain == "month":
        day = day.replace(day=1)
        end = (day + timedelta(days=32)).replace(day=1)
    else:
        end = day + timedelta(days=1)
    return day.replace(tzinfo=zone).astimezone(UTC), end.replace(tzinfo=zone).astimezone(UTC)


def added_up(facts: Iterable[Fact]) -> dict[str, Any]:
    """Statistics of some facts: counts and millionths; of a histogram the sorted values."""
    out: dict[str, Any] = {s.name: [] if s.kind == "histogram" else 0 for s in STATISTICS}
    for *_, name, much in facts:
        if isinstance(out[name], list):
            out[name].append(much)
        else:
            out[name] += much
    return out


def value_of(kpi: Kpi, totals: dict[str, Any], basis: str = "activity") -> float | int | None:
    """A KPI by its definition, in plain Python."""
    above = totals[kpi.numerator]
    if kpi.kind == "percentile":
        if not above:
            return None
        rank = math.ceil(round(kpi.quantile * 100) * len(above) / 100)
        return float(bucket_middle(bucket_of(np.array(sorted(above))))[rank - 1]) / 1e6
    if kpi.kind == "count":
        return above
    below = totals[kpi.denominator]
    if kpi.kind == "change":
        return above - below if basis == "activity" else None
    if any(s.name == kpi.numerator and s.kind in ("seconds", "score") for s in STATISTICS):
        above /= 1e6
    return above / below if below else None


def grouped(facts: list[Fact], key: Any) -> dict[Any, dict[str, Any]]:
    """Statistics of the facts by a key that a function gives (None: left out)."""
    groups = defaultdict(list)
    for fact in facts:
        if (found := key(fact)) is not None:
            groups[found].append(fact)
    return {found: added_up(part) for found, part in groups.items()}


def tables_of(facts: list[Fact], timezone: str, as_of: datetime) -> tuple[pa.Table, pa.Table]:
    """`kpis` without the columns of the commit, and `kpi_statistics`, of some facts."""
    kpis, parts = [], []
    for grain in GRAINS:
        cells = grouped(facts, lambda f, g=grain: (f[0], *window_of(g, f[1], timezone), f[2], f[3]))
        for (basis, start, end, account, channel), totals in cells.items():
            row = {"basis": basis, "grain": grain, "window_start": start, "window_end": end}
            row |= {"account_id": account, "channel": channel, "is_complete": end <= as_of}
            kpis.append(row | {k.name: value_of(k, totals, basis) for k in KPIS if k.kind != "running"})
            for statistic in STATISTICS:
                if statistic.kind == "histogram":
                    buckets, counts = np.unique(bucket_of(np.array(totals[statistic.name], np.int64)), return_counts=True)
                    row[statistic.name] = [
                        {"bucket": b, "count": n} for b, n in zip(buckets.tolist(), counts.tolist(), strict=True)
                    ]
                else:
                    row[statistic.name] = totals[statistic.name] / (1e6 if statistic.kind in ("seconds", "score") else 1)
            parts.append(row)
    schema = pa.schema([f for f in KPI_TABLE.schema if f.name not in {c.name for c in COMMIT_COLUMNS}])
    order = [("window_start", "ascending"), ("channel", "ascending")]
    return (
        pa.Table.from_pylist(kpis, schema=schema).sort_by(order),
        pa.Table.from_pylist(parts, schema=KPI_STATISTICS.schema).sort_by(order),
    )


def run_row(commit_id: int = 1, as_of: datetime | None = NOON, timezone: str = "UTC", at: datetime = NOON) -> pa.Table:
    """One row of `runs`."""
    zeros = {pa.int64(): 0, pa.float64(): 0.0, pa.string(): "{}"}
    row = {c.name: zeros.get(c.type) for c in RUNS.columns}
    row |= {"commit_id": commit_id, "committed_at": at, "as_of": as_of, "timezone": timezone}
    return pa.Table.from_pylist([row], schema=RUNS.schema)


def conversations_of(rows: int) -> pa.Table:
    """Conversations that say little; a day apart."""
    zeros = {pa.int64(): 1, pa.float64(): 0.5, pa.string(): "x", pa.bool_(): True}
    row = {c.name: None if c.nullable else zeros.get(c.type, NOON) for c in CONVERSATIONS.columns}
    return pa.Table.from_pylist(
        [row | {"conversation_key": f'["é","{i}"]', "started_at": NOON + timedelta(days=i)} for i in range(rows)],
        schema=CONVERSATIONS.schema,
    )


def build(root: Path, facts: list[Fact], timezone: str, as_of: datetime, **more: Any) -> Path:
    """A whole result of some facts."""
    kpis, statistics = tables_of(facts, timezone, as_of)
    runs = more.pop("runs", run_row(as_of=as_of, timezone=timezone))
    letters = DEAD_LETTERS.schema.empty_table()
    return build_warehouse(root, kpis=kpis, kpi_statistics=statistics, dead_letters=letters, runs=runs, **more)


@contextmanager
def reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The warehouse as a reader opens it, in a session with another time zone than any of the tests."""
    with duckdb.connect(str(path), read_only=True) as connection:
        connection.execute("SET TimeZone = 'America/St_Johns'")
        yield connection


def rows_of(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Rows as dictionaries, instants in UTC."""
    table = connection.sql(sql).to_arrow_table()
    utc = [f.with_type(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(f.type) else f for f in table.schema]
    return table.cast(pa.schema(utc)).to_pylist()


WORLDS = [(1, "UTC"), (2, "Europe/Berlin"), (3, "Asia/Kathmandu")]
AS_OF = datetime(2026, 3, 30, 10, 30, tzinfo=UTC)


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: world[1])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Facts, their zone and the warehouse built from them; the zones cover changes of clocks and odd offsets."""
    seed, timezone = request.param
    facts = [f for f in facts_of(seed) if f[1] <= AS_OF]
    if timezone == "Asia/Kathmandu":
        # Its hours begin at a quarter past; whole hours of UTC would be cut elsewhere.
        facts = [(f[0], f[1].replace(minute=20), *f[2:]) for f in facts]
    root = tmp_path_factory.mktemp("result")
    return facts, timezone, build(root, facts, timezone, AS_OF) if timezone != "Asia/Kathmandu" else None


@pytest.fixture
def berlin(tmp_path: Path) -> tuple[list[Fact], Path]:
    """Facts around the change of clocks in Berlin, and the warehouse built from them."""
    facts = [f for f in facts_of(7) if f[1] <= AS_OF]
    return facts, build(tmp_path, facts, "Europe/Berlin", AS_OF)
