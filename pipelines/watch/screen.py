"""What `care-kpis watch` shows: a stream's figures and tables, laid out for a width and a height."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.summary import NULL, format_seconds
from pipelines.watch.tables import partitions, plain, today, waiting
from pipelines.watch.view import View

_LINES = 8
"""Rows of a section at most."""

_SHORT = 34
"""A screen of fewer lines has not room for everything."""

_FIRST_FIGURES = ("Events", "Lag", "Watermark", "Cycle", "Cycle takes", "Dead letters", "Late", "Last look")

_LONG_DELAY, _LONG_AGE, _RECENT = 300.0, 10.0, 600.0
"""Seconds: of a watermark that is far behind, of news that is old, and of a sentence that is still worth showing."""


def screen(view: View, width: int, height: int | None = None) -> RenderableType:
    """Lays a view out.

    Args:
      view: what to show.
      width: cells of a line.
      height: lines; None: as many as it takes.
    """
    is_short = height is not None and height < _SHORT
    lines = _LINES
    if height is not None:
        # What is there in any case, and what each further row of all tables takes.
        one, two = (_height(_sections(view, width, lines, is_short), width) for lines in (1, 2))
        lines = max(1, min(_LINES, 1 + (height - one) // max(1, two - one)))
    return _sections(view, width, lines, is_short)


def _height(shown: RenderableType, width: int) -> int:
    return len(Console(width=width, file=io.StringIO()).render_lines(shown, pad=False))


def _sections(view: View, width: int, lines: int, is_short: bool) -> Group:
    """All sections, with so many lines of each."""
    parts: list[RenderableType] = [_head(view)]
    status = view.status
    if status is not None:
        parts += _figures(view, status, width, is_short)
        parts += _sentences(view, status, lines)
        # Where room is dear, partitions of which there is nothing to say are left out.
        if status["lag"] or not is_short:
            parts += partitions(view, status, width, lines)
        parts += today(status, width, lines)
    parts += waiting(view, width, lines)
    return Group(*parts)


def _head(view: View) -> Text:
    status = view.status
    if status is None:
        return Text(f"No stream has run into {view.output} yet.", "bold")
    if view.is_running:
        text = Text(f"Streaming into {view.output}", "bold green")
        return text.append(f" for {view.ago(status['started_at'])}, process {status['process_id']}", "default")
    if status["ended_at"] is None:
        text = Text(f"The stream into {view.output} is not running", "bold red")
        last = view.ago(status["updated_at"])
        return text.append(f": it ended without a word, its last sign of life is {last} old.", "default")
    text = Text(f"The stream into {view.output} is not running", "bold red")
    text.append(f": it ended {view.ago(status['ended_at'])} ago", "default")
    by = f". {plain(status['ended_by'])}" if status["ended_by"] else ", as it was asked to."
    return text.append(by, "default")


def _figures(view: View, status: dict[str, Any], width: int, is_short: bool) -> Iterator[RenderableType]:
    """The figures in as many columns as fit."""
    watermark = status["watermark"]
    delay = None if watermark is None else (view.now - datetime.fromisoformat(watermark)).total_seconds()
    age = view.seconds_since(status["updated_at"]) or 0.0
    committed = view.ago(status["committed_at"])
    cycles, published = status["cycle_seconds"], status["published"]
    shown = [
        ("Events", f"{status['rows_per_second']:,.0f}/s" if view.is_running else NULL, ""),
        ("Lag", NULL if status["lag"] is None else f"{status['lag']:,}", "yellow" if status["lag"] else ""),
        ("Watermark", _delay(delay), "yellow" if delay is not None and delay > _LONG_DELAY else ""),
        ("Cycle", f"{status['cycle']:,}" + (f", {committed} ago" if committed != NULL else ""), ""),
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
        took = f"{view.ago(published['published_at'])} ago, took {_seconds(published['publish_seconds'])}"
        shown.insert(5, (f"Commit {published['commit_id']:,}", took, ""))
    looked = status["looked_seconds_ago"] + age
    if view.is_running and looked > _LONG_AGE:
        shown.append(("Last look", f"{format_seconds(looked)} ago", "red"))
    if is_short:
        shown = [each for each in shown if each[0] in _FIRST_FIGURES or each[0].startswith("Commit")]
    columns = max(1, min(3, width // 36))
    table = Table.grid(padding=(0, 2, 0, 0))
    lines = -(-len(shown) // columns)
    for line in range(lines):
        cells = shown[line::lines]
        table.add_row(*(text for label, value, style in cells for text in (Text(label, "dim"), Text(value, style))))
    yield Text()
    yield table


def _sentences(view: View, status: dict[str, Any], lines: int) -> Iterator[RenderableType]:
    recent = [said for said in status["said"] if (view.seconds_since(said["at"]) or 0.0) < _RECENT][-lines:]
    if recent:
        yield Text()
    for said in recent:
        text = Text(f"{view.ago(said['at'])} ago  ", "dim")
        yield text.append(plain(said["sentence"]), "yellow")


def _seconds(seconds: float | None) -> str:
    return NULL if seconds is None else f"{seconds:.2f}s" if seconds < 1 else format_seconds(seconds)


def _delay(seconds: float | None) -> str:
    if seconds is None:
        return NULL
    # Events may be a little ahead of the clock, and the watermark with them.
    return f"{format_seconds(abs(seconds))} {'behind' if seconds >= 0 else 'ahead'}"
