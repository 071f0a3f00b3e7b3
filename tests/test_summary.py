"""The summary of a run: readable numbers, nothing lost at 80 columns, nothing of the data obeyed by the terminal."""

from __future__ import annotations

import dataclasses
import io
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from rich.console import Console

from pipelines.summary import NULL, SHOWN_KPIS, RunSummary, format_kpi, format_seconds, next_command, print_summary
from transforms.definitions import KPIS
from transforms.tables import CONVERSATIONS, RUNS

VALUES = {
    "conversation_count": 1525,
    "p50_first_response_seconds": 192.0,
    "p90_first_response_seconds": 7261.4,
    "p50_reply_seconds": 0.4,
    "avg_handle_seconds": None,
    "first_contact_resolution_rate": 0.853,
    "response_rate": 1.0,
    "resolution_rate": None,
    "backlog_count": -3,
    "avg_csat": 4.5,
}


def summary(channels: tuple[str | None, ...] = ("x", "email"), **changes: object) -> RunSummary:
    """A run over 1,211 rows."""
    run = RunSummary(
        commit_id=1,
        committed_at=datetime(2026, 2, 1, 12, tzinfo=UTC),
        kind="batch",
        as_of=datetime(2026, 2, 1, tzinfo=UTC),
        timezone="Europe/Berlin",
        rows_read_count=1_211,
        events_kept_count=1_205,
        dead_letter_count=4,
        exact_duplicate_count=1,
        late_event_count=0,
        stray_event_count=3,
        conversation_count=525,
        turn_count=620,
        dead_letters_by_reason={"bad_time": 1, "unreadable": 3, "missing": 0},
        inputs=[{"name": "events.ndjson", "bytes": 3, "rows": 1_211}],
        settings={},
        duration_seconds=2.14,
        version="0.1.0",
        kpis=[{"channel": channel, **VALUES} for channel in channels],
        parquet_path=Path("output"),
        duckdb_path=Path("output/care.duckdb"),
        unknown_columns=("in_reply_to",),
        stage_seconds={"Reading": 1.0, "Pairing": 0.5},
    )
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


def printed(run: RunSummary, width: int = 80, notes: tuple[str, ...] = ()) -> str:
    """What a pipe would get, without the blanks at line ends."""
    out = io.StringIO()
    print_summary(run, Console(file=out, width=width, highlight=False), notes)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_it_has_every_column_of_runs() -> None:
    """The table `runs` and the terminal tell of the same run."""
    assert {column.name for column in RUNS.columns} <= {field.name for field in dataclasses.fields(RunSummary)}


def test_the_whole_summary() -> None:
    """Everything that a reader needs, in plain text."""
    text = printed(summary(), notes=("no conversation has the channel 'X' of care.toml.",))
    assert text.startswith(
        f"""\
Read     1,211 rows from 1 file
Kept     1,205 events, 3 of them stray
Dropped  4 dead letters (unreadable 3, bad_time 1)
         1 exact duplicate
Paired   525 conversations, 620 turns
As of    2026-02-01 00:00:00 UTC; days and weeks are cut in Europe/Berlin
Took     2.1 s (Reading 1.0 s, Pairing 0.5 s)

All time                               x    email
─────────────────────────────────────────────────
Conversations                      1,525    1,525
First response time (FRT), p50    3m 12s   3m 12s
First response time (FRT), p90     2h 1m    2h 1m
Reply time, p50                     0.4s     0.4s
Average handle time (AHT), mean        {NULL}        {NULL}
First contact resolution (FCR)     85.3%    85.3%
Response rate                     100.0%   100.0%
Resolution rate                        {NULL}        {NULL}
Backlog                               -3       -3
CSAT                                4.50     4.50

Note: columns that the contract does not have were ignored: in_reply_to.
Note: dead letters are in the table dead_letters, each with its place, column and reason.
Note: no conversation has the channel 'X' of care.toml.
DuckDB   output/care.duckdb (conversations, turns, kpis, dead_letters, runs, …)
Parquet  output (a folder for each table)
Next     the slowest first responses:
"""
    )
    assert "\x1b" not in text


def test_a_run_without_events() -> None:
    """No as_of, no channel, no reasons: nothing fails, nothing is made up."""
    nothing = {
        column.name: 0 for column in RUNS.columns if column.name.endswith("_count") and column.name != "commit_id"
    }
    text = printed(summary((), as_of=None, dead_letters_by_reason={}, unknown_columns=(), stage_seconds={}, **nothing))
    assert "Read     0 rows from 1 file\nKept     0 events\nDropped  0 dead letters\n" in text
    assert "As of" not in text
    assert "All time" not in text
    assert text.count("Note") == 1 and "the input has no rows, so this result is empty" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_many_channels_fit_the_width(width: int) -> None:
    """As many tables as it takes; every channel is in one of them, in the order given."""
    channels = (None, *(f"channel-{number}" for number in range(9)), "x" * 300)
    text = printed(summary(channels), width)
    tables = text.partition("\n\n")[2].partition("\nNote")[0]
    assert max(map(len, tables.splitlines())) <= width
    heads = [line.removeprefix("All time").strip() for line in tables.splitlines() if line.startswith("All time")]
    shown = " ".join(heads).replace("all channels", "all").split()
    assert shown == ["all", *(f"channel-{number}" for number in range(9)), "x" * 15 + "…"]


def test_thousands_of_channels_do_not_flood_the_terminal() -> None:
    """The busiest are shown, and all together; a note says how many are not."""
    text = printed(summary(channels=(*(f"c{n}" for n in range(5_000)), None)))
    assert "c15" in text and "c16" not in text and "all channels" in text
    assert "4,984 channels with fewer messages are not shown" in text


def test_names_from_the_data_are_shown_not_obeyed() -> None:
    """Neither rich's markup nor escape codes of a terminal."""
    text = printed(summary(("[red]x\x1b[31m",), unknown_columns=("a[b]", "\x1b]0;title\x07")))
    assert "[red]x�[31m" in text
    assert "a[b], �]0;title�" in text
    assert "\x1b" not in text


def test_paths_are_never_wrapped() -> None:
    """A reader copies them."""
    path = Path("/a folder", *["deep"] * 40, "care.duckdb")
    lines = printed(summary(duckdb_path=path)).splitlines()
    assert f"DuckDB   {path} (conversations, turns, kpis, dead_letters, runs, …)" in lines
    assert next_command(path) in lines
    assert shlex.split(next_command(path))[-1] == str(path)


def test_the_next_command_runs(tmp_path: Path) -> None:
    """As a shell would run it, on a database with the columns of the contract."""
    path = tmp_path / "it's here" / "care.duckdb"
    path.parent.mkdir()
    with duckdb.connect(str(path)) as connection:
        # The query below names the table by this variable.
        conversations = CONVERSATIONS.schema.empty_table()
        connection.execute("CREATE TABLE conversations AS FROM conversations")
        assert len(conversations) == 0
    done = subprocess.run(next_command(path), shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "first_response_seconds" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m"),
        (192, "3m 12s"),
        (3_599.6, "1h"),
        (3_660, "1h 1m"),
        (86_399, "1d"),
        (90_000, "1d 1h"),
        (31_536_000, "365d"),
    ],
)
def test_durations_in_human_units(seconds: float, text: str) -> None:
    """Two units at most, and no 60s or 24h by rounding."""
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "seconds", NULL),
        (None, "count", NULL),
        (0, "count", "0"),
        (1_234_567, "count", "1,234,567"),
        (12.0, "count", "12"),
        (0.0, "rate", "0.0%"),
        (0.8534, "rate", "85.3%"),
        (4.456, "score", "4.46"),
        (61.0, "seconds", "1m 1s"),
    ],
)
def test_values_by_unit(value: float | None, unit: str, text: str) -> None:
    """Null is a dash, never a zero."""
    assert format_kpi(value, unit) == text


def test_a_value_that_is_no_number_is_our_error() -> None:
    """It would be a mistake of the pipeline, not of the user."""
    with pytest.raises(TypeError, match="expected a number for a KPI in rate, got str"):
        format_kpi("much", "rate")


def test_the_kpis_shown_exist() -> None:
    """Every name is a KPI of the definitions."""
    assert set(SHOWN_KPIS) <= {kpi.name for kpi in KPIS}
