"""Which stage a run is in: told from inside the pipeline, wherever it runs in this process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from pipelines.progress import Progress
from transforms.tables import Table


class Stages:
    """The stages of one run and their times, and the files that are complete; a context manager.

    DoFns are copied and may run elsewhere, so they carry a token; where no run has it, telling does nothing.

    Attributes:
      token: what DoFns carry.
      seconds: time of each stage so far.
      files: files of each table that are complete.
      on_begin: is called with the name of each stage that begins.
    """

    _running: ClassVar[dict[str, Stages]] = {}

    def __init__(self, progress: Progress) -> None:
        """Takes what shows the stages."""
        self.token = uuid.uuid4().hex
        self.seconds: dict[str, float] = {}
        self.files: dict[Table, list[Path]] = {}
        self.on_begin: Callable[[str], None] | None = None
        self._progress = progress
        self._name: str | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Stages:
        """Makes the token known."""
        self._running[self.token] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forgets the token."""
        del self._running[self.token]

    def begin(self, name: str, rows: int | None = None) -> None:
        """Begins a stage, which ends the one before.

        Args:
          name: what it does, as a reader would say it.
          rows: rows it will go through, where that is known.
        """
        if name == self._name:
            return
        self.end()
        self._name = name
        self._progress.stage(name, rows)
        if self.on_begin is not None:
            self.on_begin(name)

    def end(self) -> None:
        """Ends the present stage."""
        now = time.monotonic()
        if self._name is not None:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._since, self._name = now, None

    @classmethod
    def tell(cls, token: str, name: str) -> None:
        """Begins a stage of the run that has this token."""
        if token in cls._running:
            cls._running[token].begin(name)

    @classmethod
    def advance(cls, token: str, rows: int) -> None:
        """Tells the run that has this token of rows that went through."""
        if token in cls._running:
            cls._running[token]._progress.advance(rows)

    @classmethod
    def wrote(cls, token: str, table: Table, files: Sequence[Path]) -> None:
        """Tells the run that has this token that files of a table are complete."""
        if token in cls._running:
            cls._running[token].files.setdefault(table, []).extend(files)


class Tell(beam.PTransform):
    """Passes elements on; the first tells that a stage begins."""

    def __init__(self, token: str, name: str, after: beam.PCollection | None = None) -> None:
        """Takes the token of the run, the name of the stage, and what must be complete before it begins."""
        super().__init__()
        self._token, self._name, self._after = token, name, after

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Applies the step."""
        after = () if self._after is None else (AsSingleton(self._after),)
        return elements | beam.Map(_tell, self._token, self._name, *after)


def _tell(element: Any, token: str, name: str, after: Any = None) -> Any:
    Stages.tell(token, name)
    return element
