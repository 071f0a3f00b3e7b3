"""What a run says when it is done: its numbers, and how a terminal shows them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transforms.definitions import KPIS

SHOWN_KPIS = (
    "conversation_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "p50_reply_seconds",
    "avg_handle_seconds",
    "first_contact_resolution_rate",
    "response_rate",
    "resolution_rate",
    "backlog_count",
    "avg_csat",
)
"""KPIs on the terminal, in this order; all others are in the table kpis."""

NULL = "\N{EN DASH}"
MAX_CHANNELS = 16
"""Channels that are shown: the busiest."""

MAX_HEAD = 16
"""Letters of a channel's name that are shown."""

SLOWEST_FIRST_RESPONSES = (
    "FROM conversations SELECT channel, conversation_key, opened_at, first_response_seconds "
    "ORDER BY first_response_seconds DESC NULLS LAST LIMIT 10"
)


@dataclass(frozen=True)
class RunSummary:
    """One commit: the columns of the table `runs`, and what the terminal shows besides.

    Attributes:
      commit_id: number of the commit, from 1.
      committed_at: when it was made, UTC.
      kind: batch.
      as_of: the moment up to which time is taken to have passed, UTC; None where there is no event.
      timezone: IANA zone in which the windows are cut.
      rows_read_count: input rows.
      events_kept_count: rows kept as events.
      dead_letter_count: rows that could not be used.
      exact_duplicate_count: rows that repeated an event word for word.
      late_event_count: rows that came too late (streams only).
      stray_event_count: events kept that belong to no conversation.
      conversation_count: conversations.
      turn_count: customer turns.
      dead_letters_by_reason: dead letters by reason (a JSON object in the table).
      inputs: what was read: name, bytes, rows (a JSON array in the table).
      settings: settings in force (a JSON object in the table).
      duration_seconds: from the start of the run to the commit.
      version: version of this package.
      kpis: one mapping per channel over all time: "channel" (None: all channels together) and KPI names to values,
        None for null; the order is the order shown.
      parquet_path: folder with the Parquet files of this commit.
      duckdb_path: the DuckDB file.
      unknown_columns: extra columns of the input that were ignored.
      stage_seconds: seconds by stage, in the order they ran.
      notes: what else the user should know, as sentences.
    """

    commit_id: int
    committed_at: datetime
    kind: str
    as_of: datetime | None
    timezone: str
    rows_read_count: int
    events_kept_count: int
    dead_letter_count: int
    exact_duplicate_count: int
    late_event_count: int
    stray_event_count: int
    conversation_count: int
    turn_count: int
    dead_letters_by_reason: Mapping[str, int]
    inputs: Sequence[Mapping[str, object]]
    settings: Mapping[str, object]
    duration_seconds: float
    version: str
    kpis: Sequence[Mapping[str, object]]
    parquet_path: Path
    duckdb_path: Path
    unknown_columns: Sequence[str] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def print_summary(summary: RunSummary, console: Console, notes: Iterable[str] = ()) -> None:
    """Prints what a run did: rows, conversations, KPIs per channel, where the results are, what to do next.

    Args:
      summary: the run.
      console: standard output; plain text where that is no terminal.
      notes: further sentences that the user should see.
    """
    counts = Table.grid(padding=(0, 2))
    for label, value in _counts(summary):
        counts.add_row(label, Text(value))
    console.print(counts)
    console.print()
    for table in _kpi_tables(_shown_channels(summary.kpis), console.width):
        console.print(table)
        console.print()
    for note in (*_notes(summary), *notes):
        console.print(Text(f"Note: {_plain(note)}"), soft_wrap=True)
    # Never wrapped: a reader copies paths and commands from here.
    tables = "conversations, turns, kpis, dead_letters, runs, …"
    console.print(Text(f"DuckDB   {summary.duckdb_path} ({tables})"), soft_wrap=True)
    console.print(Text(f"Parquet  {summary.parquet_path} (a folder for each table)"), soft_wrap=True)
    console.print(Text(f"Next     the slowest first responses:\n{next_command(summary.duckdb_path)}"), soft_wrap=True)


def show_summary(summary: RunSummary, notes: Iterable[str] = ()) -> None:
    """Prints a summary to standard output; the result is published, so a reader who went away is no failure."""
    try:
        print_summary(summary, Console(highlight=False), notes)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def next_command(duckdb_path: Path) -> str:
    """A command for the shell that shows the ten slowest first responses."""
    code = f'import duckdb, sys; duckdb.connect(sys.argv[1], read_only=True).sql("{SLOWEST_FIRST_RESPONSES}").show()'
    return f"{shlex.quote(_python())} -c {shlex.quote(code)} {shlex.quote(str(duckdb_path))}"


def format_seconds(seconds: float) -> str:
    """Seconds as people say them, in the two largest units that matter: "3m 12s", "2d 4h", "0.4s"."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    for size, unit, part, part_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        # Rounded in the smaller unit first, so that 59m 59.6s never reads as 59m 60s.
        count, rest = divmod(round(seconds / part), size // part)
        if count:
            return f"{count}{unit} {rest}{part_unit}" if rest else f"{count}{unit}"
    return f"{seconds:.0f}s"


def format_kpi(value: object, unit: str) -> str:
    """A KPI's value as a reader wants it; a dash for null.

    Args:
      value: what the table kpis holds.
      unit: count, seconds, rate or score.
    """
    if value is None:
        return NULL
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number for a KPI in {unit}, got {type(value).__name__}")
    if unit == "seconds":
        return format_seconds(value)
    if unit == "rate":
        return f"{value:.1%}"
    return f"{value:.2f}" if unit == "score" else f"{value:,.0f}"


def _counts(summary: RunSummary) -> Iterable[tuple[str, str]]:
    yield "Read", f"{_number(summary.rows_read_count, 'row')} from {_number(len(summary.inputs), 'file')}"
    stray = f", {summary.stray_event_count:,} of them stray" if summary.stray_event_count else ""
    yield "Kept", _number(summary.events_kept_count, "event") + stray
    dead = _number(summary.dead_letter_count, "dead letter")
    by_reason = sorted(summary.dead_letters_by_reason.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in by_reason if count)
    yield "Dropped", f"{dead} ({reasons})" if reasons else dead
    late = f", {_number(summary.late_event_count, 'late event')}" if summary.late_event_count else ""
    yield "", _number(summary.exact_duplicate_count, "exact duplicate") + late
    turns = _number(summary.turn_count, "turn")
    yield "Paired", f"{_number(summary.conversation_count, 'conversation')}, {turns}"
    if summary.as_of is not None:
        as_of = summary.as_of.astimezone(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "")
        yield "As of", f"{as_of} UTC; days and weeks are cut in {summary.timezone}"
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.stage_seconds.items())
    yield "Took", f"{summary.duration_seconds:.1f} s" + (f" ({stages})" if stages else "")


def _kpi_tables(rows: Sequence[Mapping[str, object]], width: int) -> Iterable[Table]:
    """One column per channel, in as many tables as the width asks for."""
    definitions = {kpi.name: kpi for kpi in KPIS}
    shown = [definitions[name] for name in SHOWN_KPIS]
    heads = ["all channels" if row["channel"] is None else _plain(str(row["channel"])) for row in rows]
    columns = [[format_kpi(row.get(kpi.name), kpi.unit) for kpi in shown] for row in rows]
    labels = max(len(kpi.label) for kpi in shown)
    begin = 0
    while begin < len(rows):
        end, room = begin, width - labels
        while end < len(rows) and (end == begin or room >= _width(heads[end], columns[end])):
            room -= _width(heads[end], columns[end])
            end += 1
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
        table.add_column("All time", no_wrap=True)
        for head in heads[begin:end]:
            table.add_column(Text(head, overflow="ellipsis"), justify="right", max_width=MAX_HEAD, no_wrap=True)
        for place, kpi in enumerate(shown):
            table.add_row(kpi.label, *(column[place] for column in columns[begin:end]))
        yield table
        begin = end


def _width(head: str, cells: Iterable[str]) -> int:
    """Cells that a column takes, with the three that part it from its neighbour."""
    return max(min(len(head), MAX_HEAD), *map(len, cells)) + 3


def _shown_channels(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The first channels (the busiest come first), and all channels together."""
    channels = [row["channel"] for row in rows if row["channel"] is not None]
    shown = {None, *channels[:MAX_CHANNELS]}
    return [row for row in rows if row["channel"] in shown]


def _notes(summary: RunSummary) -> Iterable[str]:
    if not summary.rows_read_count:
        yield "the input has no rows, so this result is empty: check what was exported."
    more = sum(row["channel"] is not None for row in summary.kpis) - MAX_CHANNELS
    if more > 0:
        yield f"{_number(more, 'channel')} with fewer messages are not shown; the table kpis has them all."
    if summary.unknown_columns:
        yield f"columns that the contract does not have were ignored: {', '.join(summary.unknown_columns)}."
    if summary.dead_letter_count:
        yield "dead letters are in the table dead_letters, each with its place, column and reason."


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _plain(text: str) -> str:
    """Text from the data without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _python() -> str:
    """This Python as it is typed in the present folder."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
