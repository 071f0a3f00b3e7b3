"""Which topics, partitions and offsets there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipelines.kafka.faults import as_exception, is_gone, is_users
from pipelines.kafka.settings import KafkaOptions, made
from transforms.errors import UserError

Place = tuple[str, int]
"""A topic and a partition of it."""

SECONDS_TO_ANSWER = 10.0

_Answers = dict[tuple[Any, ...], futures.Future[Any]]

_STEP = 0.2
_INTERNAL = "__"
_TOPICS_TO_NAME = 10


@dataclass(frozen=True)
class Topic:
    """A topic.

    Attributes:
      identity: differs between a topic and another one of the same name that was made after it.
      partitions: how many it has; they are numbered from 0.
    """

    identity: str
    partitions: int


@dataclass(frozen=True)
class Offsets:
    """What a partition has to read.

    Attributes:
      low: offset of its first message, or where it would be.
      high: offset after the last message that can be read now; those of open transactions can not.
    """

    low: int
    high: int


class Failures:
    """The last error that a client of librdkafka told, to be given to it as `error_cb`."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.last: KafkaError | None = None
        self.users: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Notes an error."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.last is None:
            # What came before that tells why.
            self.last = error
        if is_users(error):
            self.users = error

    def clear(self) -> None:
        """Forgets what there was: something has succeeded."""
        self.last = self.users = None


class Client:
    """Looks at topics, quickly: one connection is kept for all who look at the same Kafka."""

    def __init__(self, options: KafkaOptions, seconds: float = SECONDS_TO_ANSWER) -> None:
        """Makes a client.

        Args:
          options: the Kafka and its topics.
          seconds: how long to wait for an answer before it is said to be away.
        """
        self.options = options
        self._seconds = seconds

    def topics(self) -> dict[str, Topic]:
        """The topics that are read, with the partitions that they have at this moment, by name.

        Raises:
          UserError: a topic is not there, no topic has a name of the pattern, or Kafka does not let us in.
          BrokerAway: Kafka does not answer.
        """
        pattern = self.options.pattern
        names = list(self.options.topics)
        if pattern is not None:
            there = self._names()
            names = [name for name in there if pattern.match(name)]
            if not names:
                raise UserError(self._not_there(f"a topic whose name fits {pattern.pattern}", there))
        asked = self._ask(
            lambda admin: _by_name(admin.describe_topics(TopicCollection(names), request_timeout=self._seconds))
        )
        return {name: Topic(str(answer.topic_id), len(answer.partitions)) for (name,), answer in asked.items()}

    def offsets(self, topics: Mapping[str, Topic] | None = None) -> dict[Place, Offsets]:
        """The offsets of every partition, asked all at once.

        Args:
          topics: whose; None asks which there are.

        Raises:
          UserError, BrokerAway: see `topics`.
        """
        topics = self.topics() if topics is None else topics
        places = [TopicPartition(name, number) for name, topic in topics.items() for number in range(topic.partitions)]
        committed = self.options.is_read_committed
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED

        def both(admin: AdminClient) -> _Answers:
            options = {"isolation_level": isolation, "request_timeout": self._seconds}
            low = admin.list_offsets({place: OffsetSpec.earliest() for place in places}, **options)
            high = admin.list_offsets({place: OffsetSpec.latest() for place in places}, **options)
            asked = [("low", low), ("high", high)]
            return {(p.topic, p.partition, side): found for side, one in asked for p, found in one.items()}

        asked = self._ask(both)
        return {
            (p.topic, p.partition): Offsets(
                asked[p.topic, p.partition, "low"].offset, asked[p.topic, p.partition, "high"].offset
            )
            for p in places
        }

    def _names(self) -> list[str]:
        """Every topic but Kafka's own."""
        admin, failures = _admin(self.options)
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                found = admin.list_topics(timeout=min(1.0, self._seconds)).topics
                return sorted(name for name in found if not name.startswith(_INTERNAL))
            except KafkaException as error:
                admin.poll(0)
                if failures.users is not None or time.monotonic() > deadline:
                    raise self._failure(failures, error) from None

    def _ask(self, question: Callable[[AdminClient], _Answers]) -> dict[tuple[Any, ...], Any]:
        """Asks about topics, and waits for all answers, by (name of a topic, …)."""
        admin, failures = _admin(self.options)
        asked = question(admin)
        waiting = set(asked.values())
        deadline = time.monotonic() + self._seconds
        while waiting:
            waiting = futures.wait(waiting, timeout=_STEP).not_done
            if waiting:
                admin.poll(0)
                if failures.users is not None or time.monotonic() > deadline:
                    raise self._failure(failures, TimeoutError())
        for key, answer in asked.items():
            error = answer.exception()
            if error is not None:
                cause = error.args[0] if isinstance(error, KafkaException) else None
                if isinstance(cause, KafkaError) and is_gone(cause):
                    raise UserError(self._not_there(f"topic {key[0]}", self._names()))
                admin.poll(0)
                raise self._failure(failures, error)
        failures.clear()
        return {key: answer.result() for key, answer in asked.items()}

    def _failure(self, failures: Failures, error: BaseException) -> Exception:
        cause = error.args[0] if isinstance(error, KafkaException) else None
        is_clear = isinstance(cause, KafkaError) and is_users(cause)
        found = failures.users or (error if is_clear else failures.last) or error
        failures.clear()
        return as_exception(found, self.options)

    def _not_there(self, wanted: str, there: list[str]) -> str:
        names = ", ".join(there[:_TOPICS_TO_NAME]) or "none"
        more = f" and {len(there) - _TOPICS_TO_NAME} more" if len(there) > _TOPICS_TO_NAME else ""
        return (
            f"Expected {wanted} in Kafka at {self.options.bootstrap_servers}, but its topics are: {names}{more}; "
            "make it, or correct the name."
        )


def _by_name(answers: Mapping[str, futures.Future[Any]]) -> _Answers:
    return {(name,): answer for name, answer in answers.items()}


_ADMINS: dict[tuple[object, ...], tuple[AdminClient, Failures]] = {}
_LOCK = threading.Lock()


def _admin(options: KafkaOptions) -> tuple[AdminClient, Failures]:
    """The one client of this process for a Kafka: after a fork, that of the parent can not be used."""
    key = os.getpid(), options.bootstrap_servers, options.settings
    with _LOCK:
        found = _ADMINS.get(key)
        if found is None:
            failures = Failures()
            configuration = options.configuration()
            found = made(options, lambda: AdminClient({**configuration, "error_cb": failures})), failures
            _ADMINS[key] = found
        return found
