"""The tables that `care-kpis watch` shows: partitions, today's KPIs, and who waits longest."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.summary import NULL, format_kpi, format_seconds
from pipelines.watch.view import View
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
_GAP = 3
"""Cells between two columns of a table."""


def plain(text: object, widest: int | None = None) -> str:
    """Text from the data without anything that a terminal would obey, cut to so many cells."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
    if widest is None or cell_len(shown) <= widest:
        return shown
    return set_cell_size(shown, widest - 1).rstrip() + "…"


def partitions(view: View, status: dict[str, Any], width: int, lines: int) -> Iterator[RenderableType]:
    """How far each partition was taken; of many, those that are furthest behind.

    Args:
      view: what to show.
      status: of the stream.
      width: cells of a line.
      lines: how many partitions at most.
    """
    known = status["partitions"]
    if not known:
        return
    # Where none is behind they stay in their order.
    shown = sorted(known, key=lambda each: -(each["lag"] or 0))[:lines]
    table = _table("Partition", "Next offset", "Lag", "Latest event")
    for each in shown:
        lag = NULL if each["lag"] is None else f"{each['lag']:,}"
        name = plain(each["partition"], max(8, width - 48))
        table.add_row(
            Text(name),
            f"{each['next_offset'] or 0:,}",
            Text(lag, "yellow" if each["lag"] else ""),
            view.local(each["latest_at"]),
        )
    yield Text()
    yield table
    if len(known) > len(shown):
        yield Text(f"and {len(known) - len(shown):,} more, none of them further behind", "dim")


def today(status: dict[str, Any], width: int, lines: int) -> Iterator[RenderableType]:
    """Today's KPIs: the busiest channels, and all together; as many KPIs as fit.

    Args:
      status: of the stream.
      width: cells of a line.
      lines: how many channels at most.
    """
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
        needed = max(map(cell_len, (*_HEADS[name].split("\n"), *columns[name]))) + _GAP
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
        yield Text(f"and {more:,} more {'channel' if more == 1 else 'channels'}, less busy", "dim")


def waiting(view: View, width: int, lines: int) -> Iterator[RenderableType]:
    """Who waits longest, by the published result; as much of them as fits.

    Args:
      view: what to show.
      width: cells of a line.
      lines: how many of them at most.
    """
    yield Text()
    if view.trouble is not None:
        yield Text(plain(view.trouble), "red")
    result = view.result
    if result is None:
        return
    if result.as_of is None:
        yield Text(f"Commit {result.commit_id:,}, {view.ago(result.committed_at)} old, has no event yet.", "dim")
        return
    turns = "turn waits" if result.waiting_turn_count == 1 else "turns wait"
    made = f"commit {result.commit_id:,}, {view.ago(result.committed_at)} old"
    text = Text(f"{result.waiting_turn_count:,} {turns}", "bold")
    yield text.append(f" as of {view.local(result.as_of)}, by {made}; the longest:", "not bold")
    rows = result.waiting[:lines]
    if not rows:
        return
    cells = {
        name: [format_seconds(row[name]) if name == "waiting_seconds" else _word(name, row[name]) for row in rows]
        for name in _WAITING
    }
    names = [name for name in _WAITING if any(cell != NULL for cell in cells[name])]
    for name in _LAST_WAITING:
        if _width([[_title(each), *cells[each]] for each in names]) > width and name in names:
            names.remove(name)
    too_wide = _width([[_title(each), *cells[each]] for each in names]) - width
    if too_wide > 0:
        widest = max(map(len, cells["conversation_key"]))
        cells["conversation_key"] = [
            plain(key, max(len("Conversation"), widest - too_wide)) for key in cells["conversation_key"]
        ]
    table = _table(*map(_title, names), are_numbers=False)
    for place in range(len(rows)):
        table.add_row(*(Text(cells[name][place], overflow="ellipsis") for name in names))
    yield table


def _table(*heads: str, are_numbers: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        justify: JustifyMethod = "right" if place and are_numbers else "left"
        table.add_column(Text(head, justify=justify), justify=justify, no_wrap=True, vertical="bottom")
    return table


def _width(columns: list[list[str]]) -> int:
    """Cells that a table of these columns takes."""
    return sum(max(map(cell_len, column)) + _GAP for column in columns) - _GAP


def _title(name: str) -> str:
    return {"waiting_seconds": "Waiting", "conversation_key": "Conversation"}.get(
        name, name.removesuffix("_id").capitalize()
    )


def _word(name: str, value: Any) -> str:
    return NULL if value is None else plain(value, _WIDEST_KEY if name == "conversation_key" else _WIDEST)
