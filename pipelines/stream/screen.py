"""What `care-kpis watch` shows: a stream's status and who waits longest, laid out for a width and a height."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.stream.waiting import PublishedResult
from pipelines.summary import NULL, format_kpi, format_seconds
from transforms.definitions import KPIS

_HEADS = {
    "message_count": "Messages",
    "conversation_count": "Conver-\nsations",
    "waiting_count": "Waiting",
    "backlog_count": "Backlog",
    "p50_first_response_seconds": "FRT\np50",
    "p90_first_response_seconds": "FRT\np90",
    "p50_reply_seconds": "Reply\np50",
    "avg_handle_seconds": "AHT\nmean",
    "first_contact_resolution_rate": "FCR",
    "response_rate": "Response\nrate",
    "avg_csat": "CSAT",
}
"""KPIs of today in the order shown, with the little that a column's head has room for."""

_FIRST_KPIS = ("waiting_count", "p50_first_response_seconds", "message_count", "backlog_count", "conversation_count")
"""These are shown first where not all fit."""

_UNITS = {kpi.name: kpi.unit for kpi in KPIS}
_WAITING = ("waiting_seconds", "channel", "conversation_key", "customer_id", "priority", "team_id", "agent_id")
_LAST_WAITING = ("team_id", "agent_id", "priority", "customer_id")
"""These are left out first where not all fit."""

_WIDEST_KEY = 40
_WIDEST = 16
_LINES = 8
"""Rows of a section, where the height does not matter."""

_LONG_DELAY, _LONG_AGE = 300.0, 10.0


@dataclass(frozen=True)
class View:
    """What is to be shown.

    Attributes:
      output: the output folder.
      now: the time of day, UTC.
      status: what the last stream said of itself; None where there was none.
      is_running: whether it is running.
      result: the published result; None where there is none.
      trouble: why the result could not be read.
    """

    output: Path
    now: datetime
    status: dict[str, Any] | None
    is_running: bool
    result: PublishedResult | None
    trouble: str | None = None

    def seconds_since(self, moment: str | datetime | None) -> float | None:
        """How long ago something was, never negative."""
        if moment is None:
            return None
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return max(0.0, (self.now - at).total_seconds())


def screen(view: View, width: int, height: int | None = None) -> RenderableType:
    """Lays a view out.

    Args:
      view: what to show.
      width: cells of a line.
      height: lines; None: as many as it takes.
    """
    lines = _LINES if height is None else max(2, min(_LINES, (height - 16) // 3))
    parts: list[RenderableType] = [_head(view)]
    if view.status is not None:
        parts += _figures(view, view.status, width)
        parts += _sentences(view, view.status, lines)
        parts += _partitions(view.status, width, lines)
        parts += _today(view.status, width, lines)
    parts += _waiting(view, width, lines)
    return Group(*parts)


def plain(text: object, widest: int | None = None) -> str:
    """Text from the data without anything that a terminal would obey, and cut."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    return shown if widest is None or len(shown) <= widest else shown[: widest - 1] + "…"


def _head(view: View) -> Text:
    status = view.status
    if status is None:
        return Text(f"No stream has run into {view.output} yet.", "bold")
    if view.is_running:
        text = Text(f"{view.output}", "bold")
        text.append(" is streamed into ")
        text.append(f"for {_ago(view, status['started_at'])}", "green")
        return text.append(f", by process {status['process_id']}")
    if status["ended_at"] is None:
        text = Text(f"The stream into {view.output} is not running", "bold red")
        last = _ago(view, status["updated_at"])
        return text.append(f": it ended without a word, its last sign of life is {last} old.", "default")
    text = Text(f"The stream into {view.output} is not running", "bold red")
    text.append(f": it ended {_ago(view, status['ended_at'])} ago", "default")
    by = f". {plain(status['ended_by'])}" if status["ended_by"] else ", as it was asked to."
    return text.append(by, "default")


def _figures(view: View, status: dict[str, Any], width: int) -> Iterator[RenderableType]:
    """The figures in as many columns as fit."""
    delay = view.seconds_since(status["watermark"])
    age = view.seconds_since(status["updated_at"]) or 0.0
    cycles, published = status["cycle_seconds"], status["published"]
    shown = [
        ("Events", f"{status['rows_per_second']:,.0f}/s" if view.is_running else NULL, ""),
        ("Lag", NULL if status["lag"] is None else f"{status['lag']:,}", "yellow" if status["lag"] else ""),
        ("Watermark", NULL if delay is None else f"{format_seconds(delay)} behind", _warned(delay, _LONG_DELAY)),
        ("Cycle", f"{status['cycle']:,}, {_ago(view, status['committed_at'])} ago", ""),
        ("Cycle takes", " / ".join(_seconds(cycles[name]) for name in ("last", "p50", "p99")), ""),
        ("Rows read", f"{status['rows_read_count']:,}", ""),
        ("Dead letters", f"{status['dead_letter_count']:,}", "yellow" if status["dead_letter_count"] else ""),
        ("Late", f"{status['late_event_count']:,}", "yellow" if status["late_event_count"] else ""),
        ("Duplicates", f"{status['exact_duplicate_count']:,}", ""),
        ("Open rows", f"{status['open_row_count']:,}", ""),
        ("Keys", NULL if status["key_count"] is None else f"{status['key_count']:,}", ""),
        ("Pending", f"{status['pending_cycle_count']:,} cycles", ""),
    ]
    if published is not None:
        took = f"{_ago(view, published['published_at'])} ago, took {_seconds(published['publish_seconds'])}"
        shown.insert(5, (f"Commit {published['commit_id']:,}", took, ""))
    if view.is_running and age > _LONG_AGE:
        shown.append(("Status", f"{format_seconds(age)} old", "red"))
    columns = max(1, min(3, width // 36))
    table = Table.grid(padding=(0, 2, 0, 0))
    lines = -(-len(shown) // columns)
    for line in range(lines):
        cells = shown[line::lines]
        table.add_row(*(text for label, value, style in cells for text in (Text(label, "dim"), Text(value, style))))
    yield Text()
    yield table


def _sentences(view: View, status: dict[str, Any], lines: int) -> Iterator[RenderableType]:
    recent = status["said"][-lines:]
    if recent:
        yield Text()
    for said in recent:
        text = Text(f"{_ago(view, said['at'])} ago  ", "dim")
        yield text.append(plain(said["sentence"]), "yellow")


def _partitions(status: dict[str, Any], width: int, lines: int) -> Iterator[RenderableType]:
    partitions = status["partitions"]
    if not partitions:
        return
    # Those that are furthest behind first; where none is, in their order.
    shown = sorted(partitions, key=lambda each: -(each["lag"] or 0))[:lines]
    table = _table("Partition", "Next", "Lag", "Latest event")
    for each in shown:
        lag = NULL if each["lag"] is None else f"{each['lag']:,}"
        latest = NULL if each["latest_at"] is None else _local(each["latest_at"], status["timezone"])
        name = plain(each["partition"], max(8, width - 40))
        table.add_row(name, f"{each['next_offset'] or 0:,}", Text(lag, "yellow" if each["lag"] else ""), latest)
    yield Text()
    yield table
    if len(partitions) > len(shown):
        yield Text(f"and {len(partitions) - len(shown):,} more, with less lag", "dim")


def _today(status: dict[str, Any], width: int, lines: int) -> Iterator[RenderableType]:
    told = status["today"]
    if told is None:
        return
    rows = told["kpis"]
    all_channels = [row for row in rows if row["channel"] is None]
    shown = [*[row for row in rows if row["channel"] is not None][:lines], *all_channels]
    heads = ["All channels" if row["channel"] is None else plain(row["channel"], _WIDEST) for row in shown]
    columns = {name: [format_kpi(row[name], _UNITS[name]) for row in shown] for name in _HEADS}
    first = f"{datetime.fromisoformat(told['date']):%A}\n{told['date']}"
    room = width - max(map(cell_len, (*first.split("\n"), *heads)))
    fitting = []
    for name in (*_FIRST_KPIS, *(name for name in _HEADS if name not in _FIRST_KPIS)):
        needed = max(map(cell_len, (*_HEADS[name].split("\n"), *columns[name]))) + 2
        if needed > room:
            break
        fitting.append(name)
        room -= needed
    names = [name for name in _HEADS if name in fitting]
    table = _table(first, *(_HEADS[name] for name in names))
    for place, head in enumerate(heads):
        cells = [Text(columns[name][place]) for name in names]
        table.add_row(Text(head), *cells, style="bold" if shown[place]["channel"] is None else "")
    yield Text()
    yield table
    more = len(rows) - len(shown)
    if more > 0:
        yield Text(f"and {more:,} more channels, less busy", "dim")


def _waiting(view: View, width: int, lines: int) -> Iterator[RenderableType]:
    yield Text()
    if view.trouble is not None:
        yield Text(plain(view.trouble), "red")
    result = view.result
    if result is None:
        return
    if result.as_of is None:
        yield Text(f"Commit {result.commit_id:,}, {_ago(view, result.committed_at)} old, has no event yet.", "dim")
        return
    turns = "turn waits" if result.waiting_turn_count == 1 else "turns wait"
    as_of = _local(result.as_of.isoformat(), "UTC" if view.status is None else view.status["timezone"])
    text = Text(f"{result.waiting_turn_count:,} {turns}", "bold")
    yield text.append(
        f" as of {as_of}, by commit {result.commit_id:,}, {_ago(view, result.committed_at)} old; the longest:",
        "not bold",
    )
    rows = result.waiting[:lines]
    if not rows:
        return
    cells = {
        name: [format_seconds(row[name]) if name == "waiting_seconds" else _word(name, row[name]) for row in rows]
        for name in _WAITING
    }
    names = [name for name in _WAITING if any(cell != NULL for cell in cells[name])]
    for name in _LAST_WAITING:
        if sum(max(map(cell_len, (_title(each), *cells[each]))) + 2 for each in names) - 2 > width and name in names:
            names.remove(name)
    table = _table(*map(_title, names), are_numbers=False)
    for place in range(len(rows)):
        table.add_row(*(Text(cells[name][place], overflow="ellipsis") for name in names))
    yield table


def _table(*heads: str, are_numbers: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        justify = "right" if place and are_numbers else "left"
        table.add_column(Text(head, justify=justify), justify=justify, no_wrap=True, vertical="bottom")
    return table


def _title(name: str) -> str:
    return {"waiting_seconds": "Waiting", "conversation_key": "Conversation"}.get(
        name, name.removesuffix("_id").capitalize()
    )


def _word(name: str, value: Any) -> str:
    return NULL if value is None else plain(value, _WIDEST_KEY if name == "conversation_key" else _WIDEST)


def _ago(view: View, moment: str | datetime | None) -> str:
    seconds = view.seconds_since(moment)
    return NULL if seconds is None else format_seconds(round(seconds))


def _seconds(seconds: float | None) -> str:
    return NULL if seconds is None else f"{seconds:.2f}s" if seconds < 1 else format_seconds(seconds)


def _warned(value: float | None, limit: float) -> str:
    return "yellow" if value is not None and value > limit else ""


def _local(moment: str, zone: str) -> str:
    """A moment in a zone, to the second."""
    return f"{datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}"
