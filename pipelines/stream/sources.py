"""Where a stream's rows come from: what a cycle takes, and how it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.growth import Taken
from pipelines.stream.graph import Piece
from pipelines.stream.state import Partition, StreamState
from transforms.raw_rows import RawRows


@dataclass(frozen=True)
class Range:
    """What a cycle takes of a partition.

    Attributes:
      start: the first offset (of a folder: file) that it takes.
      stop: the one after the last.
      lost: offsets before `start` that were due, but are not there any more.
      lag: offsets that are left after it.
    """

    start: int
    stop: int
    lost: int = 0
    lag: int = 0


class Taking(Protocol):
    """What one cycle takes; a fixed part of the input, the same whenever it is read."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """By name of the partition; those of which nothing is taken too."""
        ...

    @property
    def rows(self) -> int:
        """About how many rows it has."""
        ...

    def pieces(self) -> Iterable[Piece]:
        """Reads it, part by part."""
        ...

    def read(self, piece: Any) -> list[RawRows]:
        """The rows of a part."""
        ...

    def partition_of(self, source: str) -> str:
        """The partition that the source of a part belongs to."""
        ...

    def after(self, partition: str, latest: int | None) -> Partition:
        """What is remembered of a partition once this is taken; `latest` is that of all its rows so far."""
        ...

    def taken(self, rows: Mapping[str, int], cycle: int) -> tuple[Taken, ...]:
        """The files that it takes, by the rows of each; none where the input is no folder."""
        ...

    def inputs(self, rows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """What `runs` tells of it by name, given the numbers of rows; JSON values."""
        ...


class Source(Protocol):
    """An input that goes on."""

    def look(self, state: StreamState) -> Taking:
        """What the next cycle can take now, at most so much as it should."""
        ...

    def close(self) -> None:
        """Ends what is open."""
        ...
