"""A stream: whatever arrives in whatever order and whenever it is stopped, it is what one run over everything gives."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from golden import cases, compare, lines_of, settings_of
from test_batch import read_duckdb
from test_growth import event, options, rows_of, split, write

from pipelines.batch import run as run_batch
from pipelines.cli import main
from pipelines.cycle import NothingNew
from pipelines.stream.run import StreamOptions, run
from pipelines.stream.sources import Range
from pipelines.stream.store import LIVE
from pipelines.stream.watermark import Idleness, find_watermark
from pipelines.summary import RunSummary
from transforms.settings import DAY, HOUR, Settings
from transforms.stream_settings import StreamSettings

AT_ONCE = StreamSettings(
    allowed_lateness=500 * 365 * DAY, out_of_orderness=0, idle_timeout=0, max_future=500 * 365 * DAY
)
"""Nothing is late, and once all is read time has passed up to the clock."""


def stream(
    folder: Path, output: Path, settings: Settings, now: int, rules: StreamSettings = AT_ONCE, between: float = 0
) -> None:
    """Takes the files of a folder, one a cycle, until there are no more; publishes at the end and every so often."""
    given = StreamOptions(
        output,
        settings,
        rules,
        inputs=(str(folder),),
        until_caught_up=True,
        rows_a_cycle=1,
        seconds_between_publishes=between,
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
            at = now if number == len(files) - 1 else now - 10 * DAY
            stream(inbox, folder / "streamed", settings, at, between=rng.choice((0, 1_000)))
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
        at = now if number == len(files) - 1 else 0
        stream(inbox, folder / "streamed", settings, at, rules, between=rng.choice((0, 1_000)))
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


def check_golden(case: Path, folder: Path) -> None:
    """Streams a case in three parts, and compares its tables with what they have to be."""
    folder.mkdir()
    settings, lines = replace(settings_of(case), as_of=None), lines_of(case)
    as_of = batch([case / "events.ndjson"], folder / "batch", settings_of(case)).as_of
    if as_of is None:
        return
    (folder / "inbox").mkdir()
    for part in range(3):
        write(folder / "inbox" / f"{part}.ndjson", *lines[part::3])
    rules = StreamOptions(
        folder / "out",
        settings,
        AT_ONCE,
        inputs=(str(folder / "inbox"),),
        format="ndjson",
        until_caught_up=True,
        rows_a_cycle=1,
    )
    run(rules, now=lambda: round(as_of.timestamp() * 1e6))
    assert compare({name: read_duckdb(folder / "out", name) for name in ("conversations", "turns", "kpis")}, case) == []


@pytest.mark.skipif(not cases(), reason="the golden cases are not beside the project")
@pytest.mark.parametrize("case", cases()[::50], ids=lambda case: case.name)
def test_golden_case(case: Path, tmp_path: Path) -> None:
    """Some golden cases, in three cycles."""
    check_golden(case, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.skipif(not cases(), reason="the golden cases are not beside the project")
def test_many_golden_cases(tmp_path: Path) -> None:
    """Many more of them."""
    for number, case in enumerate(cases()[::3]):
        check_golden(case, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 108, 4))
def test_many_worlds(first: int, tmp_path: Path, tidy: None) -> None:
    """Many more random worlds, with late events and without."""
    for seed in range(first, first + 4):
        for check in (check_world, check_late_world):
            with contextlib.suppress(pytest.skip.Exception):
                check(seed, tmp_path / f"{check.__name__} {seed}")


def test_late_events_and_mended_rows_are_fed_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is late joins its conversation while that is open; of one that is gone a batch run tells."""
    inbox, output, settings = tmp_path / "inbox", tmp_path / "out", Settings()
    inbox.mkdir()
    begin, rules = 1_767_571_200_000_000, replace(AT_ONCE, allowed_lateness=HOUR)
    write(
        inbox / "1.ndjson",
        event("a", 0),
        event("b", 50, conversation_id="d"),
        event("x", -9_500, conversation_id="old"),
    )
    stream(inbox, output, settings, begin + 60 * HOUR, rules)
    bad = event("d", 59.5, conversation_id="d", sentiment=5)
    write(
        inbox / "2.ndjson",
        event("c", 10, "reply", author_type="agent", agent_id="A"),
        bad,
        event("y", -9_499, "reply", author_type="agent", conversation_id="old"),
        event("z", 1, conversation_id="new"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.stream.row_files.MANY_FILES", 1)
        stream(inbox, output, settings, begin + 60 * HOUR, rules)
        stream(inbox, output, settings, begin + 61 * HOUR, rules)
    letters, late = tmp_path / "letters.ndjson", tmp_path / "late.ndjson"
    told = ["replay", str(output), "--export-dead-letters", str(letters), "--export-late-events", str(late)]
    assert main(told) == 0
    assert letters.read_bytes().splitlines() == [bad]
    assert {json.loads(line)["event_id"] for line in late.read_text().splitlines()} == {"c", "y", "z"}
    mended = event("d", 59.5, conversation_id="d", sentiment=0.5)
    write(letters, mended)
    for _ in range(2):
        assert main(["replay", str(output), "--input", str(letters), "--input", str(late)]) == 0
    said = capsys.readouterr().out
    assert "4 rows read: 3 events kept, 0 dead letters, 0 exact duplicates, 1 late events" in said
    assert "0 rows read" in said
    whole = write(
        tmp_path / "whole.ndjson",
        *(line for line in (inbox / "1.ndjson").read_bytes().splitlines()),
        event("c", 10, "reply", author_type="agent", agent_id="A"),
        mended,
        event("z", 1, conversation_id="new"),
    )
    batch([whole], tmp_path / "whole", replace(settings, as_of=begin + 61 * HOUR))
    found, expected = rows_of(output), rows_of(tmp_path / "whole")
    for name in ("conversations", "turns", "kpi_statistics", "kpis"):
        assert found[name] == expected[name]


@pytest.mark.parametrize(
    ("latest", "idle", "expected"),
    [
        ({"a": 100, "b": 50}, (), 40),
        ({"a": 100, "b": 50}, ("b",), 90),
        ({"a": 100, "b": None}, (), None),
        ({"a": 100, "b": None}, ("b",), 90),
        ({"a": 100, "b": 50}, ("a", "b"), 980),
        ({"a": None}, ("a",), None),
        ({}, (), None),
    ],
)
def test_watermark(latest: dict[str, int | None], idle: tuple[str, ...], expected: int | None) -> None:
    """The least of what the partitions that are not idle have come to; it never goes back."""
    rules = StreamSettings(out_of_orderness=10, idle_timeout=20)
    assert find_watermark(None, latest, idle, rules, 1_000) == expected
    later = find_watermark(70, latest, idle, rules, 1_000)
    assert later == (980 if len(idle) == len(latest) else max(expected or 0, 70))


def test_idle_partitions() -> None:
    """A partition is idle once nothing has come for the timeout, and as soon as something comes it is not."""
    clock = iter((0.0, 5.0, 11.0, 12.0, 23.0))
    idleness = Idleness(10_000_000, lambda: next(clock))
    nothing, some = Range(3, 3), Range(3, 4)
    assert idleness.look({"a": nothing, "b": nothing}) == frozenset()
    assert idleness.look({"a": some, "b": nothing}) == frozenset()
    assert idleness.look({"a": nothing, "b": nothing}) == {"b"}
    assert idleness.look({"a": nothing, "b": Range(3, 3, lag=1)}) == frozenset()
    assert idleness.look({"a": nothing, "b": nothing, "c": nothing}) == {"a", "b"}
