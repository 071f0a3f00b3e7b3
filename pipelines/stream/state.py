"""What a stream remembers from one cycle to the next, and over every crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.growth import Taken


@dataclass(frozen=True)
class Partition:
    """How far one partition of the input was taken.

    Attributes:
      next: the first offset that was not taken yet.
      latest: latest occurred_at of its valid rows, microseconds; None before the first.
      identity: of the topic: another one of the same name has another.
    """

    next: int
    latest: int | None = None
    identity: str = ""


@dataclass(frozen=True)
class StreamState:
    """What the next cycle begins with.

    Attributes:
      settings: settings that must not change while the stream goes on, as `runs` tells them.
      cycle: number of the last cycle that was committed, from 1.
      watermark: the moment up to which time has passed, microseconds; None before the first event.
      latest: latest occurred_at of the events kept, microseconds.
      partitions: by their name ("topic/3").
      taken: files that were taken, where the input is a folder.
      row_files: rows of each file of open rows, by name.
      pending: numbers of the cycles that no published result has yet.
    """

    settings: Mapping[str, Any]
    cycle: int = 0
    watermark: int | None = None
    latest: int | None = None
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    taken: tuple[Taken, ...] = ()
    row_files: Mapping[str, int] = field(default_factory=dict)
    pending: tuple[int, ...] = ()

    def to_json(self) -> str:
        """As text, for `from_json`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StreamState:
        """What `to_json` wrote."""
        said = json.loads(text)
        said["partitions"] = {name: Partition(**each) for name, each in said["partitions"].items()}
        said["taken"] = tuple(Taken(**each) for each in said["taken"])
        said["pending"] = tuple(said.get("pending", ()))
        return StreamState(**said)
