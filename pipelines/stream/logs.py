"""The log of a stream: a line for each publish, and for whatever is worth a sentence; as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipelines.stream.figures import Figures, iso, reason_of
from pipelines.stream.watcher import Watcher

if TYPE_CHECKING:
    from pipelines.stream.live_tables import CycleResult
    from pipelines.stream.publishing import Published
    from pipelines.stream.sources import Taking
from pipelines.stream.store import LiveStore

LOGGER = "care_kpis.stream"

FIELDS = ("cycle", "commit_id", "rows", "seconds", "lag", "watermark")
"""What a line may tell in figures."""

KEYS = ("time", "level", "event", "message", *FIELDS)
"""Keys of every line of JSON; null where one says nothing."""


class Log(Watcher):
    """Writes the lines to standard error."""

    def __init__(self, figures: Figures, source: str, form: Literal["text", "json"] = "text", is_verbose: bool = False):
        """Sets the logger up.

        Args:
          figures: of the stream; it is told everything before the log is.
          source: what is read, for the first line: no secrets.
          form: of the lines.
          is_verbose: a line for each cycle too.
        """
        self._figures, self._source = figures, source
        self._logger = logging.getLogger(LOGGER)
        self._logger.propagate = False
        self._logger.setLevel(logging.DEBUG if is_verbose else logging.INFO)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_AsJson() if form == "json" else _AsText())
        self._logger.handlers[:] = [handler]

    def began(self, store: LiveStore) -> None:
        """Where it goes on from."""
        cycle = self._figures.cycle
        begins = f"It goes on after cycle {cycle:,}" if cycle else "It begins with the first cycle"
        text = f"The stream of {self._source} into {store.folder.parent} starts. {begins}."
        self._tell(logging.INFO, "started", text)

    def said(self, sentence: str) -> None:
        """The sentence."""
        self._tell(logging.WARNING, "said", sentence if sentence.endswith(".") else f"{sentence}.")

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """The cycle, where that is wanted."""
        if self._logger.isEnabledFor(logging.DEBUG):
            rows, seconds = self._figures.cycle_rows, self._figures.cycle_seconds
            text = f"Cycle {result.state.cycle:,} took {rows:,} rows in {seconds:.2f} s."
            self._tell(logging.DEBUG, "committed", text, rows=rows, seconds=round(seconds, 3))

    def published(self, published: Published) -> None:
        """The commit."""
        text = (
            f"Commit {published.commit_id:,} was published in {published.seconds:.1f} s, "
            f"with all cycles up to {published.cycle:,}."
        )
        more = {"cycle": published.cycle, "commit_id": published.commit_id, "seconds": round(published.seconds, 3)}
        self._tell(logging.INFO, "published", text, **more)

    def ended(self, error: BaseException | None) -> None:
        """Why it ends."""
        if error is None:
            self._tell(logging.INFO, "stopped", "The stream stops; everything committed is published.")
        else:
            text = f"The stream stops; what is committed stays. {reason_of(error)}"
            self._tell(logging.ERROR, "failed", text)

    def _tell(self, level: int, event: str, text: str, **told: Any) -> None:
        watermark = self._figures.watermark
        fields: dict[str, Any] = dict.fromkeys(FIELDS)
        fields |= {"cycle": self._figures.cycle, "lag": self._figures.lag}
        fields["watermark"] = iso(None if watermark is None else watermark / 1e6)
        self._logger.log(level, "%s", text, extra={"event": event, "figures": fields | told})


class _AsText(logging.Formatter):
    """Time, level where it is no mere information, and the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        # Names of files and topics may hold anything; a line stays a line.
        text = "".join(letter if letter.isprintable() else " " for letter in record.getMessage())
        level = "" if record.levelno in (logging.INFO, logging.DEBUG) else f"{record.levelname.capitalize()}: "
        return f"{_time(record, 'seconds')} {level}{text}"


class _AsJson(logging.Formatter):
    """An object with all of KEYS."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = record.__dict__
        line = {
            "time": _time(record, "milliseconds"),
            "level": record.levelname.lower(),
            "event": told["event"],
            "message": record.getMessage(),
            **told["figures"],
        }
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord, precision: str) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
