"""Publishing in a process of its own: whoever dies and whenever, readers have a whole result and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from test_growth import rows_of
from test_stream import AT_ONCE, batch, stream

from fixtures.generate import write_events
from pipelines.stream.beginning import take_over
from pipelines.stream.publisher_process import ProcessEnded, PublisherProcess
from pipelines.stream.publishing import ATTEMPTS, Published
from pipelines.stream.recent import RecentStatistics
from pipelines.stream.restating import Request, publish
from pipelines.stream.run import StreamOptions, run
from pipelines.stream.store import LIVE, LiveStore
from pipelines.stream.watcher import Watcher
from sinks.output_folder import take_lock
from transforms.errors import UserError
from transforms.kpis import WINDOW_KEY
from transforms.settings import Settings
from transforms.tables import KPI_STATISTICS

ROOT = Path(__file__).parents[1]
NOW = 1_800_000_000_000_000
"""After all events."""


@dataclass
class Ears(Watcher):
    """Keeps what a stream tells.

    Attributes:
      sentences: what it said.
      commits: numbers of what it published.
      then: is called after each publish.
    """

    sentences: list[str] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    then: Callable[[], None] = field(default=lambda: None)

    def said(self, sentence: str) -> None:
        """Keeps a sentence."""
        self.sentences.append(sentence)

    def published(self, published: Published) -> None:
        """Keeps the number of a commit."""
        self.commits.append(published.commit_id)
        self.then()


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight files of events."""
    folder = tmp_path_factory.mktemp("inbox")
    write_events(folder, events=6_000, seed=8, format="ndjson", files=8, days=20)
    return folder


@pytest.fixture(scope="module")
def whole(inbox: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What one run over all of them gives."""
    output = tmp_path_factory.mktemp("whole") / "out"
    batch(sorted(inbox.iterdir()), output, Settings(as_of=NOW))
    return rows_of(output)


KILLS = 12
"""So often a test kills processes that publish."""


def stream_all(inbox: Path, output: Path, ears: Watcher) -> None:
    """Takes one file a cycle, and publishes as often as can be."""
    options = StreamOptions(
        output,
        Settings(),
        AT_ONCE,
        inputs=(str(inbox),),
        until_caught_up=True,
        rows_a_cycle=1,
        seconds_between_publishes=0,
    )
    run(options, ears, now=lambda: NOW)


def publishers(of: int) -> list[int]:
    """Ids of the processes that publish for a stream's process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == of and b"publisher_process" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def is_there(process: int) -> bool:
    """Whether a process is alive; one that nobody has waited for is not."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits for something to hold, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "expected it to come about"
        time.sleep(0.01)
    return found


def test_the_publisher_is_killed_at_any_moment(
    inbox: Path, whole: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with -9 again and again: another one publishes, and the result is what one run gives."""
    monkeypatch.setattr("pipelines.stream.publishing.ATTEMPTS", 1_000)
    rng, killed, ears, is_over = random.Random(3), [], Ears(), threading.Event()

    def kill() -> None:
        # Not for ever: where the machine is slow, none would have the time to publish.
        while len(killed) < KILLS and not is_over.wait(0.01):
            for process in publishers(os.getpid()):
                is_over.wait(rng.uniform(0, 1.5))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        stream_all(inbox, tmp_path / "out", ears)
    finally:
        is_over.set()
        killer.join()
    assert rows_of(tmp_path / "out") == whole
    assert any("it was ended by SIGKILL; another one does" in sentence for sentence in ears.sentences)
    assert len(set(killed)) >= 2
    assert ears.commits == sorted(set(ears.commits))


def test_killed_before_it_could_say_so(
    inbox: Path, whole: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published by one that died right after is not published once more."""
    tried: list[int] = []

    def publish_and_die(self: PublisherProcess, request: Request) -> int:
        tried.append(publish(request))
        if len(tried) % 2:
            raise ProcessEnded("it was ended by SIGKILL")
        return tried[-1]

    monkeypatch.setattr(PublisherProcess, "publish", publish_and_die)
    ears = Ears()
    stream_all(inbox, tmp_path / "out", ears)
    assert tried[::2] == tried[1::2] == ears.commits == list(range(2, 2 + len(ears.commits)))
    assert rows_of(tmp_path / "out") == whole


def test_a_publisher_that_always_dies(inbox: Path, whole: dict[str, list[str]], tmp_path: Path) -> None:
    """After some attempts the stream ends with a sentence; what it had committed the next one publishes."""

    def die(self: PublisherProcess, request: Request) -> int:
        raise ProcessEnded("it was ended by SIGKILL")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PublisherProcess, "publish", die)
        with pytest.raises(UserError, match=f"SIGKILL, {ATTEMPTS} times"):
            stream_all(inbox, tmp_path / "out", Ears())
    ears = Ears()
    stream_all(inbox, tmp_path / "out", ears)
    assert ears.commits[0] == 2
    assert rows_of(tmp_path / "out") == whole


class Unreadable:
    """What fails when another process reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Gives what fails."""
        return divmod, (1, 0)


def test_what_the_publisher_cannot_read(tmp_path: Path) -> None:
    """It ends, and is not waited for."""
    lock = take_over(tmp_path)
    process = PublisherProcess(lock)
    for _ in range(2):
        with pytest.raises(ProcessEnded, match="it ended with 1"):
            process.publish(Unreadable())  # type: ignore[arg-type]
    process.close()
    os.close(lock)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are of Linux")
def test_the_disk_is_full_for_the_publisher(inbox: Path, whole: dict[str, list[str]], tmp_path: Path) -> None:
    """The stream ends with a sentence, and goes on from there once there is room."""

    def limit() -> None:
        for process in publishers(os.getpid()):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (50_000, 50_000))

    with pytest.raises(UserError, match=r"free some space|disk is full"):
        stream_all(inbox, tmp_path / "out", Ears(then=limit))
    assert publishers(os.getpid()) == []
    before = rows_of(tmp_path / "out")
    assert before["conversations"] != whole["conversations"]
    stream_all(inbox, tmp_path / "out", Ears())
    assert rows_of(tmp_path / "out") == whole


@pytest.fixture
def process(inbox: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a stream of the files of tmp_path / "inbox", as a process."""
    (tmp_path / "inbox").mkdir()
    told = ["--input", str(tmp_path / "inbox"), "--output", str(tmp_path / "out"), "--publish-every", "0.2s"]
    more = ["--idle-timeout", "0s", "--out-of-orderness", "0s", "--allowed-lateness", "40000d", "--cycle-rows", "1"]
    program = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", "stream"]
    started = []

    def start() -> subprocess.Popen[str]:
        started.append(subprocess.Popen([*program, *told, *more], cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        # (Not to the end of what it says: a publisher that stays, as none should, would have that open.)
        each.wait()
        assert each.stderr is not None
        each.stderr.close()


def old_copy(file: Path, folder: Path) -> None:
    """Drops a file into a folder, as one at rest."""
    target = folder / f".{file.name}"
    shutil.copy(file, target)
    os.utime(target, (time.time() - 10, time.time() - 10))
    target.rename(folder / file.name)


@pytest.mark.slow
def test_the_stream_is_killed(
    inbox: Path, whole: dict[str, list[str]], tmp_path: Path, process: Callable[[], subprocess.Popen[str]]
) -> None:
    """Its publisher ends with it, whatever it does; the next stream goes on."""
    rng, seen = random.Random(5), 0
    for file in sorted(inbox.iterdir()):
        old_copy(file, tmp_path / "inbox")
        running = process()
        found = wait_until(lambda running=running: publishers(running.pid))
        time.sleep(rng.uniform(0, 1.5))
        found = publishers(running.pid) or found
        running.kill()
        running.wait()
        wait_until(lambda found=found: not any(map(is_there, found)), 10)
        os.close(take_over(tmp_path / "out"))
        seen += len(found)
        rows_of(tmp_path / "out")
    assert seen >= 8
    stream(tmp_path / "inbox", tmp_path / "out", Settings(), NOW)
    assert facts(rows_of(tmp_path / "out")) == facts(whole)


def facts(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """Of rows those that do not tell where they came from."""
    return {name: rows[name] for name in ("conversations", "turns", "kpis", "kpi_statistics")}


def count_runs(output: Path) -> int:
    """How many commits there were."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        return int(warehouse.execute("SELECT count(*) FROM runs").fetchall()[0][0])


@pytest.mark.slow
def test_the_lock_is_of_both(inbox: Path, tmp_path: Path, process: Callable[[], subprocess.Popen[str]]) -> None:
    """While the publisher of a stream that was killed is there nobody else writes; who waits a moment gets the lock."""
    old_copy(sorted(inbox.iterdir())[0], tmp_path / "inbox")
    running = process()
    (publisher,) = wait_until(lambda: publishers(running.pid))
    os.kill(publisher, signal.SIGSTOP)
    running.kill()
    running.wait()
    try:
        with pytest.raises(UserError, match=f"process {running.pid} is writing"):
            take_lock(tmp_path / "out")
    finally:
        threading.Timer(1, os.kill, (publisher, signal.SIGCONT)).start()
    os.close(take_over(tmp_path / "out"))
    assert not is_there(publisher)


@pytest.mark.slow
def test_all_processes_are_asked_to_end(
    inbox: Path, tmp_path: Path, process: Callable[[], subprocess.Popen[str]]
) -> None:
    """SIGTERM and SIGINT to both, as a supervisor or a terminal may send them: it publishes and ends with 0."""
    old_copy(sorted(inbox.iterdir())[0], tmp_path / "inbox")
    running = process()
    found = wait_until(lambda: publishers(running.pid))
    wait_until(lambda: count_runs(tmp_path / "out") == 2)
    for number in (signal.SIGTERM, signal.SIGINT):
        for each in found:
            os.kill(each, number)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 0 and "another one does" not in said, said
    assert not any(map(is_there, found))


def test_a_live_store_of_another_time(inbox: Path, whole: dict[str, list[str]], tmp_path: Path) -> None:
    """An old copy, one of another version, one that lacks a file: each is made anew, and nothing is lost."""
    output, live, part = tmp_path / "out", tmp_path / "out" / LIVE, tmp_path / "inbox"
    files = sorted(inbox.iterdir())
    part.mkdir()

    def take(some: list[Path]) -> None:
        for file in some:
            shutil.copy(file, part)
        stream(part, output, Settings(), NOW)

    def die(self: PublisherProcess, request: Request) -> int:
        raise ProcessEnded("it was ended by SIGKILL")

    def take_unpublished(some: list[Path]) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):
            patch.setattr(PublisherProcess, "publish", die)
            take(some)

    take_unpublished(files[:2])
    shutil.copytree(live, tmp_path / "old")
    take(files[2:4])
    shutil.rmtree(live)
    (tmp_path / "old").rename(live)
    take(files[4:5])
    with duckdb.connect(str(live / "live.duckdb")) as store:
        store.execute("CREATE TABLE of_another_version AS SELECT 1 AS number")
    take(files[5:6])
    with duckdb.connect(str(live / "live.duckdb"), read_only=True) as store:
        assert store.execute("FROM duckdb_tables() WHERE table_name = 'of_another_version'").fetchall() == []

    take_unpublished(files[6:7])
    min((live / "pending").iterdir()).unlink()
    take(files[7:])
    assert facts(rows_of(output)) == facts(whole)


def test_what_was_published_leaves_nothing(inbox: Path, tmp_path: Path) -> None:
    """Files of what is pending go with the publish that has it; the live store keeps one row a window."""
    stream_all(inbox, tmp_path / "out", Ears())
    live = tmp_path / "out" / LIVE
    assert list((live / "pending").iterdir()) == [] and not (live / "keys.parquet").exists()
    with LiveStore(tmp_path / "out") as store, store.cursor() as cursor:
        rows = cursor.sql(f"FROM {store.recent.all_rows(cursor)}").to_arrow_table()
        assert store.state is not None and len(store.state.row_files) == len(list((live / "rows").iterdir()))
    with duckdb.connect(str(tmp_path / "out" / "care.duckdb"), read_only=True) as warehouse:
        assert warehouse.execute("SELECT count(*) FROM kpi_statistics").fetchall() == [(rows.num_rows,)]


def statistics_rows(keys: list[tuple[int, int, str | None]], number: int) -> pa.Table:
    """Rows of kpi_statistics with some keys (basis, hour, account), each with a number in it."""
    columns: dict[str, Any] = {
        each.name: [[] if pa.types.is_list(each.type) else 0] * len(keys) for each in KPI_STATISTICS.schema
    }
    columns |= {
        "basis": [("activity", "opened")[basis] for basis, _, _ in keys],
        "grain": ["hour"] * len(keys),
        "window_start": [hour * 3_600_000_000 for _, hour, _ in keys],
        "window_end": [(hour + 1) * 3_600_000_000 for _, hour, _ in keys],
        "account_id": [account for _, _, account in keys],
        "channel": ["email"] * len(keys),
        "message_count": [number] * len(keys),
    }
    return pa.table(columns, schema=KPI_STATISTICS.schema)


@pytest.mark.parametrize("seed", range(5))
def test_recent_statistics(seed: int) -> None:
    """Whatever is asked, changed, saved and forgotten: each window has the rows that were committed last."""
    rng, known = random.Random(seed), dict[tuple[int, int, str | None], int]()
    with duckdb.connect() as live:
        live.execute("SET TimeZone = 'UTC'")
        live.register("none", statistics_rows([], 0))
        live.execute("CREATE TABLE kpi_statistics AS SELECT * FROM none")
        recent = RecentStatistics(live.cursor)
        for number in range(1, 60):
            some = [(rng.randrange(2), rng.randrange(9), rng.choice((None, "a", "b"))) for _ in range(rng.randrange(5))]
            keys = list(dict.fromkeys(some))
            filled = [key for key in keys if rng.random() < 0.8]
            recent.change(statistics_rows(keys, 0).select(WINDOW_KEY.names), statistics_rows(filled, number))
            known = {key: value for key, value in known.items() if key not in keys} | dict.fromkeys(filled, number)
            if rng.random() < 0.2:
                recent.save(live)
                recent.settle()
            hours = [hour for hour in range(9) if rng.random() < 0.3]
            found = as_known(recent.of({"hour": [hour * 3_600 for hour in hours]}))
            # (Others may come too.)
            assert all(known.get(key) == value for key, value in found.items())
            assert found.keys() >= {key for key in known if key[1] in hours}
            assert as_known(live.sql(f"FROM {recent.all_rows(live)}").to_arrow_table()) == known


def as_known(rows: pa.Table) -> dict[tuple[int, int, str | None], int]:
    """The number in each row, by its key."""
    hours = [at.timestamp() // 3_600 for at in rows["window_start"].to_pylist()]
    bases = [("activity", "opened").index(basis) for basis in rows["basis"].to_pylist()]
    keys = zip(bases, hours, rows["account_id"].to_pylist(), strict=True)
    found = list(zip(keys, rows["message_count"].to_pylist(), strict=True))
    assert len(dict(found)) == len(found)
    return dict(found)
