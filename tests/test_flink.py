"""The batch pipeline on a real Flink: the same tables as in one process, and nothing half done whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.generate import write_events
from pipelines.failures import said_clearly
from pipelines.flink.cluster import Cluster, embedded_args, run_cluster
from pipelines.flink.jars import MAIN_CLASS, fetch_jar, merge_jars
from pipelines.flink.master import on_cluster
from pipelines.maven import missing_programs
from pipelines.options import parse_beam_options
from sinks.publish import current_snapshot
from transforms.errors import UserError
from transforms.tables import TABLES

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample" / "events.ndjson"
OWN_COLUMNS = {"changed_at", "committed_at", "duration_seconds", "replaced_at"}
"""Columns that tell of the commit itself."""


def on_flink(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts Flink."""
    missing = missing_programs()
    return pytest.mark.slow(pytest.mark.skipif(bool(missing), reason=f"not on the PATH: {', '.join(missing)}")(test))


@pytest.fixture(scope="module")
def jar() -> Path:
    """Flink, fetched where it is not there yet."""
    return fetch_jar()


@pytest.fixture(scope="module")
def cluster(jar: Path) -> Iterator[Cluster]:
    """A session cluster that begins a failed job anew twice; it leaves no process behind.

    It has little memory to sort in: what goes from step to step are the names of files, never large values.
    """
    strategy = {"type": "fixed-delay", "fixed-delay.attempts": 2, "fixed-delay.delay": "100ms"}
    more = {f"restart-strategy.{name}": value for name, value in strategy.items()}
    # What is started from here on has this in its environment; others may run a Flink at the same time.
    mark = f"FLINK_OF_TESTS={os.getpid()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*mark.split("="))
        with run_cluster(jar, more={**more, "taskmanager.memory.managed.size": "16m"}) as running:
            yield running
    left = {pid: line for pid, line in commands().items() if str(jar) in line or "pipelines.flink" in line}
    assert not [line for pid, line in left.items() if mark in environment_of(pid)]
    assert not running.logs.exists()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200,000 events with copies and bad rows, in four files."""
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, events=200_000, seed=5, format="parquet", files=4, bad_rate=0.02)
    return folder


@pytest.fixture(scope="module")
def wanted(events: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pa.Table]]:
    """What one process makes of the events, without repeat contacts and with."""
    folder = tmp_path_factory.mktemp("wanted")
    config = folder / "care.toml"
    config.write_text('repeat_contact = "7d"\n', encoding="utf-8")
    results = {}
    for name, more in (("plain", []), ("repeat_contact", ["--config", config])):
        run(events, folder / name, *more)
        results[name] = tables_of(folder / name)
    assert results["plain"]["dead_letters"].num_rows > 3_000
    assert results["plain"]["runs"]["exact_duplicate_count"][0].as_py() > 100
    assert results["plain"]["kpis"] != results["repeat_contact"]["kpis"]
    return results


def command(inputs: Path, output: Path, *more: object) -> list[str]:
    """A run as a user types it."""
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "batch", "--input", inputs, "--output", output, *more]
    return list(map(str, words))


def run(inputs: Path, output: Path, *more: object, fails: bool = False) -> str:
    """Runs it to its end; gives what it says on standard error."""
    done = subprocess.run(command(inputs, output, *more), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == (2 if fails else 0), done.stderr
    return done.stderr


def tables_of(output: Path) -> dict[str, pa.Table]:
    """The tables of a result in the order of their keys, without what tells of the commit itself."""
    snapshot = current_snapshot(output)
    assert snapshot is not None
    tables = {}
    for spec in TABLES:
        parts = [pq.ParquetFile(file).read() for file in sorted((snapshot / spec.name).rglob("*.parquet"))]
        table = pa.concat_tables(parts).sort_by([(name, "ascending") for name in spec.key])
        tables[spec.name] = table.drop_columns([name for name in table.column_names if name in OWN_COLUMNS])
    return tables


def check_same(ours: dict[str, pa.Table], theirs: dict[str, pa.Table]) -> None:
    """Row for row."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].num_rows == theirs[name].num_rows, name
        assert ours[name].equals(theirs[name]), name


def check_nothing_left(output: Path) -> None:
    """Nothing was published, nothing half made is there, and nobody holds the lock."""
    assert current_snapshot(output) is None
    assert [path.name for path in output.rglob("*") if path.name not in (".snapshots", ".lock")] == []


def commands() -> dict[int, str]:
    """Command lines of all processes by their ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(folder.name)] = (folder / "cmdline").read_text(encoding="utf-8").replace("\0", " ")
    return found


def environment_of(process: int) -> str:
    """The environment that a process was started with; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/environ").read_text(encoding="utf-8", errors="replace")
    return ""


def parent_of(process: int) -> int:
    """The id of a process's parent; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return 0


def wait_until(is_so: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits until something is so, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


def jobs(cluster: Cluster) -> dict[str, str]:
    """The state of each job of a cluster by its id."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{cluster.master}/jobs/overview", timeout=10) as answer:
        return {job["jid"]: job["state"] for job in json.load(answer)["jobs"]}


def flink_args(where: str, jar: Path, request: pytest.FixtureRequest) -> Sequence[str]:
    """Beam's options for Flink inside the job server, or for the cluster."""
    if where == "embedded":
        return (*embedded_args(jar), "--flink_master=[local]")
    running: Cluster = request.getfixturevalue("cluster")
    return running.beam_args


@on_flink
@pytest.mark.parametrize("settings", ["plain", "repeat_contact"])
@pytest.mark.parametrize("where", ["embedded", "standalone"])
def test_flink_makes_the_same_tables(
    where: str,
    settings: str,
    jar: Path,
    events: Path,
    wanted: dict[str, dict[str, pa.Table]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """All of them, row for row, dead letters and copies too; and Beam says nothing besides."""
    config = tmp_path / "care.toml"
    config.write_text('repeat_contact = "7d"\n' if settings == "repeat_contact" else "", encoding="utf-8")
    said = run(events, tmp_path / "out", "--config", config, *flink_args(where, jar, request))
    check_same(tables_of(tmp_path / "out"), wanted[settings])
    assert "Traceback" not in said and "WARNING" not in said


@on_flink
def test_a_result_grows_on_flink(jar: Path, tmp_path: Path) -> None:
    """What an appending run hands from step to step goes through Flink too."""
    lines = SAMPLE.read_bytes().splitlines(keepends=True)
    parts = tmp_path / "1.ndjson", tmp_path / "2.ndjson"
    for path, some in zip(parts, (lines[:1200], lines[1200:]), strict=True):
        path.write_bytes(b"".join(some))
    run(parts[0], tmp_path / "one", "--append")
    shutil.copytree(tmp_path / "one", tmp_path / "flink", symlinks=True)
    run(parts[1], tmp_path / "one", "--append")
    run(parts[1], tmp_path / "flink", "--append", *embedded_args(jar))
    check_same(tables_of(tmp_path / "flink"), tables_of(tmp_path / "one"))


@on_flink
def test_a_workers_error_is_one_sentence(cluster: Cluster, events: Path, tmp_path: Path) -> None:
    """A file that turns out to be damaged once it is read: said as in one process; nothing is left behind."""
    bad = Path(shutil.copytree(events, tmp_path / "in"))
    file = sorted(bad.iterdir())[2]
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    file.write_bytes(content)
    said = run(bad, tmp_path / "out", *cluster.beam_args, fails=True)
    assert said.splitlines()[-1].startswith(f"Error: Expected a whole file, but {file} cannot be read at row group")
    assert "Traceback" not in said
    check_nothing_left(tmp_path / "out")


@on_flink
def test_no_cluster_is_one_sentence(jar: Path, tmp_path: Path) -> None:
    """Said at once, not after minutes of trying."""
    began = time.monotonic()
    said = run(SAMPLE, tmp_path / "out", *embedded_args(jar), "--flink_master=localhost:1", fails=True)
    assert "Expected a Flink cluster at http://localhost:1 (--flink_master), but it does not answer" in said
    assert time.monotonic() - began < 30
    check_nothing_left(tmp_path / "out")


@on_flink
def test_no_worker_pool_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    """Flink's words are about a port; ours about the option."""
    said = run(SAMPLE, tmp_path / "out", *cluster.beam_args, "--environment_config=localhost:1", fails=True)
    assert "Flink did not reach the worker pool of --environment_config" in said.splitlines()[-1]
    check_nothing_left(tmp_path / "out")


def run_and_kill(cluster: Cluster, events: Path, output: Path, moments: Sequence[str], *more: str) -> tuple[int, str]:
    """Kills the Python workers with -9 once a file of each pattern is there; gives the run's exit code and words."""
    process = subprocess.Popen(
        command(events, output, *cluster.beam_args, *more),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for moment in moments:
        wait_until(partial(is_there, output, moment, process))
        workers = [pid for pid in commands() if parent_of(pid) == cluster.processes["worker pool"]]
        assert workers and process.poll() is None
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    return process.returncode, said


def is_there(output: Path, moment: str, process: subprocess.Popen[str]) -> bool:
    """Whether a run has come so far, or to its end."""
    return bool(list((output / ".snapshots").glob(f"*.tmp/{moment}"))) or process.poll() is not None


@on_flink
def test_a_killed_worker_publishes_nothing(cluster: Cluster, events: Path, tmp_path: Path) -> None:
    """Where workers are kept from stage to stage, Flink cannot begin anew: the run fails, the earlier result stays."""
    run(SAMPLE, tmp_path / "out")
    before = tables_of(tmp_path / "out")
    code, said = run_and_kill(cluster, events, tmp_path / "out", ["_work/statistics-*"])
    assert code == 2 and "a worker ended amid its work" in said.splitlines()[-1]
    check_same(tables_of(tmp_path / "out"), before)
    assert [path.name for path in (tmp_path / "out" / ".snapshots").iterdir()] == ["000001"]


@on_flink
def test_flink_begins_anew(
    cluster: Cluster, events: Path, wanted: dict[str, dict[str, pa.Table]], tmp_path: Path
) -> None:
    """With workers of its own for each stage: what the dead ones had written is there once, not twice."""
    moments = "_work/letters/*", "turns/*"
    code, said = run_and_kill(cluster, events, tmp_path / "out", moments, "--environment_cache_millis=0")
    assert code == 0, said
    check_same(tables_of(tmp_path / "out"), wanted["plain"])


@on_flink
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_cancels_its_job(how: signal.Signals, cluster: Cluster, events: Path, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM: the job does not go on without us, and nothing is left."""
    before = jobs(cluster)
    process = subprocess.Popen(
        command(events, tmp_path / "out", *cluster.beam_args),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: jobs(cluster).keys() - before.keys() or process.poll() is not None)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "Stopped." and "Traceback" not in said
    (job,) = jobs(cluster).keys() - before.keys()
    assert jobs(cluster)[job] == "CANCELED"
    check_nothing_left(tmp_path / "out")


def own_cluster(*arguments: object) -> subprocess.Popen[str]:
    """`make flink`, but for make."""
    words = [sys.executable, "-m", "pipelines.flink", "--input", SAMPLE, *arguments]
    return subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def descendants(process: int) -> set[int]:
    """A process's children, their children, and so on."""
    parents = {pid: parent_of(pid) for pid in commands()}
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {process}} - found:
        found |= more
    return found


@on_flink
def test_a_run_with_a_cluster_of_its_own(jar: Path, tmp_path: Path) -> None:
    """Starts a cluster, says where its web UI is, prints the summary and ends what it started."""
    process = own_cluster("--output", tmp_path / "out")
    started = wait_until(lambda: len(found := descendants(process.pid)) >= 3 and found)
    shown, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "1,948 events" in shown and "(web UI)" in said and said.splitlines()[-1] == "Cluster  ended"
    assert not started & commands().keys()


@on_flink
def test_ctrl_c_ends_the_cluster(jar: Path, tmp_path: Path) -> None:
    """Whenever it comes, also while the cluster starts."""
    process = own_cluster("--output", tmp_path / "out")
    wait_until(lambda: len(descendants(process.pid)) >= 3)
    time.sleep(1)
    started = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not started & commands().keys()


@on_flink
def test_the_web_ui_is_there(cluster: Cluster) -> None:
    """Its pages are in the jar of all jars."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{cluster.master}/", timeout=10) as answer:
        assert b"<title>Apache Flink Web Dashboard</title>" in answer.read()


# Without Flink


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("java.net.ConnectException: finishConnect(..) failed: Connection refused", "did not reach the worker pool"),
        ("x.grpc.StatusRuntimeException: CANCELLED: call already cancelled. Use", "a worker ended amid its work"),
        ("FileNotFoundError: [Errno 2] Failed to open local file 'o/_work/1.arrow'", "does not see the output folder"),
        ("java.util.concurrent.TimeoutException: Timeout has occurred: 300000 ms", "not as many free slots"),
        ("java.lang.OutOfMemoryError: Java heap space", "ran out of memory"),
        ("java.lang.Exception: anything else", "it failed"),
    ],
)
def test_what_a_cluster_means(words: str, meaning: str) -> None:
    """Its last words are of its inside; what they mean stands before them."""
    with pytest.raises(UserError, match=f"--runner FlinkRunner .*{meaning}.*: Pipeline x failed: {re.escape(words)}"):
        with said_clearly(Path("out"), "FlinkRunner"):
            raise RuntimeError(f"Pipeline x failed: {words}")


def jar_of(path: Path, files: dict[str, str]) -> Path:
    """A jar with some files."""
    with zipfile.ZipFile(path, "w") as jar:
        for name, text in files.items():
            jar.writestr(name, text)
    return path


def test_one_jar_of_many(tmp_path: Path) -> None:
    """Lists of services are joined, signatures go, the first of two files counts, and java -jar knows what to start."""
    service = "META-INF/services/x.Y"
    first = {"META-INF/MANIFEST.MF": "A: 1\n", service: "one", "same": "first", "web/": "", "META-INF/A.SF": "signed"}
    second = {service: "two", "same": "second", "module-info.class": "", "web/": "", "web/index.html": "page"}
    jars = [jar_of(tmp_path / f"{place}.jar", files) for place, files in enumerate((first, second))]
    with zipfile.ZipFile(merge_jars(jars, tmp_path / "whole.jar")) as whole:
        assert sorted(whole.namelist()) == ["META-INF/MANIFEST.MF", service, "same", "web/", "web/index.html"]
        assert whole.read("same") == b"first" and whole.read(service).split() == [b"one", b"two"]
        manifest = whole.read("META-INF/MANIFEST.MF").decode()
    assert f"Main-Class: {MAIN_CLASS}\n" in manifest and all(len(line) <= 72 for line in manifest.splitlines())


def test_fetching_without_java_or_maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Expected java \(17\) and mvn .* but java and mvn is not there"):
        fetch_jar(tmp_path / "cache")


def test_fetching_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Maven says is passed on, and nothing half fetched stays."""
    for name in ("java", "mvn"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho '[ERROR] Could not transfer artifact x'\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="Could not transfer artifact x; see that it reaches Maven Central"):
        fetch_jar(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


class FakeMaster(BaseHTTPRequestHandler):
    """Answers as a Flink master would, with one job that runs until it is cancelled."""

    status: ClassVar[int] = 200
    asked: ClassVar[list[str]] = []
    job: ClassVar[dict[str, str]] = {}

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if self.command == "PATCH":
            self.job["state"] = "CANCELED"
        body = json.dumps({"flink-version": "1.18.1", "jobs": [self.job]}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PATCH = _answer

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def fake_master() -> Iterator[str]:
    """The address of a FakeMaster."""
    FakeMaster.status, FakeMaster.asked, FakeMaster.job = 200, [], {}
    with ThreadingHTTPServer(("localhost", 0), FakeMaster) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_version_of_flink(fake_master: str) -> None:
    """Beam's jar is for one version; a jar of one's own is one's own affair, and so is what asks for a password."""
    args = ["--runner=FlinkRunner", f"--flink_master={fake_master}", "--flink_version=1.19"]
    with pytest.raises(UserError, match=r"Expected Flink 1\.19 at http://localhost:\d+ .* got 1\.18\.1: say"):
        with on_cluster(parse_beam_options(args)):
            pass
    with on_cluster(parse_beam_options([*args, "--flink_job_server_jar=own.jar"])):
        pass
    FakeMaster.status = 401
    with on_cluster(parse_beam_options(args)):
        pass


@pytest.mark.parametrize("more", [["--runner=FnApiRunner"], ["--flink_master=[local]"], ["--job_endpoint=localhost:1"]])
def test_without_a_master_nobody_is_asked(more: list[str], fake_master: str) -> None:
    """Other runners, Flink in the job server, and a job server that knows its own master."""
    args = ["--runner=flink", f"--flink_master={fake_master}", *more]
    before = signal.getsignal(signal.SIGTERM)
    with on_cluster(parse_beam_options(args)):
        pass
    assert FakeMaster.asked == [] and signal.getsignal(signal.SIGTERM) is before


def test_a_job_of_a_failed_run_is_cancelled(fake_master: str) -> None:
    """The one that has our name, and no other."""
    args = ["--runner=FlinkRunner", f"--flink_master={fake_master}", "--flink_job_server_jar=own.jar"]
    options = parse_beam_options([*args, "--job_name=ours"])
    for name, cancelled in (("theirs", False), ("ours", True)):
        FakeMaster.asked.clear()
        FakeMaster.job = {"jid": "a1", "name": name, "state": "RUNNING"}
        with pytest.raises(KeyboardInterrupt), on_cluster(options):
            raise KeyboardInterrupt
        assert ("PATCH /jobs/a1?mode=cancel" in FakeMaster.asked) is cancelled
