"""The unbounded graph on a real Kafka, on Prism and on Flink: its changes add up to what a batch run makes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp
from kafka_broker import NewTopic, broker, new_topic, on_kafka, send  # noqa: F401

from fixtures.generate import write_events
from pipelines.batch import run
from pipelines.flink.cluster import Cluster, run_cluster
from pipelines.flink.jars import fetch_jar
from pipelines.kafka.settings import KafkaOptions
from pipelines.options import BatchOptions
from pipelines.streaming import main
from pipelines.unbounded.flink import DEFAULTS, stream_args
from pipelines.unbounded.loading import load_changes
from pipelines.unbounded.positions import PartitionPosition, Positions
from pipelines.unbounded.source import ReadOptions, _ReadFn, poll
from transforms.settings import Settings
from transforms.stream_settings import SECOND, StreamSettings

ROOT = Path(__file__).parents[1]
TABLES = ("conversations", "turns", "kpi_statistics", "kpis")
PARTITIONS = 3
PRISM = shutil.which("prism") or str(Path.home() / "go" / "bin" / "prism")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAM = StreamSettings()
PATIENT = "--allowed-lateness=60d"
"""Some events of the generator come very late."""


def rows_of(output: Path) -> dict[str, list[str]]:
    """The rows of the tables of a result, in no order, without what tells of commits."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        return {
            table: sorted(
                map(
                    repr,
                    warehouse.sql(
                        f"SELECT * {'EXCLUDE (revision, changed_at)' if table == 'kpis' else ''} FROM {table}"
                    ).fetchall(),
                )
            )
            for table in TABLES
        }


class Feed:
    """Events of a generated file, sent to a topic part by part, and what a batch run makes of them."""

    def __init__(self, folder: Path, options: KafkaOptions, events: int) -> None:
        """Generates the events."""
        self.options = options
        write_events(folder / "events", events=events, seed=7, format="ndjson", files=1, bad_rate=0.01)
        (self.file,) = (folder / "events").iterdir()
        self.lines = self.file.read_bytes().splitlines()
        self._rng = random.Random(7)
        self._sent = 0

    def send(self, count: int) -> None:
        """Sends some more; each conversation has a partition of its own."""
        parts: list[list[bytes | None]] = [[] for _ in range(PARTITIONS)]
        for line in self.lines[self._sent : self._sent + count]:
            try:
                key = json.loads(line).get("conversation_id")
            except ValueError:
                key = None
            parts[sum(str(key).encode()) % PARTITIONS].append(line)
        self._sent += count
        for number, part in enumerate(parts):
            send(self.options, part, number)

    def latest(self) -> int:
        """The latest occurred_at of the valid events, microseconds."""
        return self.batch_as_of(None)

    def batch_as_of(self, as_of: int | None, folder: Path | None = None) -> int:
        """Runs a batch over the events; gives its as_of."""
        output = folder or self.file.parent / "latest"
        summary = run(BatchOptions((str(self.file),), output, Settings(as_of=as_of), max_dead_letter_rate=1.0))
        return (summary.as_of - EPOCH) // timedelta(microseconds=1)  # type: ignore[union-attr, operator]

    def beat(self, at: int) -> None:
        """Sends an event of no conversation to every partition, so that time goes on to `at`."""
        for number in range(PARTITIONS):
            row = {
                "event_id": f"beat-{at}",
                "event_type": "note",
                "occurred_at": (at + STREAM.out_of_orderness) // 1000,
                "channel": "beat",
                "conversation_id": f"beat-{number}",
            }
            send(self.options, [json.dumps(row).encode()], number)


def wait_for(is_so: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits until something is so, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def graph(options: KafkaOptions, url: Path, log: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the graph as a user does, and ends it."""
    words = [
        *(sys.executable, "-m", "pipelines.streaming"),
        *("--bootstrap-servers", options.bootstrap_servers, "--topic", options.topics[0]),
        *("--output", str(url), "--buckets", "16", "--pair-every", "0.5s", "--write-every", "1s", *more),
    ]
    with log.open("ab") as said:
        process = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check_same(feed: Feed, url: Path, folder: Path, process: subprocess.Popen[bytes] | None, seconds: float) -> None:
    """Sends a heartbeat, and loads until the tables are those of a batch run at the same as_of."""
    as_of = -(-feed.latest() // SECOND) * SECOND + 86_400 * SECOND
    feed.batch_as_of(as_of, folder / "batch")
    want = rows_of(folder / "batch")
    feed.beat(as_of)

    def is_same() -> bool:
        assert process is None or process.poll() is None, "the graph ended"
        if not (url / "stream.json").exists():
            return False
        done = load_changes(str(url), folder / "live")
        return bool(done.changes) and rows_of(folder / "live") == want

    try:
        wait_for(is_same, seconds, "")
    except AssertionError as error:
        ours = rows_of(folder / "live")
        differ = {t: (len(ours[t]), len(want[t]), [r for r in ours[t] if r not in want[t]][:1]) for t in TABLES}
        raise AssertionError(f"{error}: {differ}") from error
    with duckdb.connect(str(folder / "live" / "care.duckdb"), read_only=True) as warehouse:
        (sums,) = warehouse.sql(
            "SELECT sum(rows_read_count), sum(events_kept_count), sum(dead_letter_count), sum(exact_duplicate_count) "
            "FROM runs"
        ).fetchall()
    with duckdb.connect(str(folder / "batch" / "care.duckdb"), read_only=True) as warehouse:
        (theirs,) = warehouse.sql(
            f"SELECT rows_read_count + {PARTITIONS}, events_kept_count + {PARTITIONS}, dead_letter_count, "
            "exact_duplicate_count FROM runs"
        ).fetchall()
    assert sums == theirs


@on_kafka
def test_prism(new_topic: NewTopic, tmp_path: Path) -> None:  # noqa: F811
    """Live on Prism, for a try."""
    if not Path(PRISM).exists():
        pytest.skip("prism is not on the PATH: make prism")
    feed, url = Feed(tmp_path, new_topic(PARTITIONS), 3_000), tmp_path / "changes"
    feed.send(1_000)
    prism = ("--runner=PrismRunner", f"--prism_location={PRISM}")
    with graph(feed.options, url, tmp_path / "log", *prism, PATIENT) as process:
        wait_for(lambda: has_written(url), 120, "no change was written")
        feed.send(1_000_000)
        check_same(feed, url, tmp_path, process, 180)


def checkpointing(folder: Path) -> dict[str, object]:
    """Settings of Flink for a stream: begin anew as often as it takes, keep checkpoints and savepoints in files."""
    return {
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 1000,
        "restart-strategy.fixed-delay.delay": "200ms",
        "state.checkpoints.dir": f"file://{folder}/checkpoints",
        "state.savepoints.dir": f"file://{folder}/savepoints",
    }


STREAMING = (
    "--externalized_checkpoints_enabled",
    "--retain_externalized_checkpoints_on_cancellation",
    PATIENT,
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that checkpoints."""
    with run_cluster(fetch_jar(), more=checkpointing(tmp_path_factory.mktemp("flink"))) as running:
        yield running


def on_flink(cluster: Cluster) -> list[str]:
    """Beam's options; workers are not kept from job to job, for a job with kept ones does not survive their death."""
    return [*(arg for arg in cluster.beam_args if "environment_cache" not in arg), *STREAMING]


def ask(cluster: Cluster, path: str, body: dict[str, object] | None = None) -> Any:
    """Asks the cluster's REST interface."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"http://{cluster.master}{path}", data, headers), timeout=10) as answer:
        return json.load(answer)


def running_job(cluster: Cluster) -> str | None:
    """The id of the job that runs with all its tasks; None where there is none."""
    for job in ask(cluster, "/jobs/overview")["jobs"]:
        if job["state"] == "RUNNING" and job["tasks"]["running"] == job["tasks"]["total"]:
            return str(job["jid"])
    return None


def alive_children_of(parent: int) -> list[int]:
    """Ids of the processes that a process started and that still run; those that ended and were not fetched do not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, of = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            if int(of) == parent and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def kill_workers(cluster: Cluster, job: str, moment: Callable[[], None]) -> None:
    """Kills the Python workers of a job that has a new checkpoint, and waits until it was restored from a checkpoint.

    Nothing here depends on how fast the machine is: what is waited for is what Flink says.

    Args:
      cluster: where the job runs.
      job: its id.
      moment: called once there is a checkpoint; the workers are killed when it returns.
    """

    def checkpoints() -> Any:
        return ask(cluster, f"/jobs/{job}/checkpoints")

    before = checkpoints()["counts"]
    said = wait_for(
        lambda: (now := checkpoints())["counts"]["completed"] > before["completed"] and now, 180, "no checkpoint"
    )
    moment()
    assert checkpoints()["counts"]["restored"] == before["restored"], "the job failed before a worker was killed"
    workers = alive_children_of(cluster.processes["worker pool"])
    assert workers, "the job has no worker"
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    restored = wait_for(
        lambda: (now := checkpoints())["counts"]["restored"] > before["restored"] and now["latest"]["restored"],
        180,
        "the job was not restored",
    )
    assert restored["id"] >= said["latest"]["completed"]["id"] and not restored["is_savepoint"]


def has_written(url: Path) -> bool:
    """Whether a change is there."""
    return any(url.glob("changes/*/*.json"))


@on_kafka
def test_flink_with_killed_workers(new_topic: NewTopic, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """The Python worker is killed at random moments: nothing is lost, nothing counts twice."""
    feed, rng = Feed(tmp_path, new_topic(PARTITIONS), 3_000), random.Random(1)
    feed.send(1_000)
    with graph(feed.options, tmp_path / "changes", tmp_path / "log", *on_flink(cluster)) as process:
        job = wait_for(lambda: running_job(cluster), 180, "the job does not run")
        for _ in range(3):

            def moment() -> None:
                feed.send(500)
                time.sleep(rng.uniform(0, 2))

            kill_workers(cluster, job, moment)
        feed.send(1_000_000)
        check_same(feed, tmp_path / "changes", tmp_path, process, 240)
        assert ask(cluster, f"/jobs/{job}/checkpoints")["counts"]["restored"] >= 3


def stop_with_savepoint(cluster: Cluster, job: str, folder: Path) -> str:
    """Stops a job as `flink stop` does; gives where the savepoint is."""
    trigger = ask(cluster, f"/jobs/{job}/stop", {"targetDirectory": f"file://{folder}"})["request-id"]

    def saved() -> Any:
        said = ask(cluster, f"/jobs/{job}/savepoints/{trigger}")
        return said["status"]["id"] == "COMPLETED" and said["operation"]

    operation = wait_for(saved, 180, "no savepoint was made")
    assert "location" in operation, operation
    return str(operation["location"])


@on_kafka
@pytest.mark.parametrize("way", ["savepoint", "checkpoint"])
def test_flink_stopped_and_resumed(new_topic: NewTopic, cluster: Cluster, tmp_path: Path, way: str) -> None:  # noqa: F811
    """Stopped with a savepoint, or by Ctrl-C, at random moments: it goes on from there, and nothing is missing."""
    feed, url, rng = Feed(tmp_path, new_topic(PARTITIONS), 3_000), tmp_path / "changes", random.Random(2)
    more: list[str] = []
    for _ in range(2):
        feed.send(700)
        with graph(feed.options, url, tmp_path / "log", *on_flink(cluster), *more) as process:
            job = wait_for(lambda: running_job(cluster), 180, "the job does not run")
            wait_for(lambda: latest_checkpoint(cluster, job), 180, "no checkpoint")  # noqa: B023
            feed.send(300)
            time.sleep(rng.uniform(0, 2))
            if way == "savepoint":
                place = stop_with_savepoint(cluster, job, tmp_path / "savepoints")
                process.wait(60)
        if way == "checkpoint":
            place = latest_checkpoint(cluster, job)
        more = [f"--savepoint_path={place}"]
    feed.send(1_000_000)
    with graph(feed.options, url, tmp_path / "log", *on_flink(cluster), *more) as process:
        check_same(feed, url, tmp_path, process, 240)
        restored = ask(cluster, f"/jobs/{running_job(cluster)}/checkpoints")["latest"]["restored"]
        # Without it, the job would begin with the first event, and come to the same.
        assert restored["external_path"] == place and restored["is_savepoint"]


def latest_checkpoint(cluster: Cluster, job: str) -> str | None:
    """Where the last checkpoint of a job is; None before the first."""
    completed = ask(cluster, f"/jobs/{job}/checkpoints")["latest"]["completed"]
    return completed and str(completed["external_path"])


def test_what_a_stream_needs_on_flink() -> None:
    """It is there without being said; what is said stands; other runners get nothing of it."""
    said = ["--runner=FlinkRunner", "--max_bundle_size=5", "--checkpointing_interval", "60000"]
    more = ["--max_bundle_time_mills=200", "--finish_bundle_before_checkpointing"]
    assert stream_args(said) == [*said, *more]
    assert stream_args([*said, *more]) == [*said, *more]
    assert stream_args(["--runner", "apache_beam.runners.flink.FlinkRunner"])[2:] == [
        *(f"{name}={value}" for name, value in DEFAULTS.items()),
        "--finish_bundle_before_checkpointing",
    ]
    for other in ([], ["--runner=PrismRunner"]):
        assert stream_args(other) == other


def test_a_command_that_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not for here is refused in one sentence."""
    config = tmp_path / "care.toml"
    command = ["--bootstrap-servers", "localhost:1", "--topic", "t", "--output", str(tmp_path / "out")]
    for line, said in (
        ('repeat_contact = "7d"', "expected no repeat_contact, since here each conversation key is decided on its own"),
        ("as_of = 2026-02-01T00:00:00Z", "expected no as_of for a stream"),
    ):
        config.write_text(line, encoding="utf-8")
        assert main([*command, "--config", str(config)]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--runer=PrismRunner"]) == 2
    assert "did you mean --runner" in " ".join(capsys.readouterr().err.split())
    assert main(command[2:]) == 2
    assert not (tmp_path / "out").exists()


def test_the_watermark_is_that_of_the_slowest_partition() -> None:
    """An idle partition does not count; time never goes back; a partition that is new is waited for."""
    stream = StreamSettings(out_of_orderness=SECOND, idle_timeout=60 * SECOND)
    one = PartitionPosition(5, 5, 100 * SECOND, seen_at=1000)
    two = PartitionPosition(5, 5, 50 * SECOND, seen_at=1000)
    both = Positions({"t/0": one, "t/1": two}).at(1001, stream)
    assert both.watermark == 49 * SECOND
    moved = replace(both, partitions={"t/0": replace(one, seen_at=1060), "t/1": two}).at(1061, stream)
    assert moved.watermark == 99 * SECOND
    assert replace(moved, partitions={"t/0": one, "t/1": replace(two, seen_at=1061)}).at(1062, stream).watermark == (
        99 * SECOND
    )
    new = replace(both, partitions={**both.partitions, "t/2": PartitionPosition(0, seen_at=1001)}, watermark=0)
    assert new.at(1002, stream).watermark == 0 and new.at(1059, stream).watermark == 0
    assert new.at(1100, stream).watermark == 99 * SECOND
    assert Positions().at(0, stream) == Positions()
    assert Positions.from_bytes(moved.to_bytes()) == moved


def test_late_events_are_told_by_their_own_partition() -> None:
    """So the same events are late however partitions are read; where it was idle, the watermark decides."""
    stream = StreamSettings(out_of_orderness=SECOND, allowed_lateness=10 * SECOND)
    at = np.array([100, 89, 88, 200, 188, 189]) * SECOND
    position = PartitionPosition(0)
    assert position.late(at, 0, stream).tolist() == [False, False, True, False, True, False]
    after = position.after(3, 3, at[:3], 0.0)
    assert after.late(at[3:], 0, stream).tolist() == [False, True, False]
    assert after.late(at[3:], 205 * SECOND, stream).tolist() == [False, True, True]
    assert after.after(4, 1, at[:0], 1.0).latest == 100 * SECOND


@on_kafka
def test_polling(new_topic: NewTopic) -> None:  # noqa: F811
    """Every row once, also where several are in one message; late ones, dead letters and progress go their own way."""
    options = new_topic(2)
    row = {"event_id": "a", "event_type": "message", "channel": "x", "conversation_id": "c"}
    days = [{**row, "event_id": str(day), "occurred_at": 1_767_571_200_000 + day * 86_400_000} for day in (0, 9, 1, 8)]
    send(options, [json.dumps(days[:3]).encode(), b"{", json.dumps(days[3]).encode()], 0)
    read = ReadOptions(options, StreamSettings(), rows=2)
    positions, rows, events, changes = Positions(), 0, 0, []
    for _ in range(4):
        polled = poll(read, positions)
        positions, rows = polled.positions, rows + polled.rows
        events += sum(table.num_rows for table in polled.events)
        changes.append({kind: table.num_rows for kind, table in polled.changes.items()})
    assert (rows, events) == (5, 3)
    assert sum(each.get("late_events", 0) for each in changes) == 1
    assert sum(each.get("dead_letters", 0) for each in changes) == 1
    assert changes[-1] == {} and positions.partitions[f"{options.topics[0]}/0"].next_offset == 3


class Held:
    """What a step has of Beam: a state, or a timer."""

    value: Any = None

    def read(self) -> Any:
        """What is in it."""
        return self.value

    def write(self, value: Any) -> None:
        """Puts something in."""
        self.value = value

    set = write


@on_kafka
def test_reading_goes_on_from_its_state(new_topic: NewTopic) -> None:  # noqa: F811
    """What was read, and only that, is in the state; the timer holds the watermark at the source's own."""
    options = new_topic(1)
    step, state, timer = _ReadFn(ReadOptions(options, StreamSettings(out_of_orderness=SECOND))), Held(), Held()
    step.process((b"", b""), timer)
    assert timer.value == Timestamp(0)
    events: list[str] = []
    for number in range(3):
        row = {"event_id": str(number), "event_type": "message", "channel": "x", "conversation_id": "c"}
        send(options, [json.dumps({**row, "occurred_at": 1_767_571_200_000 + number * 1000}).encode()])
        before = timer.value
        for element in step.read(state, timer):
            if not isinstance(element, TaggedOutput):
                assert element.timestamp >= before
                events += element.value[1]["event_id"].to_pylist()
        assert timer.value == Timestamp(1_767_571_200 + number - 1)
        assert Positions.from_bytes(state.value).partitions[f"{options.topics[0]}/0"].next_offset == number + 1
    assert events == ["0", "1", "2"]
