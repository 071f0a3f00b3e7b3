"""The yardsticks of the bench make what the kernels make, row for row."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import bench_duckdb
import bench_rows
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import reference
from drivers import Outcome, as_rows, run_kernels, with_running_sums
from golden import compare_rows, compare_tables
from worlds import DAY, clean_world

from fixtures.generate import generate
from pipelines.settings import settings_record
from pipelines.sources.files import list_files
from pipelines.sources.formats import blocks, read_block
from sinks.duckdb import definitions_table
from sinks.parquet import MONTHS, month_folder
from transforms.dead_letters import conflict_letters
from transforms.definitions import KPIS, STATISTICS
from transforms.events import parse_events
from transforms.ordering import order_events
from transforms.schema import EVENT_COLUMNS, PARSED_EVENTS, TIMESTAMP
from transforms.settings import ChannelSettings, Settings
from transforms.shuffle import split_by_key
from transforms.tables import DEAD_LETTERS, TABLES

SETTINGS = Settings(
    channels={channel: ChannelSettings(split_threads=True) for channel in bench_duckdb.SPLIT_CHANNELS},
    timezone=bench_duckdb.TIMEZONE,
)
EVENTS = 20_000
WORLDS = 100
START = 1_767_225_600_000_000
"""Random worlds are moved to the years from 2026 on, so that one run can hold many of them."""

COUNTS = ("rows_read", "events_kept", "exact_duplicates", "conversations", "turns")
WINDOW = ("basis", "grain", "window_start", "account_id", "channel")


@cache
def generated() -> pa.Table:
    """Generated events, some of them bad."""
    return pa.Table.from_batches(generate(events=EVENTS, seed=7, bad_rate=0.01))


@cache
def wanted() -> Outcome:
    """What the kernels make of the generated events."""
    return run_kernels([as_ndjson(generated())], SETTINGS)


def write_files(events: pa.Table, folder: Path) -> list[str]:
    """The events in two Parquet files."""
    half = events.num_rows // 2
    paths = [folder / "a.parquet", folder / "b.parquet"]
    for path, part in zip(paths, (events.slice(0, half), events.slice(half)), strict=True):
        pq.write_table(part, path)
    return [str(path) for path in paths]


def as_ndjson(events: pa.Table) -> bytes:
    """The same events for the kernels; times as text."""
    place = events.schema.get_field_index("occurred_at")
    text = pc.strftime(events["occurred_at"], "%Y-%m-%dT%H:%M:%SZ")
    rows = events.set_column(place, "occurred_at", text).to_pylist()
    return "\n".join(json.dumps(row) for row in rows).encode()


def read_folder(folder: Path) -> pa.Table:
    """A table of the SQL from its Parquet files, whatever folders they lie in."""
    return pa.concat_tables(pq.ParquetFile(path).read() for path in sorted(folder.rglob("*.parquet")))


def wanted_letters(paths: list[str]) -> list[reference.Row]:
    """The dead letters that the kernels make of Parquet files, in the order of their places."""
    parsed = parse_events([part for file in list_files(paths) for block in blocks(file) for part in read_block(block)])
    [(_, events)] = split_by_key(parsed.events, 1)
    events = events.unify_dictionaries().combine_chunks()
    hashes = (events[name].to_numpy() for name in ("key_hash", "event_hash"))
    conflicts = order_events(events.select(PARSED_EVENTS.names), *hashes).conflicts
    letters = pa.concat_tables([parsed.dead_letters, conflict_letters(events.take(pa.array(conflicts)))])
    return letters.sort_by([(name, "ascending") for name in DEAD_LETTERS.key]).to_pylist()


def sql_differences(output: Path, result: dict[str, Any], want: Outcome) -> list[str]:
    """What differs between the tables that the SQL wrote and those of the kernels; percentiles have no leeway."""
    made = {table: as_rows(read_folder(output / table)) for table in bench_duckdb.TABLES}
    found = compare_tables({**made, "kpis": with_running_sums(made["kpis"])}, want.tables(), percentile_error=0)
    found += compare_rows(made["kpi_statistics"], as_rows(want.kpi_statistics), "statistics", 0)
    ours = {name: result["counts"][name] for name in COUNTS}
    return found if ours == {name: want.counts[name] for name in COUNTS} else [*found, f"counts: {ours}"]


def test_sql_equals_the_kernels(tmp_path: Path) -> None:
    """All tables of generated events, histograms included."""
    result = bench_duckdb.run_duckdb(write_files(generated(), tmp_path), tmp_path / "out")
    assert sql_differences(tmp_path / "out", result, wanted()) == []
    assert (
        result["counts"]["faulty_rows"] + result["counts"]["conflicting_duplicates"] == wanted().counts["dead_letters"]
    )


def odd_events() -> pa.Table:
    """A row for each fault that typed columns can have, for two at once, and for text that JSON has to escape."""
    good = {"event_id": "1", "event_type": "note", "occurred_at": 0, "channel": "x", "conversation_id": "c"}
    odd: list[reference.Row] = [
        {"event_id": None},
        {"event_id": ""},
        {"event_type": None},
        {"event_type": ""},
        {"event_type": "Message", "author_type": "robot"},
        {"occurred_at": None},
        {"occurred_at": -1},
        {"occurred_at": 4_133_980_800_000_000},
        {"channel": ""},
        {"channel": None, "sentiment": 2.0},
        {"conversation_id": None},
        {"conversation_id": "", "customer_id": ""},
        {"author_type": "robot"},
        {"event_type": "message", "author_type": "agent"},
        {"event_type": "message", "author_type": "system"},
        {"event_type": "reply", "author_type": "customer"},
        {"sentiment": float("nan"), "score": 0.0},
        {"sentiment": -1.5, "is_automated": False},
        {"event_type": "rating"},
        {"event_type": "rating", "score": 5.000001},
        {"score": float("inf"), "is_automated": True},
        {"event_type": "wrap_up"},
        {"duration_seconds": -1e-7},
        {"duration_seconds": float("-inf")},
        {"duration_seconds": 1e16},
        {"event_type": "é", "topic": 'a "quoted" \\ word,\n\ttab, {brace} \u2028 \x7f', "team_id": "😀"},
        {"event_id": "copy", "topic": 'one "word"'},
        {"event_id": "copy", "topic": "", "subtopic": "é\n", "is_automated": True, "sentiment": 0.1, "score": 1.0},
        {"event_id": "copy", "agent_id": "ana", "author_type": "agent", "duration_seconds": 1e-5},
        {"event_id": "copy", "topic": 'one "word"'},
    ]
    schema = pa.schema([(c.name, pa.int64() if c.type == TIMESTAMP else c.type) for c in EVENT_COLUMNS])
    events = pa.Table.from_pylist([{**good, "text": "secret", **row} for row in odd], schema)
    return events.cast(pa.schema([(c.name, c.type) for c in EVENT_COLUMNS]))


@pytest.mark.parametrize("make", [generated, odd_events])
def test_sql_dead_letters_equal_the_kernels(make: Callable[[], pa.Table], tmp_path: Path) -> None:
    """Each row that could not be used: its place, step, reason and column, and itself, letter by letter."""
    paths = write_files(make(), tmp_path)
    bench_duckdb.run_duckdb(paths, tmp_path / "out")
    made = read_folder(tmp_path / "out" / "dead_letters")
    assert made.column_names == DEAD_LETTERS.schema.names
    assert made.to_pylist() == wanted_letters(paths)


def test_sql_publishes_what_a_batch_run_publishes(tmp_path: Path) -> None:
    """Folders by month in order of time, the same rows in DuckDB, types, constraints, comments, and the run itself."""
    paths, output = write_files(generated(), tmp_path), tmp_path / "out"
    result = bench_duckdb.run_duckdb(paths, output)
    assert {table: bench_duckdb.MONTHS[table] for table in bench_duckdb.TABLES} == MONTHS
    for table, moment in MONTHS.items():
        for path in (output / table).rglob("*.parquet"):
            moments = pq.ParquetFile(path).read([moment])[moment]
            assert moments.equals(moments.sort())
            months = set(pc.strftime(moments, "%Y-%m").to_pylist())
            assert {path.parent.name} == {month_folder(moment, month) for month in months}
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        for spec in TABLES:
            found = warehouse.sql(
                f"SELECT column_name, NOT is_nullable, comment FROM duckdb_columns() WHERE table_name = '{spec.name}'"
            ).fetchall()
            assert found == [(c.name, c.nullable is False, c.description) for c in spec.columns]
            stored = warehouse.sql(f"FROM {spec.name}").to_arrow_table()
            assert stored.cast(spec.schema).num_rows == read_folder(output / spec.name).num_rows
            assert sorted(map(repr, as_rows(stored))) == sorted(map(repr, as_rows(read_folder(output / spec.name))))
        comments = dict(warehouse.sql("SELECT table_name, comment FROM duckdb_tables()").fetchall())
        assert comments == {spec.name: spec.grain for spec in TABLES}
        assert warehouse.sql("FROM kpi_definitions").to_arrow_table().to_pylist() == definitions_table().to_pylist()
        [run] = as_rows(warehouse.sql("FROM runs").to_arrow_table())
        revised = warehouse.sql("SELECT DISTINCT revision, epoch_us(changed_at) FROM kpis").fetchall()
    assert revised == [(1, run["committed_at"])]
    want = wanted().counts
    names = {"rows_read": "rows_read", "events_kept": "events_kept", "dead_letters": "dead_letter"}
    names |= {"exact_duplicates": "exact_duplicate", "stray_events": "stray_event", "late_events": "late_event"}
    names |= {"conversations": "conversation", "turns": "turn"}
    assert {name: run[f"{ours}_count"] for name, ours in names.items()} == {name: want[name] for name in names}
    assert run["as_of"] == want["as_of"]
    assert json.loads(run["dead_letters_by_reason"]) == want["dead_letters_by_reason"]
    assert json.loads(run["settings"]) == settings_record(SETTINGS)
    assert json.loads(run["inputs"]) == [
        {"name": path, "bytes": Path(path).stat().st_size, "rows": pq.read_metadata(path).num_rows} for path in paths
    ]
    assert 0 < run["duration_seconds"] <= result["seconds"]


def world_events(seed: int) -> list[reference.Row]:
    """The valid events of a random world in accounts of its own; a key has channels that split or channels that do not.

    Where a key has both, the SQL looks away from one corner of the silence limit.
    """
    events = [event for line in clean_world(seed, debatable=False)[0] if (event := reference.parse(line)) is not None]
    first = min((event["occurred_at"] for event in events), default=0)
    for event in events:
        event["occurred_at"] += START + seed % 300 * DAY - first // DAY * DAY
        event["account_id"] = f"{seed} {event['account_id'] or ''}"
        thread = event["conversation_id"]
        if thread is not None and len(thread) % 2:
            event["channel"] = "whatsapp"
        elif thread is not None and event["channel"] == "whatsapp":
            event["channel"] = "sms"
    return [event for event in events if event["occurred_at"] < START + 1_500 * DAY]


@pytest.mark.parametrize("first", range(0, 3 * WORLDS, WORLDS))
def test_sql_equals_the_kernels_on_random_worlds(first: int, tmp_path: Path) -> None:
    """What generated data has seldom: reopenings that never were, dismissals, holds, strays, ties, long silences."""
    rows = [event for seed in range(first, first + WORLDS) for event in world_events(seed)]
    whole = pa.schema([(c.name, pa.int64() if c.type == TIMESTAMP else c.type) for c in EVENT_COLUMNS])
    events = pa.Table.from_pylist([{**row, "text": None} for row in rows], whole)
    events = events.cast(pa.schema([(c.name, c.type) for c in EVENT_COLUMNS]))
    result = bench_duckdb.run_duckdb(write_files(events, tmp_path), tmp_path / "out")
    assert sql_differences(tmp_path / "out", result, run_kernels([as_ndjson(events)], SETTINGS)) == []


def test_rows_equal_the_kernels(tmp_path: Path) -> None:
    """All tables of generated events, row at a time, histograms and percentiles included."""
    bench_rows.run_rows(write_files(generated(), tmp_path), tmp_path)
    made = {
        table: [row for path in tmp_path.glob(f"{table}-*.parquet") for row in as_rows(pq.read_table(path))]
        for table in ("conversations", "turns")
    }
    assert compare_tables(made, wanted().tables(), tables=("conversations", "turns")) == []
    lines = {
        table: [json.loads(line) for path in tmp_path.glob(f"{table}-*.ndjson") for line in path.open()]
        for table in ("kpi_statistics", "kpis")
    }
    found = {tuple(row[name] for name in WINDOW): row for row in lines["kpi_statistics"]}
    want = as_rows(wanted().kpi_statistics)
    assert len(found) == len(lines["kpi_statistics"]) == len(want)
    for row in want:
        cell = found[tuple(row[name] for name in WINDOW)]
        for statistic in STATISTICS:
            value = row[statistic.name]
            if statistic.kind == "histogram":
                value = [[one["bucket"], one["count"]] for one in value]
            elif statistic.kind != "count":
                value = round(value * 1e6)
            assert cell[statistic.name] == value, statistic.name
    kpis = {tuple(row[name] for name in WINDOW): row for row in lines["kpis"]}
    assert len(kpis) == len(want)
    for row in wanted().tables()["kpis"]:
        ours = kpis[tuple(row[name] for name in WINDOW)]
        for kpi in KPIS:
            if row[kpi.name] is None and kpi.kind != "running":
                assert ours[kpi.name] is None, kpi.name
            elif kpi.kind != "running":
                assert ours[kpi.name] == pytest.approx(row[kpi.name], rel=1e-9), kpi.name
    with duckdb.connect(str(tmp_path / "care.duckdb"), read_only=True) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM kpis").fetchall() == [(len(want),)]
    faults = sum(
        int(line.rsplit(",", 1)[1].strip(" )\n")) for path in tmp_path.glob("dead_letters-*") for line in path.open()
    )
    conflicts = wanted().counts["dead_letters_by_reason"]["conflicting_duplicate"]
    assert faults == wanted().counts["dead_letters"] - conflicts
