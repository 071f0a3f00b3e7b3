"""A stream: whatever arrives in whatever order and whenever it is stopped, it is what one run over everything gives."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from test_growth import options, rows_of, split, write

from pipelines.batch import run as run_batch
from pipelines.cycle import NothingNew
from pipelines.stream.run import StreamOptions, run
from pipelines.stream.store import LIVE
from pipelines.summary import RunSummary
from transforms.settings import DAY, HOUR, Settings
from transforms.stream_settings import StreamSettings

AT_ONCE = StreamSettings(
    allowed_lateness=500 * 365 * DAY, out_of_orderness=0, idle_timeout=0, max_future=500 * 365 * DAY
)
"""Nothing is late, and once all is read time has passed up to the clock."""


def stream(folder: Path, output: Path, settings: Settings, now: int, rules: StreamSettings = AT_ONCE) -> None:
    """Takes the files of a folder, one a cycle, until there are no more."""
    given = StreamOptions(
        output,
        settings,
        rules,
        inputs=(str(folder),),
        until_caught_up=True,
        rows_a_cycle=1,
        seconds_between_publishes=0,
    )
    run(given, now=lambda: now)


def lines_left(file: Path, late: set[int]) -> list[bytes]:
    """The lines of a file; those of some numbers are blank."""
    return [b"" if number in late else line for number, line in enumerate(file.read_bytes().split(b"\n"), 1)]


def batch(inputs: list[Path], output: Path, settings: Settings) -> RunSummary:
    """One run over some files."""
    summary = run_batch(options(inputs, output, settings))
    assert not isinstance(summary, NothingNew)
    return summary


@pytest.fixture
def tidy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts files of open rows together, and drops what has ended, as often as can be."""
    monkeypatch.setattr("pipelines.stream.row_files.MANY_FILES", 2)
    monkeypatch.setattr("pipelines.stream.row_files.SMALL_ROWS", 8)
    monkeypatch.setattr("pipelines.stream.row_files._SECONDS_BETWEEN_SWEEPS", 0.0)
    monkeypatch.setattr("pipelines.stream.row_files._MUCH_OF_A_FILE", 0.01)


def check_world(seed: int, folder: Path) -> None:
    """Streams a world in parts, with restarts between them, and runs over all of it at once."""
    folder.mkdir()
    files, given = split(seed, folder)
    rng = random.Random(f"stream {seed}")
    settings = replace(given, as_of=None)
    latest = batch(files, folder / "latest", settings).as_of
    if latest is None:
        pytest.skip("this world has no event")
    now = round(latest.timestamp() * 1e6) + rng.choice((0, 1, HOUR, 40 * DAY, 400 * DAY))
    inbox = folder / "inbox"
    inbox.mkdir()
    moved = [inbox / file.name for file in files]
    for number, file in enumerate(files):
        shutil.copy(file, moved[number])
        if rng.random() < 0.5 or number == len(files) - 1:
            stream(inbox, folder / "streamed", settings, now if number == len(files) - 1 else now - 10 * DAY)
            if rng.random() < 0.3:
                shutil.rmtree(folder / "streamed" / LIVE)
    batch(moved, folder / "whole", replace(settings, as_of=now))
    assert rows_of(folder / "streamed") == rows_of(folder / "whole")


def check_late_world(seed: int, folder: Path) -> None:
    """Streams a world of which much comes too late; all else is what one run without the late events gives."""
    folder.mkdir()
    files, given = split(seed, folder)
    rng = random.Random(f"late {seed}")
    settings = replace(given, as_of=None)
    latest = batch(files, folder / "latest", settings).as_of
    if latest is None:
        pytest.skip("this world has no event")
    now = round(latest.timestamp() * 1e6) + rng.choice((0, HOUR, 400 * DAY))
    rules = replace(AT_ONCE, allowed_lateness=rng.choice((1, HOUR, 3 * DAY, 40 * DAY)))
    inbox, rest = folder / "inbox", folder / "rest"
    inbox.mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, inbox)
        stream(inbox, folder / "streamed", settings, now if number == len(files) - 1 else 0, rules)
    with duckdb.connect(str(folder / "streamed" / "care.duckdb"), read_only=True) as warehouse:
        late = warehouse.sql("SELECT source, source_row FROM late_events").fetchall()
        sums = "rows_read_count - events_kept_count - dead_letter_count - exact_duplicate_count - late_event_count"
        assert warehouse.sql(f"SELECT sum({sums}), sum(late_event_count) FROM runs").fetchall() == [(0, len(late))]
    found = rows_of(folder / "streamed")
    inbox.rename(rest)
    inbox.mkdir()
    for file in files:
        numbers = {row for source, row in late if source == str(inbox / file.name)}
        write(inbox / file.name, *lines_left(rest / file.name, numbers))
    batch([inbox / file.name for file in files], folder / "whole", replace(settings, as_of=now))
    expected = rows_of(folder / "whole")
    del found["runs"], expected["runs"]
    assert found == expected


@pytest.mark.parametrize("seed", range(3))
def test_late_events_are_all_that_is_missing(seed: int, tmp_path: Path, tidy: None) -> None:
    """Random worlds in which state is dropped as soon as it may be."""
    check_late_world(seed, tmp_path / "world")


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_is_what_one_run_gives(seed: int, tmp_path: Path, tidy: None) -> None:
    """Random worlds of all kinds in any order of arrival, stopped between cycles; the live store may get lost."""
    check_world(seed, tmp_path / "world")
