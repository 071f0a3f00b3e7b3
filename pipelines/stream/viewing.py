"""Watching a stream from outside: its status and its published result, once or again and again."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from pipelines.stream.screen import View, screen
from pipelines.stream.status import is_running, read_status
from pipelines.stream.waiting import Results
from transforms.errors import UserError

_SECONDS_BETWEEN_VIEWS = 1.0


class Watched:
    """An output folder that is looked at again and again."""

    def __init__(self, output: Path) -> None:
        """Takes the folder."""
        self._output, self._results = output, Results(output)

    def look(self) -> View:
        """How things stand."""
        status, result, trouble = read_status(self._output), None, None
        try:
            result = self._results.latest()
        except UserError as error:
            trouble = str(error)
        now = datetime.now(UTC)
        running = False
        if status is not None:
            running = is_running(status, (now - datetime.fromisoformat(status["updated_at"])).total_seconds())
        return View(self._output, now, status, running, result, trouble)

    def first(self) -> View:
        """As `look`.

        Raises:
          UserError: there is nothing to look at.
        """
        view = self.look()
        if view.status is None and view.result is None:
            raise UserError(
                view.trouble
                or f"Expected the output folder of a stream, but {self._output} has neither a status nor a result: name "
                "the folder that care-kpis stream was given as --output."
            )
        return view


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
