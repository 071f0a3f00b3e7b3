"""The change feed: every restated KPI window as an upsert to a topic of Kafka, idempotent for whoever applies it.

Key and value are JSON. The key names a window; the value is its row of `kpis` as it is now, null where it is empty
again. Messages are committed with the cycle that they come from and forgotten once Kafka has them: after a crash some
come twice, none gets lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa

from pipelines.kafka.faults import BrokerAway
from pipelines.kafka.settings import KafkaOptions
from pipelines.kafka.writing import Writer
from pipelines.stream.store import LiveStore
from sinks.revisions import UNREVISED

KEY = ("basis", "grain", "window_start", "account_id", "channel")
SECONDS_TO_WRITE = 5.0


def upserts(windows: pa.Table, kpis: pa.Table) -> list[tuple[str, str | None]]:
    """Key and value of each window that a cycle made anew.

    Args:
      windows: their keys.
      kpis: the rows that they have now; a window without one is empty.
    """
    found: dict[str, str | None] = {_json({name: row[name] for name in KEY}): None for row in windows.to_pylist()}
    for row in kpis.select(UNREVISED.schema.names).to_pylist():
        found[_json({name: row[name] for name in KEY})] = _json(row)
    return sorted(found.items())


def _json(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_moment)


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    raise TypeError(f"expected a value of kpis, got {value!r}")


class ChangeFeed:
    """Sends what the store has for the topic; a context manager."""

    def __init__(self, options: KafkaOptions, topic: str, tell: Callable[[str], None]) -> None:
        """Takes the Kafka, the topic, and who is told when it does not answer."""
        self._writer = Writer(options, topic, SECONDS_TO_WRITE)
        self._tell = tell

    def __enter__(self) -> ChangeFeed:
        """Returns itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing waits: what could not be sent is in the store."""

    def send(self, store: LiveStore) -> None:
        """Sends all that has not arrived yet; where Kafka does not answer, the next one sends it.

        Raises:
          UserError: the topic is not there, or Kafka does not let us in.
        """
        # Of several upserts of a window the last one says all.
        waiting = dict(store.messages())
        if not waiting:
            return
        try:
            self._writer.write((key.encode(), None if text is None else text.encode()) for key, text in waiting.items())
            self._writer.flush()
        except BrokerAway as error:
            self._tell(f"{error}; the change feed follows later")
            return
        assert store.state is not None
        store.sent(store.state.cycle)
