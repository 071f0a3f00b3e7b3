"""How a Kafka is reached and which of its topics are read: addresses, topics, and any setting of librdkafka."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import javaproperties
from confluent_kafka import Consumer, KafkaError, KafkaException

from transforms.errors import UserError

LOGGER = logging.getLogger(__name__)
"""Gets what librdkafka logs: every try to connect. What matters of it is told otherwise, so nobody else gets it."""
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False

PATTERN_MARK = "^"
"""Begins a pattern of names; no name of a topic can begin so."""

T = TypeVar("T")

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SECRET = re.compile(r"password|secret|\.pem$|token|oauthbearer\.config|sasl\.username|assertion")
_PROPERTY = re.compile(r'property:? "([^"]+)"')
_SHORTEST_SECRET = 3

_OURS = frozenset(
    {
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "group.instance.id",
        "partition.assignment.strategy",
        "group.protocol",
        "plugin.library.paths",
    }
)
"""Settings that are not to be changed: places are kept with the results, and every message is read exactly once."""

_LIST_OF_SETTINGS = "https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md"


@dataclass(frozen=True)
class KafkaOptions:
    """A Kafka and the topics of it that are read. Can be hashed and pickled; does not show its settings.

    Attributes:
      bootstrap_servers: addresses, HOST:PORT with commas between.
      topics: names of topics, or one pattern that begins with ^.
      settings: further settings of librdkafka, by name.
    """

    bootstrap_servers: str
    topics: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The pattern of topics; None where they are named."""
        is_pattern = self.topics[:1] and self.topics[0].startswith(PATTERN_MARK)
        return re.compile(self.topics[0]) if is_pattern else None

    @property
    def is_read_committed(self) -> bool:
        """Whether messages of transactions are read once these are committed only."""
        return dict(self.settings).get("isolation.level", "read_committed") == "read_committed"

    def configuration(self, defaults: Mapping[str, object] | None = None) -> dict[str, object]:
        """Everything that a client of librdkafka is to be made with; it has secrets in it.

        Args:
          defaults: settings where the user has none.
        """
        ours = {
            "client.id": "care-kpis",
            # A broker that was away is there again within a second, not ten.
            "reconnect.backoff.max.ms": 1_000,
            # A topic that is not there is said to be so within seconds, not after half a minute.
            "topic.metadata.propagation.max.ms": 2_000,
            "log.connection.close": False,
            "logger": LOGGER,
        }
        return {**ours, **(defaults or {}), **dict(self.settings), "bootstrap.servers": self.bootstrap_servers}

    def without_secrets(self, text: str) -> str:
        """A text in which no secret of the settings is told."""
        for name, value in self.settings:
            if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, "***")
        return text


def kafka_options(
    bootstrap_servers: str | None, topics: Sequence[str], settings_file: Path | str | None = None
) -> KafkaOptions:
    """Checks what a user said of a Kafka.

    Args:
      bootstrap_servers: addresses; None takes `bootstrap.servers` of the file.
      topics: names of topics, or one pattern (a regular expression that begins with ^ and finds whole or first parts of
        names).
      settings_file: Java properties with settings of librdkafka, for TLS, SASL and whatever else.

    Raises:
      UserError: there are no addresses or topics, a topic can not have this name, the pattern or the file can not be
        read, or a setting is unknown, of a wrong value, or not to be changed.
    """
    settings = {} if settings_file is None else read_settings(Path(settings_file))
    said = settings.pop("bootstrap.servers", settings.pop("metadata.broker.list", ""))
    servers = (bootstrap_servers or said).strip()
    if not servers:
        raise UserError(
            "Expected the address of Kafka, such as localhost:9092, got none: give --bootstrap-servers, or "
            "bootstrap.servers in the file of --kafka-config."
        )
    _check_topics(topics)
    options = KafkaOptions(servers, tuple(dict.fromkeys(topics)), tuple(sorted(settings.items())))
    _check_settings(options, settings_file)
    return options


def read_settings(path: Path) -> dict[str, str]:
    """Reads a file of settings: NAME=VALUE lines, as Java's properties.

    Raises:
      UserError: there is no such file, or it is something else.
    """
    try:
        settings = javaproperties.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"Expected a file of Kafka settings at {path}, but it can not be read: {error.strerror}."
        ) from None
    except ValueError:
        # Without its cause: that would show what is in the file.
        raise UserError(
            f"Expected lines of NAME=VALUE in UTF-8 in {path}, got something else: write a backslash as two."
        ) from None
    for name, value in settings.items():
        if not value:
            raise UserError(f"Expected lines of NAME=VALUE in {path}, got {name!r} without a value.")
    return {name: value.strip() for name, value in settings.items()}


def _check_topics(topics: Sequence[str]) -> None:
    if not topics:
        raise UserError("Expected a topic to read, got none: give --topic, once for each.")
    patterns = [topic for topic in topics if topic.startswith(PATTERN_MARK)]
    if patterns and len(topics) > 1:
        raise UserError(
            f"Expected names of topics or one pattern, got {len(topics)} of which {patterns[0]!r} is a pattern: "
            "make one pattern of them, such as ^(care|sales)-."
        )
    for topic in topics:
        try:
            is_right = bool(re.compile(topic) if patterns else _NAME.fullmatch(topic))
        except re.error as error:
            raise UserError(
                f"Expected a regular expression as the pattern of topics, got {topic!r}: {error}."
            ) from None
        if not is_right:
            raise UserError(
                f"Expected the name of a topic (letters, digits, '.', '_' and '-', up to 249), got {topic!r}; a "
                "pattern begins with ^."
            )


def _check_settings(options: KafkaOptions, file: Path | str | None) -> None:
    """Has librdkafka check the settings."""
    for name in dict(options.settings):
        if name in _OURS or name.endswith("_cb"):
            raise UserError(f"Expected no {name} in {file}: how topics are read is not to be changed; leave it out.")
    # Consumers check all that producers and admin clients do, and more.
    made(options, lambda: Consumer(options.configuration({"group.id": "care-kpis"})), str(file)).close()


def made(options: KafkaOptions, make: Callable[[], T], file: str = "the settings") -> T:
    """Makes a client.

    Raises:
      UserError: librdkafka refuses the settings.
    """
    try:
        return make()
    except (KafkaException, TypeError, ValueError) as error:
        cause = error.args[0] if error.args else error
        text = cause.str() if isinstance(cause, KafkaError) else str(cause)
    name = _PROPERTY.search(text)
    if "No such configuration property" in text and name:
        raise UserError(
            f"Expected settings of librdkafka in {file}, got {name[1]!r}, which it does not know: see "
            f"{_LIST_OF_SETTINGS}."
        )
    if name:
        # The value is not told: it may be a secret in the wrong place.
        raise UserError(
            f"Expected for {name[1]} in {file} a value that librdkafka takes, got another: see {_LIST_OF_SETTINGS}."
        )
    raise UserError(
        f"Expected settings of librdkafka in {file}, but it said: {options.without_secrets(text).rstrip('.')}."
    )
