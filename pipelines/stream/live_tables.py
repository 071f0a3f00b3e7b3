"""What a live store holds: its tables, and what one cycle changes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.stream.state import StreamState
from transforms.hashing import Hashes
from transforms.tables import KPI_STATISTICS, Table
from transforms.wakes import Wakes

_CYCLE = pa.field("cycle", pa.int64(), False)
_KEY_HASH = pa.field("key_hash", pa.uint64(), False)

LIVE_TABLES: Mapping[str, pa.Schema] = {
    "kpi_statistics": KPI_STATISTICS.schema,
    "keys": pa.schema([_KEY_HASH, pa.field("wake_at", pa.int64()), pa.field("ends_at", pa.int64(), False)]),
    "contacts": pa.schema([pa.field("account_id", pa.string()), pa.field("customer_id", pa.string()), _KEY_HASH]),
    "outbox": pa.schema([_CYCLE, pa.field("message_key", pa.string()), pa.field("message", pa.string())]),
    "state": pa.schema([pa.field("said", pa.string(), False)]),
}


@dataclass(frozen=True)
class CycleResult:
    """What one cycle commits.

    Attributes:
      state: what the next cycle begins with.
      facts: rows of CONVERSATIONS and TURNS that go and that come (with key_hash).
      kpis: rows of the windows that were made anew, without the commit's columns.
      kpi_statistics: the same of KPI_STATISTICS.
      windows: keys of the windows that were made anew or have become empty.
      letters: rows of DEAD_LETTERS that go and that come.
      late_events: rows of LATE_EVENTS.
      counts: numbers of rows by name, as JSON.
      looked_at: hashes of the keys that were looked at.
      wakes: their wakes.
      ends: their hashes again, and the moment from which no event in time can join them, microseconds.
      contacts: rows of the table of that name to be added.
      messages: key and JSON of what goes out to the change feed.
    """

    state: StreamState
    facts: Mapping[Table, tuple[pa.Table, pa.Table]]
    kpis: pa.Table
    kpi_statistics: pa.Table
    windows: pa.Table
    letters: tuple[pa.Table, pa.Table]
    late_events: pa.Table
    counts: str
    looked_at: Hashes
    wakes: Wakes
    ends: tuple[Hashes, np.ndarray]
    contacts: pa.Table
    messages: Sequence[tuple[str, str | None]] = ()
