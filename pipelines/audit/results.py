"""What an audit found, how it is told, and the mark that a published result carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipelines.exits import AUDIT_FAILED
from sinks.manifest import read_manifest
from transforms.errors import UserError

Severity = Literal["critical", "warning"]
Verdict = Literal["passed", "warning", "failed"]

MARK = "audit"
"""Key of the mark in the manifest."""

SHOWN = 3
"""So many problems, and rows of a problem, are spelled out; the others are counted."""


class AuditFailed(UserError):
    """A critical check failed: nothing was published."""

    exit_code = AUDIT_FAILED


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
      check: its name: suite, colon, and what of it.
      severity: critical, or warning.
      sentence: what has to hold.
      is_met: it holds.
      count: how many rows (or statements) break it; None where they cannot be counted.
      rows: the first of them, by their keys.
    """

    check: str
    severity: Severity
    sentence: str
    is_met: bool
    count: int | None = 0
    rows: tuple[str, ...] = ()

    def told(self) -> str:
        """The problem in one line."""
        rows = "; ".join(self.rows[:SHOWN])
        more = f" and {self.count - SHOWN:,} more" if self.count is not None and self.count > SHOWN else ""
        count = "" if self.count is None else f" ({self.count:,})"
        return printable(f"{self.check}{count}: {self.sentence}{f' Not so: {rows}{more}.' if rows else ''}")


@dataclass(frozen=True)
class AuditResult:
    """What came of an audit.

    Attributes:
      commit_id: of the result that was audited.
      audited_at: when.
      outcomes: every check.
      docs: the folder of its Data Docs; index.html is their first page.
    """

    commit_id: int
    audited_at: datetime
    outcomes: Sequence[Outcome]
    docs: Path

    @property
    def problems(self) -> list[Outcome]:
        """What does not hold, the critical ones first."""
        return sorted((o for o in self.outcomes if not o.is_met), key=lambda outcome: outcome.severity != "critical")

    @property
    def verdict(self) -> Verdict:
        """Failed where a critical check failed, warning where another one did."""
        if not self.problems:
            return "passed"
        return "failed" if self.problems[0].severity == "critical" else "warning"

    def mark(self) -> dict[str, Any]:
        """What the manifest keeps, as JSON values."""
        return {
            "verdict": self.verdict,
            "commit_id": self.commit_id,
            "audited_at": self.audited_at.isoformat(),
            "check_count": len(self.outcomes),
            "problems": [
                {
                    "check": o.check,
                    "severity": o.severity,
                    "sentence": o.sentence,
                    "count": o.count,
                    "rows": list(o.rows),
                }
                for o in self.problems
            ],
        }

    def notes(self) -> tuple[str, ...]:
        """Sentences for the summary of a run that was published."""
        if self.verdict == "passed":
            return (f"audit: all {len(self.outcomes):,} checks passed; {self.docs / 'index.html'}",)
        head = f"audit: published with {len(self.problems):,} of {len(self.outcomes):,} checks as warnings"
        return (f"{head}; {self.docs / 'index.html'}", *(f"audit: {o.told()}" for o in self.problems[:SHOWN]))

    def refusal(self) -> str:
        """Why a result is not published, in one paragraph."""
        critical = [o for o in self.problems if o.severity == "critical"]
        of_all = len([o for o in self.outcomes if o.severity == "critical"])
        told = " ".join(o.told() for o in critical[:SHOWN])
        more = f" And {len(critical) - SHOWN:,} more." if len(critical) > SHOWN else ""
        return (
            f"Expected the result to pass its audit, but {len(critical):,} of {of_all:,} critical checks "
            f"failed: {told}{more} Nothing was published, and readers have the earlier result: see "
            f"{self.docs / 'index.html'}, mend the input or report it, and run again."
        )


@dataclass(frozen=True)
class Mark:
    """The mark of a published result.

    Attributes:
      verdict: passed or warning.
      audited_at: when.
      check_count: how many checks there were.
      problems: check, severity, sentence, count and rows of each that does not hold.
    """

    verdict: str
    audited_at: datetime
    check_count: int
    problems: Sequence[Mapping[str, Any]]


def read_mark(snapshot: Path) -> Mark | None:
    """The mark of a published result.

    Args:
      snapshot: its folder.

    Returns:
      None where it was not audited, or its manifest cannot be read.
    """
    try:
        said = read_manifest(snapshot).about.get(MARK)
        if not isinstance(said, dict):
            return None
        at = datetime.fromisoformat(said["audited_at"])
        return Mark(str(said["verdict"]), at, int(said["check_count"]), list(said["problems"]))
    except (UserError, KeyError, TypeError, ValueError):
        return None


def printable(text: str) -> str:
    """Text of one line: what would move the cursor or break the line is a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
