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
from kafka_broker import NewTopic, broker, new_topic, on_kafka, send  # noqa: F401

from fixtures.generate import write_events
from pipelines.batch import run
from pipelines.flink.cluster import Cluster, run_cluster
from pipelines.flink.jars import fetch_jar
from pipelines.kafka.settings import KafkaOptions
from pipelines.options import BatchOptions
from pipelines.streaming import main
from pipelines.unbounded.loading import load_changes
from pipelines.unbounded.positions import PartitionPosition, Positions
from pipelines.unbounded.restriction import PositionsCoder, PositionsTracker
from pipelines.unbounded.source import ReadOptions, poll
from transforms.settings import Settings
from transforms.stream_settings import SECOND, StreamSettings

ROOT = Path(__file__).parents[1]
TABLES = ("conversations", "turns", "kpi_statistics", "kpis")
PARTITIONS = 3
PRISM = shutil.which("prism") or str(Path.home() / "go" / "bin" / "prism")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAM = StreamSettings()


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
        pytest.skip("prism is not on the PATH: go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0")
    feed = Feed(tmp_path, new_topic(PARTITIONS), 3_000)
    feed.send(1_000)
    with graph(
        feed.options, tmp_path / "changes", tmp_path / "log", "--runner=PrismRunner", f"--prism_location={PRISM}"
    ) as process:
        time.sleep(5)
        feed.send(2_000_000)
        check_same(feed, tmp_path / "changes", tmp_path, process, 90)


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
    "--checkpointing_interval=2000",
    "--externalized_checkpoints_enabled",
    "--retain_externalized_checkpoints_on_cancellation",
    "--max_bundle_size=20",
    "--max_bundle_time_mills=200",
    # Some events of the generator come very late.
    "--allowed-lateness=60d",
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


def children_of(parent: int) -> list[int]:
    """Ids of the processes that a process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def has_written(url: Path) -> bool:
    """Whether a change is there."""
    return any(url.glob("changes/*/*.json"))


@on_kafka
def test_flink_with_killed_workers(new_topic: NewTopic, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """The Python worker is killed at random moments: nothing is lost, nothing counts twice."""
    feed, rng = Feed(tmp_path, new_topic(PARTITIONS), 3_000), random.Random(1)
    feed.send(1_000)
    with graph(feed.options, tmp_path / "changes", tmp_path / "log", *on_flink(cluster)) as process:
        wait_for(lambda: has_written(tmp_path / "changes"), 120, "no change was written")
        for _ in range(3):
            feed.send(500)
            time.sleep(rng.uniform(0.5, 4))
            workers = wait_for(lambda: children_of(cluster.processes["worker pool"]), 60, "no worker came back")
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        feed.send(1_000_000)
        check_same(feed, tmp_path / "changes", tmp_path, process, 180)
        assert ask(cluster, f"/jobs/{running_job(cluster)}/checkpoints")["counts"]["restored"] >= 3


@on_kafka
@pytest.mark.xfail(strict=False, reason="after a savepoint, rows were missing in some runs: docs/streaming-cluster.md")
def test_flink_with_a_savepoint(new_topic: NewTopic, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """Stopped with a savepoint, it goes on from there."""
    feed, url = Feed(tmp_path, new_topic(PARTITIONS), 3_000), tmp_path / "changes"
    feed.send(1_500)
    with graph(feed.options, url, tmp_path / "log", *on_flink(cluster)) as process:
        wait_for(lambda: has_written(url), 120, "no change was written")
        job = wait_for(lambda: running_job(cluster), 60, "the job does not run")
        trigger = ask(cluster, f"/jobs/{job}/stop", {"targetDirectory": f"file://{tmp_path}/savepoints"})["request-id"]

        def saved() -> str | None:
            said = ask(cluster, f"/jobs/{job}/savepoints/{trigger}")
            return said["operation"]["location"] if said["status"]["id"] == "COMPLETED" else None

        savepoint = wait_for(saved, 60, "no savepoint was made")
        process.wait(60)
    feed.send(1_000_000)
    more = f"--savepoint_path={savepoint}"
    with graph(feed.options, url, tmp_path / "log", *on_flink(cluster), more) as process:
        check_same(feed, url, tmp_path, process, 240)
        restored = ask(cluster, f"/jobs/{running_job(cluster)}/checkpoints")["latest"]["restored"]
        # Without the savepoint it would begin with the first event, and come to the same.
        assert restored["is_savepoint"] and restored["external_path"] == savepoint


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
    assert PositionsCoder().decode(PositionsCoder().encode(moved)) == moved


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


def test_a_source_is_stopped_but_never_split() -> None:
    """Each partition would have a time of its own."""
    tracker = PositionsTracker(Positions())
    later = Positions({"t/0": PartitionPosition(1)})
    assert tracker.try_claim(later) and tracker.try_split(0.5) is None and not tracker.is_bounded()
    with pytest.raises(ValueError, match="hand on what is left"):
        tracker.check_done()
    done, rest = tracker.try_split(0)
    assert done.is_done and rest == later and tracker.check_done()
    assert not tracker.try_claim(later) and tracker.try_split(0) is None


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
