"""`python -m pipelines.kafka`: a Kafka of one's own, to try a stream with, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.kafka.broker import CACHE, HEAP, KAFKA_VERSION, Broker, jars_in
from pipelines.kafka.faults import BrokerAway
from pipelines.kafka.produce import send_files
from pipelines.kafka.settings import kafka_options
from pipelines.maven import is_free
from transforms.errors import UserError

TOPIC = "care-events"
PARTITIONS = 4
PORT = 9092

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches Kafka, starts it, makes topics, sends files to the first one, and ends it after Ctrl-C.

    Args:
      arguments: what follows the program's name; None takes it from the process.

    Returns:
      0 (after Ctrl-C too, where that is the way to end), 2 after an error of the user.
    """
    asked = _parser().parse_args(arguments)
    topics = asked.topic or [(TOPIC, PARTITIONS)]
    # So that the broker is ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            folder = asked.folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="kafka-of-care-kpis-"))
            )
            if not jars_in(asked.cache).exists():
                say(f"Fetching Kafka {KAFKA_VERSION} with Maven into {asked.cache} (once, 43 MB)")
            began = time.monotonic()
            port = asked.port or (PORT if is_free(PORT) else None)
            broker = stack.enter_context(Broker(folder, port, asked.heap, cache=asked.cache))
            say(f"Kafka    {broker.bootstrap_servers}, {time.monotonic() - began:.1f} s; data in {folder}")
            for name, partitions in topics:
                broker.create_topic(name, partitions, may_be_there=True)
            say("Topics   " + ", ".join(f"{name} ({count} partitions)" for name, count in topics))
            topic = topics[0][0]
            if asked.feed:
                sent = send_files(kafka_options(broker.bootstrap_servers, [topic]), topic, asked.feed)
                say(
                    f"Sent     {sent.messages:,} messages to {topic}, {sent.messages / max(sent.seconds, 0.001):,.0f}/s"
                )
            if asked.stay or not asked.feed:
                where = f"--bootstrap-servers {broker.bootstrap_servers} --topic {topic}"
                say(f"Send     python -m pipelines.kafka.produce {where} --input FILES --rate 100/s")
                say(f"Read     care-kpis stream {where} --output output")
                say("Kafka    stays until Ctrl-C")
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
    except (UserError, BrokerAway) as error:
        say(f"Error: {error}")
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    say("Kafka    ended")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.kafka",
        description="Runs an Apache Kafka on this machine, for nobody else to reach, until Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--topic",
        type=_topic,
        action="append",
        metavar="NAME[:PARTITIONS]",
        help=f"A topic to make (default: {TOPIC}:{PARTITIONS}).",
    )
    parser.add_argument("--feed", nargs="+", metavar="FILE", help="NDJSON files to send to the first topic.")
    parser.add_argument("--stay", action="store_true", help="Stay until Ctrl-C after --feed too.")
    parser.add_argument("--port", type=int, help=f"Where to listen (default: {PORT}, or a free one).")
    parser.add_argument("--folder", type=Path, help="Where to keep the data (default: nowhere, it ends with us).")
    parser.add_argument("--heap", type=int, default=HEAP, help="MiB of heap (default: %(default)s).")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="Where Kafka itself is kept.")
    return parser


def _topic(text: str) -> tuple[str, int]:
    name, _, partitions = text.partition(":")
    if not name or not (partitions or "1").isdigit() or int(partitions or PARTITIONS) < 1:
        raise argparse.ArgumentTypeError(f"expected NAME or NAME:PARTITIONS, got {text!r}")
    return name, int(partitions or PARTITIONS)


def say(line: str) -> None:
    """Tells the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
