"""The batch pipeline on a real Flink: the same tables as in one process, and nothing half done whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.generate import write_events
from pipelines.flink.cluster import Cluster, embedded_args, run_cluster
from pipelines.flink.jars import fetch_jar, missing_programs
from sinks.publish import current_snapshot
from transforms.tables import TABLES

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample" / "events.ndjson"
OWN_COLUMNS = {"changed_at", "committed_at", "duration_seconds"}
"""Columns that tell of the commit itself."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not on the PATH: {', '.join(missing_programs())}"),
]


@pytest.fixture(scope="module")
def jar() -> Path:
    """Flink, fetched where it is not there yet."""
    return fetch_jar()


@pytest.fixture(scope="module")
def cluster(jar: Path) -> Iterator[Cluster]:
    """A session cluster that begins a failed job anew twice; it leaves no process behind."""
    strategy = {"type": "fixed-delay", "fixed-delay.attempts": 2, "fixed-delay.delay": "100ms"}
    with run_cluster(jar, more={f"restart-strategy.{name}": value for name, value in strategy.items()}) as running:
        yield running
    assert not [line for line in commands().values() if str(jar) in line or "pipelines.flink" in line]
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


def test_a_result_grows_on_flink(jar: Path, tmp_path: Path) -> None:
    """What an appending run hands from step to step goes through Flink too."""
    lines = SAMPLE.read_bytes().splitlines(keepends=True)
    parts = tmp_path / "1.ndjson", tmp_path / "2.ndjson"
    for path, some in zip(parts, (lines[:1200], lines[1200:]), strict=True):
        path.write_bytes(b"".join(some))
    for part in parts:
        run(part, tmp_path / "one", "--append")
        run(part, tmp_path / "flink", "--append", *embedded_args(jar))
    check_same(tables_of(tmp_path / "flink"), tables_of(tmp_path / "one"))


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


def test_no_cluster_is_one_sentence(jar: Path, tmp_path: Path) -> None:
    """Said at once, not after minutes of trying."""
    began = time.monotonic()
    said = run(SAMPLE, tmp_path / "out", *embedded_args(jar), "--flink_master=localhost:1", fails=True)
    assert "Expected a Flink cluster at http://localhost:1 (--flink_master), but it does not answer" in said
    assert time.monotonic() - began < 30
    check_nothing_left(tmp_path / "out")


def test_no_worker_pool_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    """Flink's words are about a port; ours about the option."""
    said = run(SAMPLE, tmp_path / "out", *cluster.beam_args, "--environment_config=localhost:1", fails=True)
    assert "Flink did not reach the worker pool of --environment_config" in said.splitlines()[-1]
    check_nothing_left(tmp_path / "out")


def run_and_kill(cluster: Cluster, events: Path, output: Path, moment: str, *more: str) -> tuple[int, str]:
    """Kills the Python worker with -9 once a file of this pattern is there; gives the run's exit code and words."""
    process = subprocess.Popen(
        command(events, output, *cluster.beam_args, *more),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: list((output / ".snapshots").glob(f"*.tmp/{moment}")) or process.poll() is not None)
    workers = [pid for pid in commands() if parent_of(pid) == cluster.processes["worker pool"]]
    assert workers and process.poll() is None
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=200)[1]
    return process.returncode, said


def test_a_killed_worker_publishes_nothing(cluster: Cluster, events: Path, tmp_path: Path) -> None:
    """Where workers are kept from stage to stage, Flink cannot begin anew: the run fails, the earlier result stays."""
    run(SAMPLE, tmp_path / "out")
    before = tables_of(tmp_path / "out")
    code, said = run_and_kill(cluster, events, tmp_path / "out", "_work/statistics-*")
    assert code == 2 and "a worker ended amid its work" in said.splitlines()[-1]
    check_same(tables_of(tmp_path / "out"), before)
    assert [path.name for path in (tmp_path / "out" / ".snapshots").iterdir()] == ["000001"]


@pytest.mark.parametrize("moment", ["_work/letters/*", "turns/*"])
def test_flink_begins_anew(
    moment: str, cluster: Cluster, events: Path, wanted: dict[str, dict[str, pa.Table]], tmp_path: Path
) -> None:
    """With workers of its own for each stage: what the dead one had written is there once, not twice."""
    code, said = run_and_kill(cluster, events, tmp_path / "out", moment, "--environment_cache_millis=0")
    assert code == 0, said
    check_same(tables_of(tmp_path / "out"), wanted["plain"])


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


def test_a_run_with_a_cluster_of_its_own(jar: Path, tmp_path: Path) -> None:
    """Starts a cluster, says where its web UI is, prints the summary and ends what it started."""
    process = own_cluster("--output", tmp_path / "out")
    started = wait_until(lambda: len(found := descendants(process.pid)) >= 3 and found)
    shown, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "1,948 events" in shown and "(web UI)" in said and said.splitlines()[-1] == "Cluster  ended"
    assert not started & commands().keys()


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
