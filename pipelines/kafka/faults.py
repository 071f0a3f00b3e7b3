"""What can go wrong with Kafka: what passes, what only the user can mend, and messages that are gone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, stop_never
from tenacity.wait import wait_exponential

from pipelines.kafka.settings import KafkaOptions
from transforms.errors import UserError

T = TypeVar("T")

SECONDS_BETWEEN_TELLINGS = 10.0

_LONGEST_WAIT = 5.0
_SHORTEST_WAIT = 0.2

_STATE = re.compile(r" \(after \d+ms in state .*\)$")

_USERS = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
"""Errors that trying again does not mend."""

_GONE = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
"""Errors of a topic that is not there."""


class BrokerAway(Exception):
    """Kafka does not answer, or not now: the same may succeed later. One sentence, without secrets."""


class LostOffsets(Exception):
    """Messages that are due to be read are not in the topic any more.

    Attributes:
      topic: name of the topic.
      partition: number of the partition.
      wanted: offset of the first message that is due.
      low: offset of the first message that there is; None where the topic or partition itself is not there.
      high: offset after the last one.
    """

    def __init__(self, topic: str, partition: int, wanted: int, low: int | None, high: int | None) -> None:
        """Makes it; see the attributes."""
        super().__init__(topic, partition, wanted, low, high)
        self.topic, self.partition, self.wanted, self.low, self.high = topic, partition, wanted, low, high

    def __str__(self) -> str:
        """One sentence: what was expected and what is there."""
        there = "it is not there any more"
        if self.low is not None and self.high is not None:
            there = f"it has offsets {self.low} to {self.high - 1}" if self.low < self.high else "it has no message"
            why = "the others were deleted, by its retention" if self.wanted < self.low else "it was made anew"
            there = f"{there}: {why}" if not self.low <= self.wanted <= self.high else there
        return f"Expected offset {self.wanted} in partition {self.partition} of topic {self.topic}, but {there}."


def is_gone(error: KafkaError) -> bool:
    """Whether an error says that a topic or partition is not there."""
    return error.code() in _GONE


def is_users(error: KafkaError) -> bool:
    """Whether an error is one that only the user can mend."""
    return error.code() in _USERS


def as_exception(error: KafkaError | BaseException, options: KafkaOptions) -> Exception:
    """What to raise for an error of Kafka: UserError or BrokerAway."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if not isinstance(cause, KafkaError):
        return BrokerAway(f"Kafka at {options.bootstrap_servers} does not answer: {cause or 'in time'}")
    text = options.without_secrets(_STATE.sub("", cause.str())).rstrip(".")
    if is_users(cause):
        return UserError(
            f"Expected Kafka at {options.bootstrap_servers} to let us in, but it said: {text}; see security.protocol, "
            "sasl.* and ssl.* in the file of --kafka-config, and what the user may do."
        )
    return BrokerAway(f"Kafka at {options.bootstrap_servers} does not answer: {text}")


def keep_trying(
    action: Callable[[], T],
    seconds: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> T:
    """Does something again and again until Kafka is there, waiting longer each time, up to five seconds.

    Args:
      action: what to do; BrokerAway lets it be done again.
      seconds: for how long; None for ever.
      tell: gets a sentence at the first failure and every ten seconds.

    Raises:
      BrokerAway: it still fails after so many seconds.
    """
    told: list[float] = []

    def before_sleep(state: RetryCallState) -> None:
        now = time.monotonic()
        if state.outcome is not None and (not told or now - told[-1] >= SECONDS_BETWEEN_TELLINGS):
            waited = f" ({now - told[0]:.0f} s now)" if told else ""
            told.append(now)
            tell(f"{state.outcome.exception()}; trying again{waited}")

    retrying = Retrying(
        retry=retry_if_exception_type(BrokerAway),
        wait=wait_exponential(multiplier=_SHORTEST_WAIT, max=_LONGEST_WAIT),
        stop=stop_never if seconds is None else stop_after_delay(seconds),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(action)
