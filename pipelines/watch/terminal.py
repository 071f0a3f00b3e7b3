"""How things stand with a stream, printed once, or shown again and again."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from pipelines.watch.screen import screen
from pipelines.watch.view import View, Watched

_SECONDS_BETWEEN_VIEWS = 1.0


def print_once(output: Path) -> None:
    """Prints how things stand.

    Raises:
      UserError: there is nothing to look at.
    """
    _print(Watched(output).first(), Console(highlight=False))


def print_json(output: Path) -> None:
    """Prints the status, whether the stream is running, and the published result, as one object.

    Raises:
      UserError: there is nothing to look at.
    """
    view = Watched(output).first()
    result = None if view.result is None else asdict(view.result)
    told = {"is_running": view.is_running, "status": view.status, "result": result, "trouble": view.trouble}
    click.echo(json.dumps(told, ensure_ascii=False, indent=1, default=_as_text))


def show_live(output: Path) -> None:
    """Shows how things stand, until it is stopped; once where there is no terminal.

    Raises:
      UserError: there is nothing to look at.
    """
    console = Console(highlight=False)
    watched = Watched(output)
    view = watched.first()
    if not console.is_terminal:
        _print(view, console)
        return
    # The terminal gets its own screen back, however this ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(screen(view, console.width, console.height), refresh=True)
                time.sleep(_SECONDS_BETWEEN_VIEWS)
                view = watched.look()
    except KeyboardInterrupt:
        return


def _print(view: View, console: Console) -> None:
    console.print(screen(view, console.width))


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
