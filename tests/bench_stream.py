"""How fast a stream is, on a real Kafka beside it: `python tests/bench_stream.py [PART …] [--quick]`.

backlog   rows a second from a topic to committed results, and to the published result
latency   from the time in an event, when it is sent, to its commit: 5,000 and 20,000 events a second
state     a cycle of 10,000 rows with nothing carried, and with millions of open rows
idle      CPU of a stream that has nothing to do
soak      memory and files over half an hour at 5,000 events a second
other     first response time per channel and hour alone, in another engine and in ours
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.generate import write_events
from pipelines.kafka.broker import Broker
from pipelines.kafka.client import Client
from pipelines.kafka.reading import read_ranges
from pipelines.kafka.settings import KafkaOptions, kafka_options
from pipelines.options import quieten_beam
from pipelines.stream.live_tables import CycleResult
from pipelines.stream.publishing import Published
from pipelines.stream.run import StreamOptions, Watcher, run
from pipelines.stream.sources import Taking
from pipelines.stream.store import LIVE, LiveStore
from transforms.settings import DAY, Settings
from transforms.stream_settings import StreamSettings

ROOT = Path(__file__).parents[1]
ALL_READ = StreamSettings(allowed_lateness=4_000 * DAY, out_of_orderness=0, idle_timeout=0)
WARM_UP_SECONDS = 15


@dataclass
class Notes(Watcher):
    """Notes what a stream does.

    Attributes:
      commits: time, rows, seconds and ranges of each cycle.
      publishes: seconds of each publish.
      stops_at: the stream is stopped after so many cycles.
    """

    commits: list[tuple[float, int, float, dict[str, tuple[int, int]]]] = field(default_factory=list)
    publishes: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    stops_at: int | None = None

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """A cycle was committed."""
        ranges = {name: (each.start, each.stop) for name, each in taking.ranges.items()}
        seconds = json.loads(result.counts)["seconds"]
        self.commits.append((time.time(), taking.rows, seconds, ranges))
        if self.stops_at is not None and len(self.commits) >= self.stops_at:
            self.stop.set()

    def published(self, published: Published) -> None:
        """A result was published."""
        self.publishes.append(published.seconds)


def produce(kafka: KafkaOptions, files: Path, *more: str) -> subprocess.Popen[bytes]:
    """Begins to send the events of some files to the topic."""
    told = ["--bootstrap-servers", kafka.bootstrap_servers, "--topic", kafka.topics[0], "--input", str(files), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.kafka.produce", *told], cwd=ROOT, stdout=subprocess.DEVNULL
    )


def bench_backlog(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """Rows a second of what waits in a topic."""
    events = 1_000_000 if quick else 4_000_000
    write_events(folder / "events", events=events, seed=1, format="ndjson", files=4)
    kafka = topic(broker, "backlog")
    assert produce(kafka, folder / "events").wait() == 0
    notes, began = Notes(), time.time()
    run(StreamOptions(folder / "out", Settings(), ALL_READ, kafka, until_caught_up=True), notes)
    ended = time.time()
    taken = [commit for commit in notes.commits if commit[1]]
    took = taken[-1][0] - (taken[0][0] - taken[0][2])
    say("backlog", f"{events:,} events of {MESSAGE_BYTES} bytes: {events / took:,.0f}/s to committed results")
    say("", f"{ended - began:.1f} s from start to end, publishing included; {len(taken)} cycles")


def bench_latency(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """From the time in an event to its commit."""
    seconds = seconds or (40 if quick else 195)
    for rate in (5_000, 20_000):
        write_events(folder / f"at {rate}", events=rate * seconds, seed=2, format="ndjson", files=4)
        kafka, notes = topic(broker, f"rate-{rate}"), Notes()
        run_for(kafka, folder / f"out {rate}", folder / f"at {rate}", rate, seconds, notes)
        _, waits = latencies(kafka, notes)
        cycles = [commit[2] for commit in notes.commits if commit[1]]
        p50, p99 = np.percentile(waits, [50, 99])
        say(f"{rate:,}/s", f"produced to committed: p50 {p50:.2f} s, p99 {p99:.2f} s, {len(waits):,} events")
        say("", f"a cycle: p50 {statistics.median(cycles):.2f} s; publishes: {max(notes.publishes):.1f} s at most")


def run_for(kafka: KafkaOptions, output: Path, files: Path, rate: int, seconds: int, notes: Notes) -> None:
    """Runs a stream while events are sent at a rate."""

    def send() -> None:
        time.sleep(5)
        producing = produce(kafka, files, "--rate", f"{rate}/s", "--now")
        try:
            producing.wait(seconds)
        except subprocess.TimeoutExpired:
            producing.terminate()
        producing.wait()
        time.sleep(3)
        notes.stop.set()

    sending = threading.Thread(target=send)
    sending.start()
    run(StreamOptions(output, Settings(), StreamSettings(), kafka), notes, stop=notes.stop)
    sending.join()


def latencies(kafka: KafkaOptions, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """When each event was committed, and how many seconds after its own time; those of the first seconds apart."""
    everything = {place: (found.low, found.high) for place, found in Client(kafka).offsets().items()}
    chunks: dict[str, list[np.ndarray]] = {}
    for chunk in read_ranges(kafka, everything):
        moments = np.array([moment_of(value) for value in chunk.values if value is not None])
        chunks.setdefault(f"{chunk.topic}/{chunk.partition}", []).append(moments)
    sent = {name: np.concatenate(parts) for name, parts in chunks.items()}
    first = min(moments[0] for moments in sent.values()) + WARM_UP_SECONDS
    at, waits = [], []
    for moment, _, _, ranges in notes.commits:
        for name, (start, stop) in ranges.items():
            within = sent.get(name, np.empty(0))[start:stop]
            within = within[within >= first]
            at.append(np.full(len(within), moment))
            waits.append(moment - within)
    return np.concatenate(at), np.concatenate(waits)


def moment_of(value: bytes) -> float:
    """The time of an event, seconds since the epoch."""
    return datetime.fromisoformat(json.loads(value)["occurred_at"]).timestamp()


def bench_state(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """What a cycle costs with nothing carried, and with many open rows."""
    carried = 1_000_000 if quick else 5_000_000
    write_events(folder / "new", events=100_000, seed=3, format="ndjson", files=10, days=10)
    write_events(folder / "carried", events=carried, seed=4, format="parquet", files=8, days=10)
    found = []
    for name in ("nothing", "much"):
        output = folder / f"out {name}"
        if name == "much":
            files = (str(folder / "carried"),)
            run(StreamOptions(output, Settings(), ALL_READ, inputs=files, until_caught_up=True), Notes())
        notes = Notes()
        files = (str(folder / "new"),)
        rules = StreamOptions(output, Settings(), ALL_READ, inputs=files, until_caught_up=True, rows_a_cycle=1)
        run(rules, notes)
        found.append(statistics.median(commit[2] for commit in notes.commits[2:10]))
    say(
        "state",
        f"a cycle of 10,000 rows: {found[0]:.2f} s with nothing carried, {found[1]:.2f} s with {carried:,} rows",
    )
    say("", f"{found[1] / found[0]:.2f} times")


def bench_idle(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """CPU of a stream without anything to do."""
    kafka, notes = topic(broker, "idle", 12), Notes()
    write_events(folder / "few", events=1_000, seed=5, format="ndjson")
    assert produce(kafka, folder / "few").wait() == 0
    seconds = seconds or (20 if quick else 60)
    used: list[float] = []

    def watch() -> None:
        time.sleep(20)
        before = time.process_time()
        time.sleep(seconds)
        used.append((time.process_time() - before) / seconds)
        notes.stop.set()

    watching = threading.Thread(target=watch)
    watching.start()
    rules = StreamSettings(allowed_lateness=4_000 * DAY)
    run(StreamOptions(folder / "out idle", Settings(), rules, kafka), notes, stop=notes.stop)
    watching.join()
    say("idle", f"{used[0]:.1%} of a core, 12 partitions")


@dataclass(frozen=True)
class Look:
    """What a stream takes up at some moment.

    Attributes:
      at: the moment, seconds since the epoch.
      megabytes: resident memory of its processes, and that of it which no file stands behind.
      output, live: number and megabytes of files in its output folder, and in its live store.
    """

    at: float
    megabytes: tuple[int, int]
    output: tuple[int, int]
    live: tuple[int, int]


def look_at(output: Path) -> Look:
    """What the stream of this process takes up."""
    folders = {True: [0, 0], False: [0, 0]}
    # (Files and folders go while they are looked at.)
    for folder, _, names in os.walk(output):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(found.st_mode):
                    of = folders[LIVE in Path(folder).parts]
                    of[0] += 1
                    # A file with several names takes up its room once.
                    of[1] += found.st_size // found.st_nlink
    output_files, live_files = ((count, size >> 20) for count, size in (folders[False], folders[True]))
    memory = [resident(process) for process in stream_processes()]
    megabytes = sum(whole for whole, _ in memory), sum(alone for _, alone in memory)
    return Look(time.time(), megabytes, output_files, live_files)


def stream_processes() -> list[str]:
    """This process, in which the stream runs, and those that it has for its stream; not Kafka, nor the producer."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    ours = ["self"]
    for child in children:
        with contextlib.suppress(OSError):
            if b"pipelines.stream" in Path("/proc", child, "cmdline").read_bytes():
                ours.append(child)
    return ours


def resident(process: str) -> tuple[int, int]:
    """Megabytes of memory that a process has, and those of it that no file stands behind."""
    try:
        lines = Path("/proc", process, "status").read_text().splitlines()
    except OSError:
        return 0, 0
    whole, alone = (sum(int(line.split()[1]) for line in lines if line.startswith(n)) for n in ("VmRSS", "RssAnon"))
    return whole >> 10, alone >> 10


def bench_soak(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """Memory, files and latency over time."""
    seconds = seconds or (120 if quick else 1_800)
    write_events(folder / "soak", events=5_000 * seconds, seed=6, format="ndjson", files=16)
    kafka, notes, output = topic(broker, "soak"), Notes(), folder / "out soak"
    looks: list[Look] = []

    def look() -> None:
        while not notes.stop.wait(seconds / 60):
            if notes.commits:
                looks.append(look_at(output))

    looking = threading.Thread(target=look)
    looking.start()
    run_for(kafka, output, folder / "soak", 5_000, seconds, notes)
    looking.join()
    say("soak", f"{seconds} s at 5,000 events/s; each tenth of it, memory and files the most that was seen")
    at, waits = latencies(kafka, notes)
    first = looks[0].at
    for part in range(10):
        begin, end = (first + seconds * place / 10 for place in (part, part + 1))
        some = [each for each in looks if begin <= each.at < end]
        cycles = [commit[2] for commit in notes.commits if commit[1] and begin <= commit[0] < end]
        within = waits[(begin <= at) & (at < end)]
        if not some or not cycles or not len(within):
            continue
        p50, p99 = np.percentile(within, [50, 99])
        memory, result, live = (max(getattr(each, name) for each in some) for name in ("megabytes", "output", "live"))
        say(
            f"{begin - first:,.0f} s",
            f"{memory[0]:,} MB resident, {memory[1]:,} of them anonymous; output {result[0]} files, {result[1]:,} MB; "
            f"live store {live[0]} files, {live[1]:,} MB; a cycle {statistics.median(cycles):.2f} s; "
            f"p50 {p50:.2f} s, p99 {p99:.2f} s",
        )
    some = [looks[place].megabytes for place in (len(looks) // 10, len(looks) // 2, len(looks) - 1)]
    told = ", ".join(f"{whole:,} MB ({alone:,})" for whole, alone in some)
    say("", f"resident (anonymous) at the start, in the middle and at the end: {told}")
    p50, p99 = np.percentile(waits, [50, 99])
    say("", f"of all: p50 {p50:.2f} s, p99 {p99:.2f} s, {len(waits):,} events; {len(notes.publishes)} publishes")


def bench_other(broker: Broker, folder: Path, quick: bool, seconds: int | None) -> None:
    """One number only, in another engine; ours has all of them."""
    from bench_stream_other import measure

    events = 200_000 if quick else 1_000_000
    write_events(folder / "events", events=events, seed=7, format="ndjson", files=4)
    kafka = topic(broker, "other")
    assert produce(kafka, folder / "events").wait() == 0
    found, notes = measure(kafka.bootstrap_servers, kafka.topics[0]), Notes()
    say("other", f"{found.engine}: {found.events_per_second:,.0f}/s, first response time per channel and hour only")
    run(StreamOptions(folder / "out", Settings(), ALL_READ, kafka, until_caught_up=True), notes)
    taken = [commit for commit in notes.commits if commit[1]]
    took = taken[-1][0] - (taken[0][0] - taken[0][2])
    say("", f"care-kpis: {events / took:,.0f}/s, every KPI, committed")


MESSAGE_BYTES = 280
PARTS: dict[str, Callable[[Broker, Path, bool, int | None], None]] = {
    "backlog": bench_backlog,
    "latency": bench_latency,
    "state": bench_state,
    "idle": bench_idle,
    "soak": bench_soak,
    "other": bench_other,
}


def topic(broker: Broker, name: str, partitions: int = 4) -> KafkaOptions:
    """A new topic."""
    broker.create_topic(name, partitions)
    return kafka_options(broker.bootstrap_servers, [name])


def say(part: str, text: str) -> None:
    """One line of the result."""
    print(f"{part:10} {text}", flush=True)


def main() -> None:
    """Runs the parts that are named, or all but the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, rough figures")
    parser.add_argument("--seconds", type=int, metavar="N", help="of latency, idle and soak, instead of their own")
    given = parser.parse_args()
    quieten_beam()
    names = ("apache-beam", "confluent-kafka", "duckdb", "pyarrow")
    say(
        "versions",
        ", ".join([f"Python {platform.python_version()}", *(f"{n} {importlib.metadata.version(n)}" for n in names)]),
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-stream-"))
    try:
        with Broker(folder / "kafka", heap_megabytes=400) as broker:
            for part in given.parts or [name for name in PARTS if name != "soak"]:
                PARTS[part](broker, folder / part, given.quick, given.seconds)
                shutil.rmtree(folder / part, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say("memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:,} MB at most, in this process")


if __name__ == "__main__":
    main()
