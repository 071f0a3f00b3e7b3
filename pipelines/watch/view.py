"""How things stand with a stream, looked at from outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pipelines.stream.status import is_running, read_status
from pipelines.summary import NULL, format_seconds
from pipelines.watch.waiting import PublishedResult, Results
from transforms.errors import UserError


@dataclass(frozen=True)
class View:
    """What is to be shown.

    Attributes:
      output: the output folder.
      now: the time of day, UTC.
      status: what the last stream said of itself; None where there was none.
      is_running: whether it is running.
      result: the published result; None where there is none.
      trouble: why the result could not be read.
    """

    output: Path
    now: datetime
    status: dict[str, Any] | None
    is_running: bool
    result: PublishedResult | None
    trouble: str | None = None

    @property
    def timezone(self) -> str:
        """IANA zone in which times are shown: that of the stream."""
        return "UTC" if self.status is None else str(self.status["timezone"])

    def ago(self, moment: str | datetime | None) -> str:
        """How long ago something was, as people say it; a dash where it was not."""
        seconds = self.seconds_since(moment)
        return NULL if seconds is None else format_seconds(round(seconds))

    def local(self, moment: str | datetime | None) -> str:
        """A moment in the zone of the stream, to the second; a dash where there is none."""
        if moment is None:
            return NULL
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return f"{at.astimezone(ZoneInfo(self.timezone)):%Y-%m-%d %H:%M:%S}"

    def seconds_since(self, moment: str | datetime | None) -> float | None:
        """How long ago something was, never negative."""
        if moment is None:
            return None
        at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        return max(0.0, (self.now - at).total_seconds())


class Watched:
    """An output folder that is looked at again and again."""

    def __init__(self, output: Path) -> None:
        """Takes the folder."""
        self._output, self._results = output, Results(output)

    def look(self) -> View:
        """How things stand."""
        status, result, trouble = read_status(self._output), None, None
        try:
            result = self._results.latest()
        except UserError as error:
            trouble = str(error)
        now = datetime.now(UTC)
        running = False
        if status is not None:
            running = is_running(status, (now - datetime.fromisoformat(status["updated_at"])).total_seconds())
        return View(self._output, now, status, running, result, trouble)

    def first(self) -> View:
        """As `look`.

        Raises:
          UserError: there is nothing to look at.
        """
        view = self.look()
        if view.status is None and view.result is None:
            raise UserError(
                view.trouble
                or f"Expected the output folder of a stream, but {self._output} has neither a status nor a result: "
                "name the folder that care-kpis stream was given as --output."
            )
        return view
