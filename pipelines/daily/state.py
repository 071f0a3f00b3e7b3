"""What the run of a day remembers: which days were done and delivered; and the lock that keeps others out meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from sinks.output_folder import check_place
from sinks.parquet import writing
from transforms.errors import UserError

FOLDER = ".daily"
"""Folder of the output for the lock and the state."""

LOCK, STATE = "lock", "state.json"
KEPT = 400
"""Days that are remembered."""

_VERSION = 1


@dataclass
class Day:
    """What is known of a day.

    Attributes:
      commit_id: the commit that its report was made of; None: it had no files yet.
      delivered: ways on which the report was delivered.
      owed: ways on which it was to be delivered, but could not be.
    """

    commit_id: int | None = None
    delivered: list[str] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)


@dataclass
class State:
    """The days that runs were about."""

    days: dict[date, Day] = field(default_factory=dict)

    @property
    def last(self) -> date | None:
        """The latest day."""
        return max(self.days, default=None)

    @property
    def missing(self) -> list[date]:
        """Days that had no files."""
        return [day for day, known in self.days.items() if known.commit_id is None]

    def save(self, output: Path) -> None:
        """Writes the state: whoever reads it has the old one or the new one.

        Raises:
          UserError: the disk is full or not writable.
        """
        kept = sorted(self.days)[-KEPT:]
        said = {"version": _VERSION, "days": {day.isoformat(): asdict(self.days[day]) for day in kept}}
        folder = output / FOLDER
        with writing(folder):
            handle, temporary = tempfile.mkstemp(prefix=".state-", dir=folder)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(json.dumps(said, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, folder / STATE)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)


def load_state(output: Path) -> State:
    """Reads the state; an empty one where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = output / FOLDER / STATE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["version"] != _VERSION:
            raise ValueError("another version")
        return State({date.fromisoformat(day): Day(**known) for day, known in said["days"].items()})
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Expected {path} as a run wrote it, but it is damaged ({error}): remove it (the next run then does its "
            "own day only), and make up for missed days by --backfill."
        ) from error


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other runs of a day away from an output folder; the system ends it when we die.

    Args:
      output: made where it is not there.

    Raises:
      UserError: another run of a day is going on, or the folder cannot be written.
    """
    check_place(output)
    folder = output / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise UserError(
                f"Expected to be the only daily run for {output}, but process {holder} is at it: wait until it has "
                "ended."
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        # Unlocked by name: closing alone would leave the lock with any process forked meanwhile.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
