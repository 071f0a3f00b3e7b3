"""A result that grows: whatever is appended in whatever order, it is what one run over everything gives."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import world

from fixtures.generate import write_events
from pipelines.batch import run
from pipelines.cli import main
from pipelines.cycle import NothingNew
from pipelines.growth import STATE, STATE_FILE, WAKES_FILE
from pipelines.options import BatchOptions
from pipelines.summary import RunSummary
from transforms.errors import UserError
from transforms.settings import HOUR, ChannelSettings, Settings
from transforms.wakes import load_wakes

ROOT = Path(__file__).parents[1]
TABLES = ("conversations", "turns", "kpi_statistics", "kpis", "dead_letters")
SUMS = "rows_read_count events_kept_count dead_letter_count exact_duplicate_count stray_event_count".split()


def rows_of(output: Path) -> dict[str, list[str]]:
    """The rows of every table but the commit's own columns, in no order; DuckDB and Parquet say the same."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        found = {}
        for table in TABLES:
            stored = "kpi_values" if table == "kpis" else table
            names = [row[0] for row in warehouse.sql(f"DESCRIBE {stored}").fetchall()]
            parts = [pq.read_table(path, partitioning=None) for path in (output / table).rglob("*.parquet")]
            warehouse.register("files", pa.concat_tables(parts).select(names))
            for one, other in ((stored, "files"), ("files", stored)):
                assert warehouse.sql(f"FROM {one} EXCEPT ALL FROM {other}").fetchall() == []
            left_out = "EXCLUDE (revision, changed_at)" if table == "kpis" else ""
            found[table] = sorted(map(repr, warehouse.sql(f"SELECT * {left_out} FROM {table}").fetchall()))
        sums = ", ".join(f"sum({name})" for name in SUMS)
        lasts = ", ".join(f"last({n} ORDER BY commit_id)" for n in ("conversation_count", "turn_count", "as_of"))
        found["runs"] = [repr(warehouse.sql(f"SELECT {sums}, {lasts} FROM runs").fetchall())]
    return found


def options(inputs: Sequence[Path], output: Path, settings: Settings = Settings(), **more: Any) -> BatchOptions:  # noqa: B008
    """A run of some files."""
    return BatchOptions(tuple(map(str, inputs)), output, settings, **{"max_dead_letter_rate": 1.0, **more})


def append(inputs: Sequence[Path], output: Path, settings: Settings = Settings(), **more: Any) -> RunSummary:  # noqa: B008
    """An appending run that found something new."""
    summary = run(options(inputs, output, settings, append=True, **more))
    assert isinstance(summary, RunSummary)
    return summary


def event(name: str, hour: float, kind: str = "message", **more: Any) -> bytes:
    """A line of NDJSON; hours count from 2026-01-05, a Monday."""
    at = 1_767_571_200_000 + round(hour * 3_600_000)
    row = {"event_id": name, "event_type": kind, "occurred_at": at, "channel": "email", "conversation_id": "c", **more}
    return json.dumps(row).encode()


def write(path: Path, *lines: bytes) -> Path:
    """A file of lines."""
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def split(seed: int, folder: Path) -> tuple[list[Path], Settings]:
    """A random world in up to five files: at random, or as time goes (old ones after new ones too)."""
    rng = random.Random(seed)
    lines, settings = world(seed)
    count = rng.randint(2, 5)
    parts: list[list[bytes]] = [[] for _ in range(count)]
    at_random = rng.random() < 0.5
    for place, line in enumerate(lines):
        parts[rng.randrange(count) if at_random else place * count // len(lines)].append(line)
    files = [write(folder / f"part-{number}.ndjson", *part) for number, part in enumerate(parts)]
    rng.shuffle(files)
    return files, settings


def check_world(seed: int, folder: Path) -> None:
    """Appends the parts of a world one after another, and runs over all of them at once."""
    folder.mkdir()
    files, settings = split(seed, folder)
    try:
        run(options(files, folder / "whole", settings))
    except UserError:
        pytest.skip("as_of of this world lies before an event")
    shards = random.Random(f"shards {seed}")
    for file in files:
        with pytest.MonkeyPatch.context() as patch:
            count = shards.choice((1, 1, 3))
            patch.setattr("pipelines.cycle.shard_count", lambda rows, count=count: count)
            run(options([file], folder / "grown", settings, append=True))
    assert rows_of(folder / "grown") == rows_of(folder / "whole")


@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_to_the_whole(seed: int, tmp_path: Path) -> None:
    """Random worlds of all kinds in random parts and any order of arrival."""
    check_world(seed, tmp_path / "world")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 140, 10))
def test_many_worlds_add_up(first: int, tmp_path: Path) -> None:
    """The same of many more worlds."""
    for seed in range(first, first + 10):
        check_world(seed, tmp_path / str(seed))


def test_files_are_known_by_content(tmp_path: Path) -> None:
    """A copy under another name is skipped; other content under a name that was used is taken."""
    one = write(tmp_path / "day.ndjson", event("a", 1), event("b", 2, "reply", author_type="agent"))
    output = tmp_path / "output"
    append([one], output)
    copy = write(tmp_path / "copy.ndjson", *one.read_bytes().splitlines())
    nothing = run(options([one, copy], output, append=True))
    assert isinstance(nothing, NothingNew) and "2 of the files were taken already" in nothing.notes[0]
    write(one, event("c", 30), b"{", event("a", 1, topic="other"))
    summary = append([one, copy], output)
    assert summary.commit_id == 2 and summary.rows_read_count == 3 and "1 of the files" in summary.notes[0]
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        letters = warehouse.sql("SELECT source, source_row, reason FROM dead_letters ORDER BY ALL").fetchall()
    assert letters == [
        (f"{one}@2", 2, "unreadable"),
        (f"{one}@2", 3, "conflicting_duplicate"),
    ]
    assert {taken["rows"] for taken in json.loads((output / ".current" / STATE / STATE_FILE).read_text())["taken"]} == {
        2,
        3,
    }


def test_a_file_that_grew(tmp_path: Path) -> None:
    """It is named and left alone; with reread its new rows are taken, also the end of a row that was cut off."""
    lines = [event("a", 1), b"not json", event("a", 1), event("b", 2, "reply", author_type="agent")]
    log, output = tmp_path / "log.ndjson", tmp_path / "output"
    log.write_bytes(b"\n".join(lines) + b"\n" + event("c", 3)[:20])
    append([log], output)
    before = rows_of(output)
    later = [event("c", 3), event("b", 2, "reply", author_type="agent", topic="t"), event("d", 4), b"[]"]
    log.write_bytes(b"\n".join([*lines, *later]))
    left = run(options([log], output, append=True))
    assert isinstance(left, NothingNew) and "have grown since they were taken" in left.notes[0]
    assert str(log) in left.notes[0] and rows_of(output) == before
    summary = append([log], output, grown_files="reread")
    assert summary.rows_read_count == 3
    run(options([log], tmp_path / "whole"))
    assert rows_of(output) == rows_of(tmp_path / "whole")
    # Once more, and with another file beside it.
    log.write_bytes(log.read_bytes() + b"\n" + event("e", 5, "resolved"))
    more = write(tmp_path / "more.ndjson", event("z", 9, conversation_id="other"))
    append([log, more], output, grown_files="reread")
    run(options([log, more], tmp_path / "whole"))
    assert {**rows_of(output), "runs": []} == {**rows_of(tmp_path / "whole"), "runs": []}


def test_only_files_with_changed_rows_are_written(tmp_path: Path) -> None:
    """All others are the same files as before."""
    months = [
        write(tmp_path / f"{month}.ndjson", event(f"a{month}", month * 24 * 31, conversation_id=f"c{month}"))
        for month in range(4)
    ]
    output = tmp_path / "output"
    append(months, output)
    before = {path.relative_to(output.resolve()): path.stat().st_ino for path in parquet_files(output)}
    append([write(tmp_path / "new.ndjson", event("n", 24 * 31 * 3 + 1, conversation_id="c3"))], output)
    after = {path.relative_to(output.resolve()): path.stat().st_ino for path in parquet_files(output)}
    changed = {path.parts[0] + " " + path.parent.name[-7:] for path in after if before.get(path) != after[path]}
    assert {name for name in changed if name.startswith(("conversations", "turns"))} == {
        "conversations 2026-04",
        "turns 2026-04",
    }
    assert before.keys() <= after.keys() and len(before) == 12


def parquet_files(output: Path) -> list[Path]:
    """The files of the tables that are kept by month, through the links that readers use."""
    folders = [output.resolve() / table for table in ("conversations", "turns", "kpi_statistics")]
    return [path for folder in folders for path in folder.rglob("*.parquet")]


def test_time_alone_changes_something(tmp_path: Path) -> None:
    """Inferred resolutions and what leaves the backlog come with as_of, for keys without any new event."""
    channel = ChannelSettings(gap=HOUR, max_idle=48 * HOUR, infer_resolution=True)
    settings = Settings(default=channel)
    first = write(
        tmp_path / "1.ndjson",
        *(event("a", 1), event("b", 1.5, "reply", author_type="agent"), event("c", 1, conversation_id="waits")),
    )
    later = write(tmp_path / "2.ndjson", event("z", 3, conversation_id="other"))
    last = write(tmp_path / "3.ndjson", event("y", 90, conversation_id="third"))
    output = tmp_path / "output"
    for file in (first, later, last):
        append([file], output, settings)
    run(options([first, later, last], tmp_path / "whole", settings))
    assert rows_of(output) == rows_of(tmp_path / "whole")
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM conversations WHERE is_resolution_inferred").fetchall() == [(1,)]


def test_repeat_contacts_across_commits(tmp_path: Path) -> None:
    """A customer who comes back undoes a first contact resolution of another key, once, whatever is looked at later."""
    settings = Settings(repeat_contact=48 * HOUR)

    def solved(thread: str, hour: float, customer: str) -> list[bytes]:
        more = {"conversation_id": thread, "customer_id": customer}
        return [
            event(f"m{thread}", hour, **more),
            event(f"h{thread}", hour + 1, "reply", author_type="agent", **more),
            event(f"r{thread}", hour + 2, "resolved", **more),
        ]

    days = [
        [*solved("c1", 1, "u"), *solved("c2", 1, "v")],
        solved("c3", 20, "u"),
        [event("w", 30, "wrap_up", conversation_id="c1", customer_id="u", duration_seconds=60)],
        [*solved("c4", 40, "w"), *solved("c5", 41, "v")],
        [event("n", 45, "note", conversation_id="c3", customer_id="u")],
    ]
    files = [write(tmp_path / f"{place}.ndjson", *lines) for place, lines in enumerate(days)]
    for place, file in enumerate(files):
        append([file], tmp_path / "output", settings)
        run(options(files[: place + 1], tmp_path / f"whole-{place}", settings))
        assert rows_of(tmp_path / "output") == rows_of(tmp_path / f"whole-{place}")


def test_wakes_do_not_pile_up(tmp_path: Path) -> None:
    """There is one for each open conversation, however often it was looked at."""
    output = tmp_path / "output"
    for day in range(4):
        lines = [event(f"m{day}", 24 * day), event(f"n{day}", 24 * day + 1, conversation_id="d")]
        append([write(tmp_path / f"{day}.ndjson", *lines)], output)
        assert len(load_wakes(output / ".current" / STATE / WAKES_FILE)) == 2
    append([write(tmp_path / "end.ndjson", event("r", 99, "resolved"))], output)
    assert len(load_wakes(output / ".current" / STATE / WAKES_FILE)) == 1


def test_as_of_goes_on_and_back(tmp_path: Path) -> None:
    """A given as_of may be later without any new file; without it the result is as of its latest event again."""
    settings = Settings(default=ChannelSettings(gap=HOUR, max_idle=48 * HOUR, max_open=48 * HOUR))
    one = write(tmp_path / "1.ndjson", event("a", 1))
    two = write(tmp_path / "2.ndjson", event("b", 2, conversation_id="d"))
    output = tmp_path / "output"
    append([one], output, settings)
    late = Settings(default=settings.default, as_of=1_767_571_200_000_000 + 100 * HOUR)
    append([one], output, late)
    run(options([one], tmp_path / "late", late))
    assert {**rows_of(output), "runs": []} == {**rows_of(tmp_path / "late"), "runs": []}
    append([two], output, settings)
    run(options([one, two], tmp_path / "whole", settings))
    assert rows_of(output) == rows_of(tmp_path / "whole")


def test_the_latest_event_is_replaced(tmp_path: Path) -> None:
    """An older copy of the latest event wins: time goes back."""
    settings = Settings(default=ChannelSettings(gap=HOUR, max_idle=20 * HOUR, max_open=20 * HOUR))
    one = write(tmp_path / "1.ndjson", event("a", 1, conversation_id="f"), event("b", 2), event("l", 30))
    two = write(tmp_path / "2.ndjson", event("l", 5), event("m", 4, conversation_id="e"))
    output = tmp_path / "output"
    append([one], output, settings)
    append([two], output, settings)
    run(options([one, two], tmp_path / "whole", settings))
    assert rows_of(output) == rows_of(tmp_path / "whole")


def test_what_cannot_be_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another result, other settings, and exports whose threads span files are refused in one sentence."""
    one = write(tmp_path / "1.ndjson", event("a", 1))
    two = write(tmp_path / "2.ndjson", event("b", 2))
    command = ["batch", "--append", "--input", str(two), "--output", str(tmp_path / "output")]
    run(options([one], tmp_path / "output"))
    assert main(command) == 2
    assert "Expected a result that was begun with --append" in capsys.readouterr().err
    append([one], tmp_path / "grown")
    command[-1] = str(tmp_path / "grown")
    assert main([*command, "--timezone", "Asia/Tokyo"]) == 2
    assert 'timezone changed from {"timezone": "UTC"} to {"timezone": "Asia/Tokyo"}' in capsys.readouterr().err
    assert main([*command, "--source", "twcs"]) == 2
    assert "without --append" in capsys.readouterr().err
    (tmp_path / "grown" / ".current" / STATE / STATE_FILE).write_text("{")
    assert main(command) == 2
    assert "damaged" in capsys.readouterr().err


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`care-kpis batch --append` twice: the second time there is nothing to do."""
    one = write(tmp_path / "1.ndjson", event("a", 1), event("b", 2, "reply", author_type="agent"))
    command = ["batch", "--append", "--input", str(one), "--output", str(tmp_path / "output")]
    assert main(command) == 0
    assert "Conversations" in capsys.readouterr().out
    assert main(command) == 0
    assert "nothing was new: the result is as it was." in capsys.readouterr().out


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A result of two days, the file of a third, and the result with it."""
    folder = tmp_path_factory.mktemp("days")
    write_events(folder / "in", events=30_000, seed=3, format="ndjson", files=3, days=20)
    first, second, third = sorted((folder / "in").iterdir())
    append([first, second], folder / "before")
    shutil.copytree(folder / "before", folder / "after", symlinks=True)
    append([third], folder / "after")
    return folder / "before", third, folder / "after"


@pytest.mark.slow
def test_killed_at_any_moment(days: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Killed with -9 while it appends: a reader has the old result or the new one, and the next run puts all right."""
    before, file, after = days
    old, new = rows_of(before), rows_of(after)
    output, rng = tmp_path / "output", random.Random(2)
    command = [sys.executable, "-m", "pipelines.batch", "--append", "--input", str(file), "--output", str(output)]
    shutil.copytree(before, output, symlinks=True)
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    length = time.monotonic() - began
    seen = set()
    for place in range(30):
        if rows_of(output) == new:
            shutil.rmtree(output)
            shutil.copytree(before, output, symlinks=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # From about where it has been imported; later and later, so that every stage has its turn.
        time.sleep(length * (0.3 + 0.7 * (place + rng.random()) / 30))
        process.kill()
        seen.add(process.wait())
        assert rows_of(output) in (old, new)
    assert -signal.SIGKILL in seen
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert rows_of(output) == new
    assert [path.name for path in (output / ".snapshots").iterdir() if path.name.endswith(".tmp")] == []
    assert main(["check", str(output)]) == 0


@pytest.mark.slow
def test_disk_is_full(days: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """However little room there is left for a file, the old result stays and one sentence says why."""
    before, file, after = days
    output = tmp_path / "output"
    shutil.copytree(before, output, symlinks=True)
    old = rows_of(output)
    command = f"{sys.executable} -m pipelines.batch --append --input {file} --output {output}"
    for blocks in (10, 500, 3_000, 8_000):
        done = subprocess.run(
            ["bash", "-c", f"ulimit -f {blocks}; trap '' XFSZ; {command}"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert rows_of(output) == old
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    assert rows_of(output) == rows_of(after)


@pytest.mark.parametrize("name", "kpi_statistics conversations care.duckdb manifest.json _state/wakes.npy".split())
def test_damage_is_told(days: tuple[Path, Path, Path], tmp_path: Path, name: str) -> None:
    """What is missing of the result before is said in one sentence that names a way out; nothing is published."""
    before, file, _ = days
    output = tmp_path / "output"
    shutil.copytree(before, output, symlinks=True)
    place = output.resolve() / ".current" / name
    (place if place.is_file() else next(place.rglob("*.parquet"))).unlink()
    with pytest.raises(UserError, match=r"care-kpis rebuild|run over all files"):
        append([file], output)
    assert (output / ".current").readlink().name == "000001"
