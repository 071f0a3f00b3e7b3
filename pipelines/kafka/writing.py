"""Writes messages to a topic: all of them, or an error."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipelines.kafka.client import SECONDS_TO_ANSWER, Client, Failures
from pipelines.kafka.faults import as_exception, is_gone, is_users
from pipelines.kafka.settings import KafkaOptions, made
from transforms.errors import UserError

SECONDS_TO_WRITE = 30.0

_STEP = 0.05
_DEFAULTS = {
    "compression.type": "lz4",
    "linger.ms": 5,
    "batch.size": 256 << 10,
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 256 << 10,
    # As Kafka's own clients do, so that a key has the same partition whoever writes it.
    "partitioner": "murmur2_random",
}


class Writer:
    """A producer that writes each message once, and those of one key in order. As a context it is closed at the end."""

    def __init__(self, options: KafkaOptions, topic: str, seconds: float = SECONDS_TO_WRITE) -> None:
        """Makes a writer.

        Args:
          options: the Kafka; its topics are those that are read, and do not matter here.
          topic: topic to write to; it must be there.
          seconds: how long a message may take before Kafka is said to be away.

        Raises:
          UserError: the topic is not there, or Kafka does not let us in.
          BrokerAway: Kafka does not answer.
        """
        # A producer would wait for a topic that nobody makes.
        Client(replace(options, topics=(topic,)), min(seconds, SECONDS_TO_ANSWER)).topics()
        self._options = options
        self._topic = topic
        self._seconds = seconds
        self._failures = Failures()
        self._failed: KafkaError | None = None
        fixed = {
            "enable.idempotence": True,
            "message.timeout.ms": int(seconds * 1000),
            # What was written needs no word for each.
            "delivery.report.only.error": True,
            "on_delivery": self._note,
            "error_cb": self._failures,
        }
        configuration = {**options.configuration(_DEFAULTS), **fixed}
        self._producer: Producer = made(options, lambda: Producer(configuration))

    def __enter__(self) -> Writer:
        """Nothing more."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what is left, or drops it after an error."""
        if kind is None:
            self.flush()
        else:
            self._producer.purge()

    def write(self, messages: Iterable[tuple[bytes | None, bytes | None]]) -> int:
        """Takes messages to be written soon; `flush` sees that they are.

        Args:
          messages: key and value of each; None for none, a value of None deletes the key from a compacted topic.

        Returns:
          How many there were.

        Raises:
          BrokerAway, UserError: see `flush`.
        """
        produce, poll, topic = self._producer.produce, self._producer.poll, self._topic
        count = 0
        for key, value in messages:
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    poll(_STEP)
                    self._check()
                except KafkaException as error:
                    raise self._exception(error.args[0]) from None
            count += 1
        poll(0)
        self._check()
        return count

    def flush(self) -> None:
        """Waits until everything is written.

        Raises:
          BrokerAway: Kafka did not take all; what it took stays, so write the same once more.
          UserError: the topic is not there, a message is too large, or Kafka does not let us in.
        """
        deadline = time.monotonic() + self._seconds + 1
        while self._producer.flush(_STEP):
            self._check()
            if time.monotonic() > deadline:
                raise self._exception(None)
        self._check()

    def _note(self, error: KafkaError | None, message: Message) -> None:
        self._failed = self._failed or error

    def _check(self) -> None:
        if self._failed is not None or self._failures.users is not None:
            raise self._exception(self._failed)

    def _exception(self, error: KafkaError | None) -> Exception:
        """What to raise; the messages that wait are dropped, so that they are not written once more behind our back."""
        self._producer.purge()
        self._producer.flush(_STEP)
        failures, self._failed = self._failures, None
        if error is not None and is_gone(error):
            return UserError(
                f"Expected topic {self._topic} in Kafka at {self._options.bootstrap_servers} to write to, but it is "
                "not there any more."
            )
        if error is not None and error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG):
            return UserError(
                f"Expected topic {self._topic} to take every message, but one is too large: raise max.message.bytes of "
                "the topic, and message.max.bytes in the file of --kafka-config."
            )
        found = failures.users or (error if error is not None and is_users(error) else failures.last) or error
        failures.clear()
        return as_exception(found or TimeoutError(), self._options)
