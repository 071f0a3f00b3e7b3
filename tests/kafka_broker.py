"""A real Kafka for the tests: one broker for the whole run, and topics of one's own in it.

A test module takes the fixtures by importing them: `from kafka_broker import broker, new_topic`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from confluent_kafka import Producer

from pipelines.kafka.broker import Broker
from pipelines.kafka.client import Client, Place
from pipelines.kafka.reading import Ranges, read_ranges
from pipelines.kafka.settings import KafkaOptions, kafka_options
from pipelines.maven import missing_programs

NewTopic = Callable[..., KafkaOptions]
Read = dict[Place, list[tuple[int, bytes | None]]]

_NUMBERS = itertools.count()


def on_kafka(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts Kafka."""
    missing = missing_programs()
    return pytest.mark.slow(pytest.mark.skipif(bool(missing), reason=f"not on the PATH: {', '.join(missing)}")(test))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that runs; whoever ends it starts it again."""
    # Compaction begins within a second, not a quarter of a minute.
    settings = {"log.cleaner.backoff.ms": 500}
    with Broker(tmp_path_factory.mktemp("kafka"), settings=settings) as running:
        yield running
    assert running.process is None


@pytest.fixture
def new_topic(broker: Broker) -> NewTopic:
    """Makes a topic of its own for a test: `new_topic(partitions=1, name=None, settings=None)`."""

    def make(partitions: int = 1, name: str | None = None, settings: Mapping[str, str] | None = None) -> KafkaOptions:
        name = name or f"topic-{next(_NUMBERS)}"
        broker.create_topic(name, partitions, settings)
        return kafka_options(broker.bootstrap_servers, [name])

    return make


def send(options: KafkaOptions, values: Sequence[bytes | None], partition: int = 0, **settings: object) -> None:
    """Writes values to one partition of the options' topic."""
    producer = Producer({"bootstrap.servers": options.bootstrap_servers, **settings})
    for value in values:
        producer.produce(options.topics[0], value, partition=partition)
    assert producer.flush(30) == 0


def everything(options: KafkaOptions) -> Ranges:
    """The whole of every partition."""
    return {place: (found.low, found.high) for place, found in Client(options).offsets().items()}


def read(options: KafkaOptions, ranges: Ranges | None = None, **limits: object) -> Read:
    """Offsets and values of some ranges (None: everything) by partition; each chunk as it is promised."""
    ranges = everything(options) if ranges is None else ranges
    found: Read = {}
    for chunk in read_ranges(options, ranges, **limits):
        place = chunk.topic, chunk.partition
        assert chunk.values and chunk.offsets.dtype == np.int64
        found.setdefault(place, []).extend(zip(chunk.offsets.tolist(), chunk.values, strict=True))
    for place, messages in found.items():
        offsets = [offset for offset, _ in messages]
        assert offsets == sorted(set(offsets))
        assert ranges[place][0] <= offsets[0] and offsets[-1] < ranges[place][1]
    return found
