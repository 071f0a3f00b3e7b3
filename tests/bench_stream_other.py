"""The yardstick of the stream bench: one KPI out of all, made by an engine that a user might take instead.

Quix Streams is a library for streams on Kafka from PyPI, in Python, with state in RocksDB. Its job here: the average
first response time per channel and hour, from the same topic. Of each message key (a conversation) the first customer
message and the first human reply after it; what comes out goes through a topic keyed by channel into hours. So it is
what one would write by its handbook, with far less to do than our stream: no other KPI, no restatement, no duplicates,
no dead letters, no conversation that is split, no exact result after a crash.

It has other versions of packages than ours, so it runs as a process of its own in a virtual environment of its own.

    python tests/bench_stream_other.py --bootstrap-servers 127.0.0.1:9092 --topic care-events
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ENGINE = "quixstreams"
VERSION = "3.28.1"
CACHE = Path(__file__).parents[1] / "build" / f"{ENGINE}-{VERSION}"
"""Where the environment is kept unless said otherwise; left out by .gitignore."""

SECONDS_IDLE = 5.0
"""After so long without a message all is done; not part of what is measured."""

_GRACE = timedelta(days=3_650)


@dataclass(frozen=True)
class Measured:
    """What the other engine did.

    Attributes:
      engine: its name and version.
      events: messages of the topic that it read.
      responses: first responses that it found.
      seconds: from the first message to the last result; without start-up.
      events_per_second: the one by the other.
      windows: [channel, start of the hour in epoch milliseconds, responses, average seconds] of each hour.
    """

    engine: str
    events: int
    responses: int
    seconds: float
    events_per_second: float
    windows: tuple[tuple[str, int, int, float], ...]


def measure(bootstrap_servers: str, topic: str, cache: Path = CACHE, minutes: float = 10.0) -> Measured:
    """Has the other engine read a topic from its beginning to where it ends now.

    Args:
      bootstrap_servers: address of Kafka; two topics of the engine's own are made there.
      topic: events, with the conversation as the key of each message.
      cache: where the engine's environment is kept; made where it is not there, with pip.
      minutes: how long it may take.

    Raises:
      subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    python = _environment(cache)
    words = [str(python), __file__, "--here", "--bootstrap-servers", bootstrap_servers, "--topic", topic]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=60 * minutes)
    found = json.loads(done.stdout.splitlines()[-1])
    return Measured(**{**found, "windows": tuple(map(tuple, found["windows"]))})


def _environment(cache: Path) -> Path:
    """The Python of an environment that has the engine."""
    python = cache / "bin" / "python"
    done = cache / "done"
    if not done.exists():
        venv.create(cache, with_pip=True, clear=True)
        subprocess.run(
            [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install", f"{ENGINE}=={VERSION}"],
            check=True,
            stdout=sys.stderr,
        )
        done.touch()
    return python


def run(bootstrap_servers: str, topic: str, folder: Path) -> Measured:
    """Does the job in this process, which must have the engine."""
    from quixstreams import Application  # type: ignore[import-not-found]
    from quixstreams.dataframe.windows import Count, Mean  # type: ignore[import-not-found]

    moments: list[float] = []
    events = 0

    def note(name: str, partition: int, offset: int) -> None:
        nonlocal events
        events += name == topic
        moments[1 if moments else 0 :] = [time.monotonic()]

    application = Application(
        broker_address=bootstrap_servers,
        consumer_group=f"bench-{uuid.uuid4().hex[:8]}",
        auto_offset_reset="earliest",
        state_dir=folder,
        loglevel="ERROR",
        on_message_processed=note,
        # A message that can not be read or used is left out.
        on_consumer_error=lambda *_: True,
        on_processing_error=lambda *_: True,
    )
    source = application.topic(topic, value_deserializer="json", timestamp_extractor=_occurred_at)
    windows: dict[tuple[str, int], tuple[int, float]] = {}

    def keep(value: dict[str, Any], key: str, timestamp: int, headers: object) -> None:
        windows[key, value["start"]] = (value["count"], value["average"])

    frame = application.dataframe(source)
    frame = frame.apply(_first_response, stateful=True).filter(lambda value: value is not None)
    frame = frame.group_by("channel", key_serializer="str", key_deserializer="str")
    frame = frame.tumbling_window(timedelta(hours=1), grace_ms=_GRACE).agg(count=Count(), average=Mean("seconds"))
    frame.current().update(keep, metadata=True)
    application.run(timeout=SECONDS_IDLE, collect=False)
    seconds = moments[-1] - moments[0]
    rows = sorted((*window, *value) for window, value in windows.items())
    responses = sum(count for count, _ in windows.values())
    return Measured(f"{ENGINE} {VERSION}", events, responses, seconds, events / seconds, tuple(rows))


def _occurred_at(value: dict[str, Any], headers: object, timestamp: int, kind: object) -> int:
    """Event time, epoch milliseconds."""
    try:
        moment = value["occurred_at"]
        return (
            int(moment) if isinstance(moment, (int, float)) else int(datetime.fromisoformat(moment).timestamp() * 1000)
        )
    except (KeyError, TypeError, ValueError):
        return timestamp


def _first_response(value: dict[str, Any], state: Any) -> dict[str, Any] | None:
    """The first response of a conversation, at the event that is it."""
    kind = value["event_type"]
    if kind == "message":
        if state.get("first") is None:
            state.set("first", [_occurred_at(value, None, 0, None), value["channel"]])
        return None
    if kind != "reply" or value.get("author_type") not in (None, "agent") or value.get("is_automated"):
        return None
    first = state.get("first")
    if first is None or state.get("answered"):
        return None
    state.set("answered", True)
    return {"channel": first[1], "seconds": (_occurred_at(value, None, 0, None) - first[0]) / 1000}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what was measured, as one line of JSON.

    Args:
      arguments: what follows the program's name; None takes it from the process.
    """
    parser = argparse.ArgumentParser(description="First response time per channel and hour, by another engine.")
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--here", action="store_true", help="In this process, which has the engine.")
    asked = parser.parse_args(arguments)
    logging.captureWarnings(True)
    if asked.here:
        with tempfile.TemporaryDirectory() as folder:
            found = run(asked.bootstrap_servers, asked.topic, Path(folder))
    else:
        found = measure(asked.bootstrap_servers, asked.topic)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
