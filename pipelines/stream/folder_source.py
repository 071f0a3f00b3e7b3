"""A folder as a stream's input: files that are dropped into it, each taken once, by content."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.growth import Plan, State, Taken, plan_files
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile, inspect_file
from pipelines.sources.formats import blocks, estimate_rows, read_block
from pipelines.sources.matching import NoInputFiles, find_files
from pipelines.stream.sources import Range
from pipelines.stream.state import Partition, StreamState
from transforms.raw_rows import RawRows

PARTITION = "files"
"""All files are one partition: what comes in one of them may be older than what came in another."""

SECONDS_AT_REST = 1.0
"""A file that was written to more recently may not be complete."""

_Look = tuple[str, int, float]
"""Path, size and time of the last change of a file."""


@dataclass(frozen=True)
class FilesTaking:
    """Some new files; see Taking."""

    plan: Plan
    ranges: Mapping[str, Range]
    rows: int

    def pieces(self) -> Iterator[Block]:
        """Blocks of one file after another."""
        for file in self.plan.files:
            yield from blocks(file)

    def read(self, piece: Block) -> list[RawRows]:
        """Rows of a block."""
        parts = read_block(piece)
        source = self.plan.sources.get(piece.source)
        return parts if source is None else [replace(part, source=source) for part in parts]

    def partition_of(self, source: str) -> str:
        """All files are one."""
        return PARTITION

    def after(self, partition: str, latest: int | None) -> Partition:
        """How many files were taken."""
        return Partition(self.ranges[partition].stop, latest)

    def taken(self, rows: Mapping[str, int], cycle: int) -> tuple[Taken, ...]:
        """The files."""
        by_path = {file.path: rows.get(f"rows of {file.path}", 0) for file in self.plan.files}
        return self.plan.taken(State({}), by_path, cycle)

    def inputs(self, rows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Size, rows and SHA-256 of each file."""
        return {
            file.path: {
                "bytes": file.size,
                "rows": rows.get(f"rows of {file.path}", 0),
                "sha256": self.plan.sha256[file.path],
            }
            for file in self.plan.files
        }


class FolderSource:
    """Folders and patterns of files; see Source."""

    def __init__(
        self,
        patterns: Sequence[str],
        format: str | None,
        rows_a_cycle: int,
        tell: Callable[[str], None],
        waits: bool = True,
    ) -> None:
        """Takes what to look for, how many rows a cycle should take, and whether to wait until a file is at rest."""
        self._patterns, self._format, self._rows = patterns, format, rows_a_cycle
        self._tell, self._waits = tell, waits
        self._known: set[_Look] = set()

    def look(self, state: StreamState) -> FilesTaking:
        """The new files, as many as a cycle should take.

        Raises:
          UserError: a file is damaged, or not of a format that is known.
        """
        chosen: list[InputFile] = []
        looks: dict[str, _Look] = {}
        rows = lag = 0
        for path, size in self._files():
            changed = os.stat(path).st_mtime
            look = (path, size, changed)
            if look in self._known or (self._waits and time.time() - changed < SECONDS_AT_REST):
                continue
            if rows >= self._rows:
                lag += 1
                continue
            file = inspect_file(path, size, self._format)
            chosen.append(file)
            looks[path] = look
            rows += max(1, estimate_rows(file))
        plan = plan_files(chosen, State({}, taken=state.taken), state.cycle + 1)
        for path in plan.grown:
            self._tell(f"{path} has grown since it was taken and is left alone: drop new rows as files of their own")
        new = {file.path for file in plan.files}
        self._known |= {look for path, look in looks.items() if path not in new}
        if not new and lag:
            return self.look(state)
        taken = state.partitions.get(PARTITION, Partition(0)).next
        ranges = {PARTITION: Range(taken, taken + len(plan.files), lag=lag)}
        return FilesTaking(plan, ranges, rows if plan.files else 0)

    def close(self) -> None:
        """Nothing is open."""

    def _files(self) -> list[tuple[str, int]]:
        try:
            return find_files(self._patterns)
        except NoInputFiles:
            # A folder that is empty, or is not there yet.
            return []
