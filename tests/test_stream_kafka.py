"""A stream on a real Kafka: whatever dies and whenever, in the end it is what one run over the same events gives."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from kafka_broker import NewTopic, broker, new_topic, on_kafka, read, send  # noqa: F401
from test_growth import options, rows_of
from test_stream_publisher import publishers

from fixtures.generate import write_events
from pipelines.batch import run as run_batch
from pipelines.kafka.broker import Broker
from pipelines.kafka.settings import KafkaOptions, kafka_options
from pipelines.stream.store import LIVE
from transforms.settings import Settings

ROOT = Path(__file__).parents[1]
AT_ONCE = ("--idle-timeout", "0s", "--out-of-orderness", "0s", "--allowed-lateness", "400d")
"""Nothing is late, and once all is read time has passed up to the clock."""

MANY = 24_000
LINE = '{{"event_id":"{0}","event_type":"message","occurred_at":1767571200000,"channel":"x","customer_id":"u{0}"}}'


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Generated events in three files, faulty rows among them."""
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, events=MANY, seed=5, format="ndjson", files=3, days=20)
    return sorted(folder.iterdir())


def command(kafka: KafkaOptions, output: Path, *more: str) -> list[str]:
    """Command line of a stream."""
    program = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", "stream"]
    topics = [word for topic in kafka.topics for word in ("--topic", topic)]
    return [*program, "--bootstrap-servers", kafka.bootstrap_servers, *topics, "--output", str(output), *AT_ONCE, *more]


def catch_up(kafka: KafkaOptions, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a stream until it has caught up."""
    told = command(kafka, output, "--until-caught-up", "--give-up-after", "60s", *more)
    return subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=300)


def feed(kafka: KafkaOptions, lines: Sequence[bytes]) -> None:
    """Sends lines to a topic, those of a conversation in order."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "queue.buffering.max.messages": 1_000_000})
    for line in lines:
        producer.produce(kafka.topics[0], line, line[-30:])
    assert producer.flush(60) == 0


def lines_of(files: Sequence[Path]) -> list[bytes]:
    """The lines of some files."""
    return [line for file in files for line in file.read_bytes().splitlines()]


def facts_of(output: Path) -> dict[str, list[str]]:
    """The rows of every table; of dead letters what does not tell where they came from, of runs the sums."""
    found = rows_of(output)
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        letters = warehouse.sql("SELECT stage, reason, column_name, raw FROM dead_letters").fetchall()
    return {**found, "dead_letters": sorted(map(repr, letters))}


def as_one_run(files: Sequence[Path], output: Path, folder: Path) -> dict[str, list[str]]:
    """What one run over some files gives at the moment up to which a stream has come."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        as_of = warehouse.sql("SELECT epoch_us(as_of) FROM runs ORDER BY commit_id DESC LIMIT 1").fetchall()[0][0]
    shutil.rmtree(folder, ignore_errors=True)
    run_batch(options(list(files), folder, Settings(as_of=as_of)))
    return facts_of(folder)


@on_kafka
def test_topics_come_to_what_files_do(new_topic: NewTopic, events: list[Path], tmp_path: Path) -> None:  # noqa: F811
    """Two topics by a pattern, arrays of events among the messages, and partitions that are added meanwhile."""
    name = f"care-{os.getpid()}"
    first, second = new_topic(2, f"{name}.a"), new_topic(1, f"{name}.b")
    every = kafka_options(first.bootstrap_servers, [rf"^{name}\."])
    lines = lines_of(events)
    feed(first, lines[:9_000])
    # Not every line is JSON.
    whole = [line for line in lines[9_000:12_000] if line.startswith(b"{") and line.endswith(b"}")]
    feed(second, [b"[" + b", ".join(whole[place : place + 7]) + b"]" for place in range(0, len(whole), 7)])
    feed(second, [line for line in lines[9_000:12_000] if line not in set(whole)])
    assert catch_up(every, tmp_path / "out").returncode == 0
    AdminClient({"bootstrap.servers": first.bootstrap_servers}).create_partitions([NewPartitions(f"{name}.a", 4)])
    time.sleep(1)
    feed(first, lines[12_000:])
    assert catch_up(every, tmp_path / "out").returncode == 0
    assert facts_of(tmp_path / "out") == as_one_run(events, tmp_path / "out", tmp_path / "whole")


def wait_for_log(output: Path, size: int = 1, seconds: float = 60) -> None:
    """Waits until the write-ahead log of the live store has grown: a stream has begun to commit."""
    log, deadline = output / LIVE / "live.duckdb.wal", time.monotonic() + seconds
    began = log.stat().st_size if log.exists() else 0
    while not (log.exists() and log.stat().st_size >= size and log.stat().st_size != began):
        assert time.monotonic() < deadline, "expected the stream to commit something"
        time.sleep(0.02)


@on_kafka
def test_killed_at_any_moment(new_topic: NewTopic, events: list[Path], tmp_path: Path) -> None:  # noqa: F811
    """Killed with -9 thirty times, and what publishes for it too: nothing is lost, nothing counts twice."""
    kafka, output, rng = new_topic(4), tmp_path / "out", random.Random(4)
    lines = lines_of(events)
    told = command(kafka, output, "--cycle-rows", "500", "--publish-every", "1s")
    seen = []
    for place in range(30):
        feed(kafka, lines[place * len(lines) // 30 : (place + 1) * len(lines) // 30])
        process = subprocess.Popen(told, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Amid its beginning, or once it has begun to work.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(1, 4))
        else:
            wait_for_log(output)
            time.sleep(rng.uniform(0, 2))
        for publisher in publishers(process.pid) if rng.random() < 0.5 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(publisher, signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.5))
        process.kill()
        seen.append(process.wait())
        if (output / "care.duckdb").exists():
            # A reader has a whole result at any time.
            rows_of(output)
    assert set(seen) == {-signal.SIGKILL}
    assert catch_up(kafka, output).returncode == 0
    assert facts_of(output) == as_one_run(events, output, tmp_path / "whole")


@pytest.fixture
def running(new_topic: NewTopic, tmp_path: Path) -> Iterator[tuple[KafkaOptions, subprocess.Popen[str]]]:  # noqa: F811
    """A stream into tmp_path / "out" that goes on."""
    kafka = new_topic(3)
    told = command(kafka, tmp_path / "out", "--cycle-rows", "2000", "--publish-every", "2s", "--log", "json")
    with subprocess.Popen(told, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        yield kafka, process
        process.kill()


def wait_for(output: Path, rows: int, seconds: float = 90) -> None:
    """Waits until a published result has read so many rows."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (output / "care.duckdb").exists():
            with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
                if warehouse.sql("SELECT sum(rows_read_count) FROM runs").fetchall()[0][0] >= rows:
                    return
        time.sleep(0.3)
    raise AssertionError(f"expected {rows} rows to be published within {seconds} s")


@on_kafka
def test_broker_dies_and_comes_back(
    broker: Broker,  # noqa: F811
    running: tuple[KafkaOptions, subprocess.Popen[str]],
    events: list[Path],
    tmp_path: Path,
) -> None:
    """The stream waits for Kafka and goes on; SIGSTOP for a minute does it no harm; SIGTERM ends it with all it has."""
    kafka, process = running
    lines = lines_of(events)
    feed(kafka, lines[:8_000])
    wait_for(tmp_path / "out", 2_000)
    broker.kill()
    time.sleep(5)
    broker.restart()
    feed(kafka, lines[8_000:16_000])
    wait_for(tmp_path / "out", 16_000)
    process.send_signal(signal.SIGSTOP)
    feed(kafka, lines[16_000:])
    time.sleep(60)
    process.send_signal(signal.SIGCONT)
    wait_for(tmp_path / "out", len(lines) - 100)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "does not answer" in said
    assert catch_up(kafka, tmp_path / "out").returncode == 0
    assert facts_of(tmp_path / "out") == as_one_run(events, tmp_path / "out", tmp_path / "whole")


@on_kafka
def test_a_second_stream_is_refused(running: tuple[KafkaOptions, subprocess.Popen[str]], tmp_path: Path) -> None:
    """Two streams into one output: the second says who has it, and ends."""
    kafka, process = running
    send(
        kafka, [b'{"event_id":"1","event_type":"message","occurred_at":1767571200000,"channel":"x","customer_id":"u"}']
    )
    wait_for(tmp_path / "out", 1)
    second = catch_up(kafka, tmp_path / "out")
    assert second.returncode in (2, 4) and f"process {process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


@on_kafka
def test_what_is_damaged_is_made_anew(new_topic: NewTopic, events: list[Path], tmp_path: Path) -> None:  # noqa: F811
    """A write-ahead log that is cut short, one of noise, a store of noise, and none at all."""
    kafka, output, rng = new_topic(2), tmp_path / "out", random.Random(1)
    lines = lines_of(events)
    told = command(kafka, output, "--cycle-rows", "1000", "--publish-every", "3s")
    log, store = output / LIVE / "live.duckdb.wal", output / LIVE / "live.duckdb"

    def cut() -> None:
        os.truncate(log, rng.randrange(log.stat().st_size))

    def spoil() -> None:
        log.write_bytes(rng.randbytes(5_000))

    def spoil_all() -> None:
        store.write_bytes(rng.randbytes(50_000))

    def lose() -> None:
        shutil.rmtree(output / LIVE)

    damages = [cut, cut, spoil, cut, spoil_all, lose]
    for place, damage in enumerate(damages):
        feed(kafka, lines[place * len(lines) // len(damages) : (place + 1) * len(lines) // len(damages)])
        process = subprocess.Popen(told, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_for_log(output, 20_000)
        process.kill()
        process.wait()
        damage()
    assert catch_up(kafka, output).returncode == 0
    assert facts_of(output) == as_one_run(events, output, tmp_path / "whole")


@on_kafka
def test_disk_is_full(new_topic: NewTopic, events: list[Path], tmp_path: Path) -> None:  # noqa: F811
    """However little room there is left for a file, one sentence says why, and nothing is lost."""
    kafka, output = new_topic(2), tmp_path / "out"
    feed(kafka, lines_of(events))
    for blocks in (100, 1_000, 4_000):
        told = " ".join(f"'{word}'" for word in command(kafka, output, "--until-caught-up", "--cycle-rows", "4000"))
        limited = ["bash", "-c", f"ulimit -f {blocks}; trap '' XFSZ; {told}"]
        done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert catch_up(kafka, output).returncode == 0
    assert facts_of(output) == as_one_run(events, output, tmp_path / "whole")


@on_kafka
def test_kafka_is_not_there(tmp_path: Path) -> None:
    """After --give-up-after, one sentence and 2; an unknown topic at once."""
    nowhere = kafka_options("127.0.0.1:1", ["care"])
    told = command(nowhere, tmp_path / "out", "--give-up-after", "2s")
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "does not answer" in done.stderr and "--give-up-after" in done.stderr
    assert "Traceback" not in done.stderr


@on_kafka
def test_a_topic_that_was_emptied(new_topic: NewTopic, tmp_path: Path) -> None:  # noqa: F811
    """Messages that are gone before they were read stop the stream, with a choice; what was lost is counted."""
    kafka, output = new_topic(1), tmp_path / "out"
    send(kafka, [LINE.format(number).encode() for number in range(10)])
    assert catch_up(kafka, output).returncode == 0
    send(kafka, [LINE.format(number).encode() for number in range(10, 30)])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for gone in admin.delete_records([TopicPartition(kafka.topics[0], 0, 25)]).values():
        gone.result()
    refused = catch_up(kafka, output)
    assert refused.returncode == 2 and "--on-lost-offsets earliest" in refused.stderr, refused.stderr
    assert catch_up(kafka, output, "--on-lost-offsets", "earliest").returncode == 0
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        found = warehouse.sql("SELECT sum(rows_read_count), count(*) FROM runs").fetchall()
        inputs = json.loads(warehouse.sql("SELECT inputs FROM runs ORDER BY commit_id DESC LIMIT 1").fetchall()[0][0])
    assert found[0][0] == 15 and inputs[0]["lost"] == 15 and inputs[0]["rows"] == 5
    for gone in admin.delete_topics(list(kafka.topics)).values():
        gone.result()
    time.sleep(2)
    new_topic(1, kafka.topics[0])
    send(kafka, [LINE.format(number).encode() for number in range(40)])
    refused = catch_up(kafka, output)
    assert refused.returncode == 2 and "made anew" in refused.stderr


@on_kafka
def test_the_change_feed(new_topic: NewTopic, events: list[Path], tmp_path: Path) -> None:  # noqa: F811
    """Whoever applies the upserts in order has the windows as the result has them."""
    kafka, changes = new_topic(2), new_topic(2)
    lines = lines_of(events)[:6_000]
    for half in (lines[:3_000], lines[3_000:]):
        feed(kafka, half)
        more = ("--changes-topic", changes.topics[0], "--cycle-rows", "1000")
        assert catch_up(kafka, tmp_path / "out", *more).returncode == 0
    windows: dict[str, str] = {}
    from confluent_kafka import Consumer

    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(list(changes.topics))
    quiet = 0
    while quiet < 3:
        messages = consumer.consume(10_000, 2)
        quiet = quiet + 1 if not messages else 0
        for message in messages:
            key, value = message.key().decode(), message.value()
            if value is None:
                windows.pop(key, None)
            else:
                windows[key] = json.loads(value)
    consumer.close()
    with duckdb.connect(str(tmp_path / "out" / "care.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        rows = warehouse.sql("FROM kpi_values").to_arrow_table().to_pylist()
    assert len(rows) == len(windows)
    for row in rows:
        key = {
            "basis": row["basis"],
            "grain": row["grain"],
            "window_start": row["window_start"].isoformat().replace("+00:00", "Z"),
            "account_id": row["account_id"],
            "channel": row["channel"],
        }
        found = windows[json.dumps(key, ensure_ascii=False, separators=(",", ":"))]
        assert all(
            found[name] == row[name] for name in row if name in found and "window" not in name and name != "is_complete"
        )
