"""The yardsticks of the bench make what the kernels make, row for row."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import bench_duckdb
import bench_rows
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import reference
from drivers import Outcome, as_rows, run_kernels, with_running_sums
from golden import compare_rows, compare_tables
from worlds import DAY, clean_world

from fixtures.generate import generate
from transforms.definitions import STATISTICS
from transforms.schema import EVENT_COLUMNS, TIMESTAMP
from transforms.settings import ChannelSettings, Settings

SETTINGS = Settings(
    channels={channel: ChannelSettings(split_threads=True) for channel in bench_duckdb.SPLIT_CHANNELS},
    timezone=bench_duckdb.TIMEZONE,
)
EVENTS = 20_000
WORLDS = 100
START = 1_767_225_600_000_000
"""Random worlds are moved to the years from 2026 on, so that one run can hold many of them."""

COUNTS = ("rows_read", "events_kept", "exact_duplicates", "conversations", "turns")
SUMS = {s.name: s.kind for s in STATISTICS if s.kind != "histogram"}


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


def sql_differences(output: Path, result: dict[str, Any], want: Outcome) -> list[str]:
    """What differs between the tables that the SQL wrote and those of the kernels; percentiles have no leeway."""
    made = {table: as_rows(pq.read_table(output / f"{table}.parquet")) for table in bench_duckdb.TABLES}
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
    """Conversations, turns, and counts and sums by hour of generated events, row at a time."""
    bench_rows.run_rows(write_files(generated(), tmp_path), tmp_path)
    made = {
        table: [row for path in tmp_path.glob(f"{table}-*.parquet") for row in as_rows(pq.read_table(path))]
        for table in ("conversations", "turns")
    }
    assert compare_tables(made, wanted().tables(), tables=("conversations", "turns")) == []
    hours = {
        (cell["basis"], cell["window_start"], cell["account_id"], cell["channel"]): cell
        for path in tmp_path.glob("hours-*.ndjson")
        for cell in map(json.loads, path.read_text("utf-8").splitlines())
    }
    want = [row for row in as_rows(wanted().kpi_statistics) if row["grain"] == "hour"]
    assert len(hours) == len(want)
    for row in want:
        cell = hours[row["basis"], row["window_start"], row["account_id"], row["channel"]]
        for name, kind in SUMS.items():
            assert cell.get(name, 0) == (row[name] if kind == "count" else round(row[name] * 1e6)), name
    faults = sum(
        int(line.rsplit(",", 1)[1].strip(" )\n")) for path in tmp_path.glob("dead_letters-*") for line in path.open()
    )
    conflicts = wanted().counts["dead_letters_by_reason"]["conflicting_duplicate"]
    assert faults == wanted().counts["dead_letters"] - conflicts
