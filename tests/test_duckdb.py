"""The warehouse: types and comments, what the views say against plain Python, and refusals."""

from __future__ import annotations

import math
import resource
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinks.duckdb import build_warehouse, definitions_table, load_warehouse
from sinks.macros import MACROS
from sinks.parquet import write_partitioned
from sinks.views import VIEWS, WINDOWS
from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.errors import UserError
from transforms.histograms import bucket_middle, bucket_of
from transforms.tables import (
    COMMIT_COLUMNS,
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    MILLIONTHS,
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
        start = local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
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
                    buckets, counts = np.unique(
                        bucket_of(np.array(totals[statistic.name], np.int64)), return_counts=True
                    )
                    row[statistic.name] = [
                        {"bucket": b, "count": n} for b, n in zip(buckets.tolist(), counts.tolist(), strict=True)
                    ]
                else:
                    row[statistic.name] = totals[statistic.name] / (
                        1e6 if statistic.kind in ("seconds", "score") else 1
                    )
                    if statistic.name in MILLIONTHS:
                        row[MILLIONTHS[statistic.name]] = totals[statistic.name]
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


AS_OF = datetime(2026, 3, 30, 10, 30, tzinfo=UTC)
"""The day after the change of clocks in Berlin."""

World = tuple[list[Fact], str, Path]


@pytest.fixture(scope="module", params=["UTC", "Europe/Berlin", "Asia/Kathmandu"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Facts, a zone and the warehouse built from them: no change of clocks, one, and hours that begin at 15 past."""
    facts = [f for f in facts_of(len(request.param)) if f[1] <= AS_OF]
    return facts, request.param, build(tmp_path_factory.mktemp("result"), facts, request.param, AS_OF)


class Running:
    """Running sums of changes in plain Python, over all facts of the activity basis or those of one place."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        """Sorts the moves of each kind."""
        self._moves: dict[str, tuple[list[datetime], list[int]]] = {}
        facts = sorted((f for f in facts if f[0] == "activity"), key=lambda f: f[1])
        for change in (k for k in KPIS if k.kind == "change"):
            moves = [f for f in facts if f[4] in (change.numerator, change.denominator)]
            steps = (f[5] if f[4] == change.numerator else -f[5] for f in moves)
            self._moves[change.name] = [f[1] for f in moves], [0, *accumulate(steps)]

    def before(self, end: datetime) -> dict[str, int]:
        """Every running KPI at the end of a window: all moves before it."""
        return {
            k.name: self._moves[k.numerator][1][bisect_left(self._moves[k.numerator][0], end)]
            for k in KPIS
            if k.kind == "running"
        }


def places(facts: Iterable[Fact]) -> dict[tuple[str | None, str], Running]:
    """Running sums by account and channel."""
    parts = defaultdict(list)
    for fact in facts:
        parts[fact[2], fact[3]].append(fact)
    return {place: Running(part) for place, part in parts.items()}


NOTHING_RUNS = {k.name: None for k in KPIS if k.kind == "running"}
"""What the opened basis has."""


def picked(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some columns of a row."""
    return {name: row[name] for name in names}


def test_kpis_are_the_stored_rows_and_running_sums(world: World) -> None:
    """`kpis` has the contract's columns in order, the values as handed over, and backlog and waiting at each end."""
    facts, timezone, path = world
    stored, _ = tables_of(facts, timezone, AS_OF)
    sums = places(facts)
    names = [c.name for c in WINDOW] + ["is_complete"] + [k.name for k in KPIS] + [c.name for c in COMMIT_COLUMNS]
    with reading(path) as connection:
        assert connection.sql("FROM kpis").columns == names
        found = rows_of(connection, "FROM kpis")
    key = ("basis", "grain", "window_start", "account_id", "channel")
    expected = {tuple(row[name] for name in key): row for row in stored.to_pylist()}
    assert len(found) == len(expected)
    for row in found:
        meant = expected[tuple(row[name] for name in key)]
        assert {name: row[name] for name in meant} == meant
        assert (row["revision"], row["changed_at"]) == (1, NOON)
        at_end = sums[row["account_id"], row["channel"]].before(row["window_end"])
        assert picked(row, NOTHING_RUNS) == (at_end if row["basis"] == "activity" else NOTHING_RUNS)


def test_all_channels(world: World) -> None:
    """`kpis_all_channels` equals the facts of all accounts and channels together, percentiles too."""
    facts, timezone, path = world
    sums = Running(facts)
    with reading(path) as connection:
        found = rows_of(connection, "FROM kpis_all_channels")
    for grain in GRAINS:
        cells = grouped(facts, lambda f, g=grain: (f[0], *window_of(g, f[1], timezone)))
        rows = {(r["basis"], r["window_start"], r["window_end"]): r for r in found if r["grain"] == grain}
        assert rows.keys() == cells.keys()
        for (basis, start, end), totals in cells.items():
            row = rows[basis, start, end]
            assert row["is_complete"] == (end <= AS_OF)
            values = {kpi.name: value_of(kpi, totals, basis) for kpi in KPIS if kpi.kind != "running"}
            assert picked(row, values) == values
            assert picked(row, NOTHING_RUNS) == (sums.before(end) if basis == "activity" else NOTHING_RUNS)


def test_dense_fills_the_holes(world: World) -> None:
    """`kpis_dense` keeps every row of `kpis`, has every window up to as_of's, and carries backlog and waiting on."""
    facts, timezone, path = world
    with reading(path) as connection:
        sparse, dense = rows_of(connection, "FROM kpis"), rows_of(connection, "FROM kpis_dense")
    names = ("basis", "grain", "account_id", "channel")
    by_key = {tuple(row[name] for name in (*names, "window_start")): row for row in dense}
    assert len(by_key) == len(dense)
    for row in sparse:
        assert by_key.pop(tuple(row[name] for name in (*names, "window_start"))) == row
    sums = places(facts)
    filled = {
        "activity": {k.name: 0 if k.kind in ("count", "change") else None for k in KPIS},
        "opened": {k.name: 0 if k.kind == "count" else None for k in KPIS},
    }
    for row in by_key.values():
        assert row["is_complete"] == (row["window_end"] <= AS_OF)
        meant = dict(filled[row["basis"]])
        if row["basis"] == "activity":
            meant |= sums[row["account_id"], row["channel"]].before(row["window_end"])
        assert picked(row, meant) == meant
    series = defaultdict(list)
    for row in dense:
        series[tuple(row[name] for name in names)].append((row["window_start"], row["window_end"]))
    firsts: dict[tuple[Any, ...], datetime] = {}
    for row in sorted(sparse, key=lambda row: row["window_start"]):
        firsts.setdefault(tuple(row[name] for name in names), row["window_start"])
    for key, windows in series.items():
        windows.sort()
        assert windows[0][0] == firsts[key] and windows[-1] == window_of(key[1], AS_OF, timezone)
        assert all(before[1] == after[0] for before, after in pairwise(windows))


def test_latest_day(world: World) -> None:
    """`kpis_latest_day` is the day before as_of's, one row per account and channel, with the backlog of each."""
    facts, timezone, path = world
    today, _ = window_of("day", AS_OF, timezone)
    start, end = window_of("day", today - timedelta(hours=1), timezone)
    with reading(path) as connection:
        found = rows_of(connection, "FROM kpis_latest_day")
    sums = places(f for f in facts if f[0] == "activity" and f[1] < end)
    assert {(r["account_id"], r["channel"]) for r in found} == sums.keys() and len(found) == len(sums)
    cells = grouped(facts, lambda f: (f[2], f[3]) if f[0] == "activity" and start <= f[1] < end else None)
    for row in found:
        assert (row["window_start"], row["window_end"], row["is_complete"]) == (start, end, True)
        place = row["account_id"], row["channel"]
        totals = cells.get(place, added_up([]))
        values = {kpi.name: value_of(kpi, totals) for kpi in KPIS if kpi.kind != "running"}
        assert picked(row, values) == values
        assert picked(row, NOTHING_RUNS) == sums[place].before(end)


def test_last_28_days(world: World) -> None:
    """`kpis_last_28_days` equals the facts of the 28 days before as_of's day, per channel and for all of them."""
    facts, timezone, path = world
    end, _ = window_of("day", AS_OF, timezone)
    start = end
    for _ in range(28):
        start, _ = window_of("day", start - timedelta(hours=1), timezone)
    with reading(path) as connection:
        found = {row["channel"]: row for row in rows_of(connection, "FROM kpis_last_28_days")}
    assert list(found) == ["x", "y", "z", None]
    for channel, row in found.items():
        part = [f for f in facts if f[0] == "activity" and channel in (None, f[3])]
        totals = added_up(f for f in part if start <= f[1] < end)
        assert (row["window_start"], row["window_end"], row["day_count"]) == (start, end, 28)
        values = {kpi.name: value_of(kpi, totals) for kpi in KPIS if kpi.kind != "running"}
        assert picked(row, values) == values
        assert picked(row, NOTHING_RUNS) == Running(part).before(end)


def test_periods_of_a_young_result(tmp_path: Path) -> None:
    """Before the first day is complete there is no latest day and no period; after two days the period has two."""
    facts: list[Fact] = [("activity", NOON, None, "x", "message_count", 1)]
    with reading(build(tmp_path, facts, "UTC", NOON)) as connection:
        assert rows_of(connection, "FROM kpis_latest_day") == rows_of(connection, "FROM kpis_last_28_days") == []
        assert len(rows_of(connection, "FROM kpis_dense")) == 4
    (tmp_path / "later").mkdir()
    with reading(build(tmp_path / "later", facts, "UTC", NOON + timedelta(days=2))) as connection:
        assert [r["day_count"] for r in rows_of(connection, "FROM kpis_last_28_days")] == [2, 2]
        assert [r["message_count"] for r in rows_of(connection, "FROM kpis_latest_day")] == [0]


def test_result_without_any_event(tmp_path: Path) -> None:
    """No as_of and no rows: every table and view is there, and empty but for the run and the definitions."""
    path = build(tmp_path, [], "UTC", NOON, runs=run_row(as_of=None))
    with reading(path) as connection:
        counts = {n: connection.sql(f"FROM {n}").to_arrow_table().num_rows for n in names_of(connection)}
    assert {name for name, count in counts.items() if count} == {"runs", "kpi_definitions"}
    assert set(counts) == {t.name for t in TABLES} | {v.name for v in VIEWS} | {"kpi_values", "windows"}


def names_of(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """All tables and views."""
    return [row[0] for row in connection.sql("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall()]


def test_everything_has_its_comment_and_type(tmp_path: Path) -> None:
    """Tables, views, columns and macros carry their sentences; types and NOT NULL are those of the specification."""
    with reading(build(tmp_path, facts_of(1), "UTC", AS_OF)) as connection:
        for kind in ("tables", "views", "columns"):
            silent = f"SELECT * FROM duckdb_{kind}() WHERE NOT internal AND coalesce(comment, '') = ''"
            assert connection.sql(silent).fetchall() == []
        macros = "SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal"
        assert dict(connection.sql(macros).fetchall()) == {macro.name: macro.sentence for macro in MACROS}
        columns = connection.sql(
            "SELECT table_name, column_name, comment, is_nullable, data_type FROM duckdb_columns() "
            "WHERE NOT internal ORDER BY table_name, column_index"
        ).fetchall()
        found = defaultdict(list)
        for table, *column in columns:
            found[table].append(tuple(column))
        indexed = connection.sql(
            "SELECT table_name FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
        ).fetchall()
    types = {"string": "VARCHAR", "int64": "BIGINT", "int32": "INTEGER", "double": "DOUBLE", "bool": "BOOLEAN"}
    types["timestamp[us, tz=UTC]"] = "TIMESTAMP WITH TIME ZONE"
    for spec in (*TABLES, WINDOWS):
        assert found["kpi_values" if spec is KPI_TABLE else spec.name] == [
            (c.name, c.description, c.nullable, types.get(str(c.type), "STRUCT(bucket SMALLINT, count INTEGER)[]"))
            for c in spec.columns
        ]
    for view in VIEWS:
        assert [c[:2] + c[3:] for c in found[view.name]] == [
            (c.name, c.description, types[str(c.type)]) for c in view.columns
        ], view.name
    assert {row[0] for row in indexed} == {"runs", "kpi_definitions"}


def test_definitions(tmp_path: Path) -> None:
    """`kpi_definitions` has a row per KPI, named as the column of `kpis` that it explains."""
    rows = definitions_table().to_pylist()
    assert [row["name"] for row in rows] == [kpi.name for kpi in KPIS]
    with reading(build(tmp_path, [], "UTC", NOON)) as connection:
        assert rows_of(connection, "FROM kpi_definitions") == rows
        sql = (
            "SELECT count(*) FROM duckdb_columns() JOIN kpi_definitions ON column_name = name WHERE table_name = 'kpis'"
        )
        assert connection.sql(sql).fetchall() == [(len(KPIS),)]


def test_macros(tmp_path: Path) -> None:
    """A bucket's seconds are those of the kernel; percentiles are nearest rank; histograms are put together."""
    with reading(build(tmp_path, [], "UTC", NOON)) as connection:
        buckets = connection.sql("SELECT bucket_seconds(b::SMALLINT) FROM range(3200) t(b)").fetchall()
        assert [row[0] for row in buckets] == (bucket_middle(np.arange(3200)) / 1e6).tolist()
        random = np.random.default_rng(3)
        for rows in (1, 2, 10, 20, 99, 100, 1000):
            values = np.sort((random.lognormal(18, 3, rows)).astype(np.int64)) * random.integers(0, 2, rows)
            values.sort()
            middles = bucket_middle(bucket_of(values)) / 1e6
            bins, counts = np.unique(bucket_of(values), return_counts=True)
            pairs = [f"{{'bucket': {b}::SMALLINT, 'count': {n}::BIGINT}}" for b, n in zip(bins, counts, strict=True)]
            halves = [[{"b": b, "n": n // 2}, {"b": b, "n": n - n // 2}] for b, n in zip(bins, counts, strict=True)]
            split = [f"{{'bucket': {h['b']}::SMALLINT, 'count': {h['n']}::BIGINT}}" for two in halves for h in two]
            random.shuffle(split)
            one, two = f"[{', '.join(pairs)}]", f"[{', '.join(split)}]"
            for percent in (1, 50, 90, 95, 99, 100):
                rank = math.ceil(percent * rows / 100)
                sql = f"SELECT histogram_percentile(h, {percent / 100}) FROM (SELECT unnest([{one}, {two}]) AS h)"
                assert connection.sql(sql).fetchall() == [(middles[rank - 1],)] * 2
            merged = connection.sql(f"SELECT merge_histograms([{two}, {one}])").fetchall()[0][0]
            assert merged == [
                {"bucket": b, "count": 2 * n} for b, n in zip(bins.tolist(), counts.tolist(), strict=True)
            ]
        none = "SELECT histogram_percentile([]::STRUCT(bucket SMALLINT, count INTEGER)[], 0.5)"
        assert connection.sql(none).fetchall() == [(None,)]


def test_facts_come_from_their_files(tmp_path: Path) -> None:
    """Conversations in months and parts and an empty turns end up in the warehouse as they are in the files."""
    table = conversations_of(50)
    for part, slice_ in enumerate((table.slice(0, 20), table.slice(20))):
        write_partitioned(slice_, tmp_path / "conversations", CONVERSATIONS, "started_at", str(part))
    with reading(build(tmp_path, [], "UTC", NOON)) as connection:
        assert rows_of(connection, "FROM conversations ORDER BY started_at") == table.to_pylist()
        assert rows_of(connection, "FROM turns") == []
    arrow = load_warehouse(tmp_path / "arrow.duckdb", {**empty_tables(), CONVERSATIONS: table})
    with reading(arrow) as connection:
        assert rows_of(connection, "FROM conversations") == table.to_pylist()


def empty_tables() -> dict[Table, pa.Table]:
    """Every published table, without rows but for a run."""
    return {spec: run_row() if spec is RUNS else spec.schema.empty_table() for spec in TABLES}


def test_parquet_files_of_a_result(tmp_path: Path) -> None:
    """All other tables are written as Parquet with the rows that the warehouse has."""
    build(tmp_path, facts_of(4), "UTC", AS_OF)
    with reading(tmp_path / "care.duckdb") as connection:
        for spec in (KPI_TABLE, KPI_STATISTICS, KPI_DEFINITIONS, DEAD_LETTERS, LATE_EVENTS, RUNS):
            name = "kpi_values" if spec is KPI_TABLE else spec.name
            files = list((tmp_path / spec.name).rglob("*.parquet"))
            rows = sum(pq.read_metadata(file).num_rows for file in files)
            assert connection.sql(f"SELECT count(*) FROM {name}").fetchall() == [(rows,)]
            hive = "window_month=2026-02" if spec in (KPI_TABLE, KPI_STATISTICS) else spec.name
            assert any(file.parent.name == hive for file in files) or not rows


def test_odd_folder_and_leftovers(tmp_path: Path) -> None:
    """Brackets, quotes and stars in the path, and a file and log of a dead run in the way, change nothing."""
    root = tmp_path / 'it\'s [a] *odd* "one"'
    root.mkdir()
    (tmp_path / 'it\'s a *odd* "one"').mkdir()
    (root / "care.duckdb").write_bytes(b"half a file")
    (root / "care.duckdb.wal").write_bytes(b"half a log")
    write_partitioned(conversations_of(3), root / "conversations", CONVERSATIONS, "started_at", "0")
    path = build(root, [], "UTC", NOON)
    with reading(path) as connection:
        assert connection.sql("SELECT count(*) FROM conversations").fetchall() == [(3,)]
    assert not path.with_name("care.duckdb.wal").exists()


def test_refuses_what_the_specification_does_not_say(tmp_path: Path) -> None:
    """A null where none may be is an error of the program that names the column."""
    kpis, statistics = tables_of([], "UTC", NOON)
    bad = run_row().set_column(4, "timezone", pa.nulls(1, pa.string()))
    with pytest.raises(ValueError, match=r"no null in runs\.timezone"):
        build_warehouse(
            tmp_path, kpis=kpis, kpi_statistics=statistics, dead_letters=DEAD_LETTERS.schema.empty_table(), runs=bad
        )


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """No folder, or no room, gives one sentence with the file and what to do."""
    with pytest.raises(UserError, match=r"Expected to write .*gone/care\.duckdb"):
        load_warehouse(tmp_path / "gone" / "care.duckdb", empty_tables())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match=r"care\.duckdb.*free some space"):
            load_warehouse(tmp_path / "care.duckdb", {**empty_tables(), CONVERSATIONS: conversations_of(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_turns_are_loaded_in_two_threads(tmp_path: Path) -> None:
    """More rows than a row group, in several files, are all there once."""
    rows = 300_000
    zeros = {pa.string(): pa.array(["x"]), pa.int64(): pa.array([1]), pa.bool_(): pa.array([True])}
    columns = {
        c.name: pa.nulls(rows, c.type) if c.nullable else pa.repeat(zeros[c.type][0], rows)
        for c in TURNS.columns
        if not pa.types.is_timestamp(c.type) and c.name != "turn_number"
    }
    instants = pa.array(np.arange(rows) * 60_000_000).cast(TURNS.schema.field("started_at").type)
    columns |= {c.name: instants for c in TURNS.columns if pa.types.is_timestamp(c.type)}
    table = pa.table({"turn_number": pa.array(np.arange(rows)), **columns})
    write_partitioned(table, tmp_path / "turns", TURNS, "started_at", "0")
    with reading(build(tmp_path, [], "UTC", NOON)) as connection:
        sql = "SELECT count(*), count(DISTINCT turn_number), sum(turn_number)::BIGINT FROM turns"
        assert connection.sql(sql).fetchall() == [(rows, rows, rows * (rows - 1) // 2)]
