"""Which days a run is about, and which files are theirs."""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from transforms.errors import UserError

MOST_DAYS = 31
"""So many days before are caught up with; a longer gap wants --backfill."""

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_LEFT_OUT = (".", "_")


@dataclass(frozen=True)
class Inputs:
    """What was named as input.

    Attributes:
      patterns: files, folders or patterns; {date}, or {date:%Y%m%d} and the like, stands for a day.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses placeholders that nothing could be put in for."""
        for pattern in self.patterns:
            if "{date" in pattern:
                _filled(pattern, date(2026, 1, 14))

    @property
    def is_dated(self) -> bool:
        """Files are named by the day: each has its own."""
        return any("{date" in pattern for pattern in self.patterns)

    def of(self, day: date) -> tuple[str, ...]:
        """The patterns of a day that match something; those without a date always match what they do."""
        named = (_filled(p, day) if "{date" in p else p for p in self.patterns if not self.is_dated or "{date" in p)
        return tuple(pattern for pattern in named if is_there(pattern))


def _filled(pattern: str, day: date) -> str:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
        if fields == {"date"}:
            return pattern.format(date=day)
    except ValueError:
        pass
    raise UserError(
        f"--input: expected {{date}} or {{date:%Y%m%d}} and no other braces, got {pattern!r}: correct the pattern."
    )


def is_there(pattern: str) -> bool:
    """Whether a file, folder or pattern has any file."""
    if _SCHEME.match(pattern) and not pattern.lower().startswith("file://"):
        from apache_beam.io.filesystems import FileSystems

        asked = [pattern] if glob.has_magic(pattern) else [pattern, pattern.rstrip("/") + "/**"]
        return any(found.metadata_list for found in FileSystems.match(asked))
    paths = [pattern] if os.path.lexists(pattern) else glob.iglob(pattern, recursive=True)
    return any(not os.path.isdir(path) or _holds_files(path) for path in paths)


def _holds_files(folder: str) -> bool:
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(_LEFT_OUT)]
        if any(not name.startswith(_LEFT_OUT) for name in names):
            return True
    return False


def days_between(first: date, last: date) -> list[date]:
    """All days from one to another, both included."""
    return [first + timedelta(days=place) for place in range((last - first).days + 1)]


def days_to_do(day: date, last: date | None, missing: Sequence[date]) -> tuple[list[date], list[date]]:
    """The days that a run for one day is about.

    Args:
      day: the one asked for.
      last: the latest one that a run was about; None: there was none.
      missing: days that had no files.

    Returns:
      The days, ascending: those missed since, those that had no files, and the day itself; and the days that were
      missed but are too long ago. An earlier day than `last` is a matter of its own.
    """
    if last is None or day < last:
        return [day], []
    wanted = sorted({*missing, *days_between(last + timedelta(days=1), day), day})
    oldest = day - timedelta(days=MOST_DAYS)
    return [one for one in wanted if one >= oldest], [one for one in wanted if one < oldest]


def parse_range(text: str) -> tuple[date, date]:
    """Two days, as in 2026-01-01..2026-01-14.

    Raises:
      ValueError: it is something else.
    """
    first, dots, last = text.partition("..")
    if not dots:
        raise ValueError("no dots")
    days = date.fromisoformat(first.strip()), date.fromisoformat(last.strip())
    if days[0] > days[1]:
        raise ValueError("backwards")
    return days
