"""Progress: one line per stage in a log, a live display on a terminal that leaves nothing behind."""

from __future__ import annotations

import io
import re
from threading import Thread

import pytest
from rich.console import Console

from pipelines.progress import SilentProgress, show_progress


def test_a_log_gets_one_plain_line_per_stage() -> None:
    """With its rows where it counted some, and its seconds; nothing of the data is taken for markup."""
    log = io.StringIO()
    with show_progress(Console(file=log)) as progress:
        progress.stage("Reading [bold]", 2_000)
        progress.advance(1_000)
        progress.advance(211)
        progress.stage("Writing")
    assert re.sub(r"\d+\.\d s", "N s", log.getvalue()) == "Reading [bold]: 1,211 rows, N s\nWriting: N s\n"


def test_the_stage_that_failed_is_in_the_log() -> None:
    """So that a reader sees how far it came."""
    log = io.StringIO()
    with pytest.raises(RuntimeError), show_progress(Console(file=log)) as progress:
        progress.stage("Reading")
        raise RuntimeError
    assert log.getvalue().startswith("Reading: ")


def test_a_run_without_stages_says_nothing() -> None:
    """No stage, no line, and rows outside a stage are no error."""
    log = io.StringIO()
    with show_progress(Console(file=log)) as progress:
        progress.advance(3)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_live_display() -> None:
    """Stages, rows and a cursor that is back at the end."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with show_progress(console) as progress:
        progress.advance(3)
        progress.stage("Reading", 2_000)
        progress.advance(1_211)
        progress.stage("Writing")
    shown = screen.getvalue()
    assert "Reading" in shown
    assert "1,211 rows" in shown
    assert "✓ Writing" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_threads_may_advance_together(is_terminal: bool) -> None:
    """No row is lost between them."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=80, color_system=None)
    with show_progress(console) as progress:
        progress.stage("Reading")
        threads = [Thread(target=lambda: [progress.advance(1) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.stage("Done")
    assert "2,000 rows" in screen.getvalue()


def test_silence() -> None:
    """It can be fed like any other."""
    progress = SilentProgress()
    progress.stage("Reading", 3)
    progress.advance(3)
