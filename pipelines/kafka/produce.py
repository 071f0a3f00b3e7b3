"""`python -m pipelines.kafka.produce`: sends events from files to a topic, as fast as can be or at a rate."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.kafka.faults import BrokerAway
from pipelines.kafka.settings import KafkaOptions, kafka_options
from pipelines.kafka.writing import Writer
from pipelines.sources import ndjson
from pipelines.sources.files import InputFile, list_files
from pipelines.sources.lines import Lines
from transforms.errors import UserError

Messages = list[tuple[bytes | None, bytes | None]]

TICK = 0.01
"""Seconds between two portions, where there is a rate."""

_PORTION = 10_000
_INTERRUPTED = 130
_KEY = ("conversation_id", "customer_id")
_TIME = re.compile(rb'"occurred_at"\s*:\s*(?:"[^"]*"|[-+.\deE]+)')
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/s)?")


class Sent(NamedTuple):
    """What was sent.

    Attributes:
      messages: how many, all acknowledged.
      seconds: how long it took.
    """

    messages: int
    seconds: float


def send_files(
    options: KafkaOptions, topic: str, files: Sequence[str], rate: float | None = None, is_now: bool = False
) -> Sent:
    """Sends each line of some NDJSON files as a message, in order.

    A message's key is its conversation's id, else its customer's, so that the events of a conversation are in one
    partition and stay in order. Lines that are no events are sent too, without a key.

    Args:
      options: the Kafka.
      topic: where to send; it must be there.
      files: paths, globs or folders.
      rate: messages a second; None for as fast as can be.
      is_now: each event gets the moment of its sending as occurred_at; no two of them have the same.

    Raises:
      UserError: a file is not there or is no NDJSON, the topic is not there, or Kafka does not let us in.
      BrokerAway: Kafka did not take all.
    """
    found = list_files(list(files))
    other = next((file for file in found if file.format != "ndjson"), None)
    if other is not None:
        raise UserError(
            f"Expected NDJSON to send to Kafka, got {other.format} in {other.path}: care-kpis generate --format ndjson "
            "makes some."
        )
    begun = time.monotonic()
    count, stamp = 0, datetime.now(UTC)
    with Writer(options, topic) as writer:
        for portion in _portions(found, _PORTION if rate is None else max(1, int(rate * TICK))):
            if rate is not None:
                time.sleep(max(0.0, begun + (count + len(portion)) / rate - time.monotonic()))
            if is_now:
                stamp = max(stamp, datetime.now(UTC))
                portion = _stamped(portion, stamp)
                stamp += timedelta(microseconds=len(portion))
            count += writer.write(portion)
    return Sent(count, time.monotonic() - begun)


def _portions(files: Sequence[InputFile], size: int) -> Iterator[Messages]:
    for file in files:
        for block in ndjson.blocks(file):
            assert isinstance(block.payload, bytes)
            lines = Lines.of(block.payload, block.first_row)
            keys = np.full(len(lines), None, object)
            for part in ndjson.read(block):
                ids = [part.columns[name].cast(pa.string()) for name in _KEY if name in part.columns]
                if ids:
                    found = pc.coalesce(*ids).cast(pa.binary())
                    keys[np.searchsorted(lines.numbers, part.positions)] = found.to_numpy(zero_copy_only=False)
            bounds = zip(lines.starts.tolist(), lines.ends.tolist(), strict=True)
            values = [block.payload[start:end] for start, end in bounds]
            messages: Messages = list(zip(keys.tolist(), values, strict=True))
            yield from (messages[start : start + size] for start in range(0, len(messages), size))


def _stamped(messages: Messages, first: datetime) -> Messages:
    """Events that happen one microsecond after another."""
    stamped: Messages = []
    for number, (key, value) in enumerate(messages):
        moment = (first + timedelta(microseconds=number)).isoformat(timespec="microseconds")
        stamped.append((key, _TIME.sub(f'"occurred_at":"{moment}"'.encode(), value or b"", count=1)))
    return stamped


def main(arguments: Sequence[str] | None = None) -> int:
    """Sends files; says how many messages and how fast.

    Args:
      arguments: what follows the program's name; None takes it from the process.

    Returns:
      0, 2 after an error of the user or a Kafka that is away, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.kafka.produce", description=__doc__, allow_abbrev=False)
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT", help="Addresses of Kafka, with commas between.")
    parser.add_argument("--kafka-config", metavar="FILE", help="Further settings of librdkafka: NAME=VALUE lines.")
    parser.add_argument("--topic", required=True, help="Where to send; it must be there.")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE", help="NDJSON: files, folders or globs.")
    parser.add_argument("--rate", type=_rate, metavar="N/s", help="Messages a second (default: as fast as can be).")
    parser.add_argument("--now", action="store_true", help="Events happen when they are sent.")
    asked = parser.parse_args(arguments)
    try:
        options = kafka_options(asked.bootstrap_servers, [asked.topic], asked.kafka_config)
        sent = send_files(options, asked.topic, asked.input, asked.rate, asked.now)
    except (UserError, BrokerAway) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    rate = sent.messages / max(sent.seconds, 0.001)
    print(f"{sent.messages:,} messages to {asked.topic} in {sent.seconds:.1f} s, {rate:,.0f}/s", file=sys.stderr)
    return 0


def _rate(text: str) -> float:
    found = _RATE.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a rate such as 5000/s, got {text!r}")
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())
