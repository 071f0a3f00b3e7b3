"""`care-kpis check`: is a result whole, and do its parts agree?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sinks.agreement import (
    Verdict,
    check_columns,
    check_conservation,
    check_history,
    check_keys,
    check_rows,
    check_turns,
    compare_copies,
)
from sinks.arithmetic import check_bases, check_grains, check_kpis, check_statistics
from sinks.manifest import MANIFEST, Manifest, find_damage, list_files, read_manifest
from sinks.output_folder import CURRENT, LINKS, WAREHOUSE, current_snapshot
from sinks.readings import UNREADABLE, Reading, first_line
from sinks.recount import check_facts
from transforms.errors import UserError
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_CHANGES,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TURNS,
    Table,
)

_SHOWN = 3
"""So many problems of one check are spelled out."""


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Attributes:
      check: its name.
      state: ok, failed, or not run (all or part of it, since something that it needs is damaged).
      found: what there is, what is wrong, or why it was not run.
    """

    check: str
    state: Literal["ok", "failed", "not run"]
    found: str


@dataclass(frozen=True)
class _Check:
    """A check of the contents: its name, the tables that it needs from either copy, and the question."""

    name: str
    tables: tuple[Table, ...]
    ask: Callable[[Reading], Verdict]


_CHECKS = (
    _Check("columns", (), check_columns),
    _Check("same rows", (), compare_copies),
    _Check("keys", (), check_keys),
    _Check("turns", (CONVERSATIONS, TURNS), check_turns),
    _Check("conservation", (RUNS, DEAD_LETTERS, LATE_EVENTS, CONVERSATIONS, TURNS), check_conservation),
    _Check("history", (RUNS, KPI_TABLE, KPI_CHANGES), check_history),
    _Check("statistics", (KPI_STATISTICS,), check_statistics),
    _Check("bases", (KPI_STATISTICS,), check_bases),
    _Check("grains", (KPI_STATISTICS,), check_grains),
    _Check("kpis", (KPI_TABLE, KPI_STATISTICS, RUNS), check_kpis),
    _Check("facts", (CONVERSATIONS, TURNS, KPI_STATISTICS, RUNS), check_facts),
)

_MENDED_BY_REBUILD = ("links", "manifest", "files", "unknown files", "columns", "rows", "same rows")
"""Checks whose failure `care-kpis rebuild` may put right."""


def check_result(output: Path) -> list[Finding]:
    """Checks the result that an output folder shows; reads only.

    Args:
      output: the output folder.

    Returns:
      One finding a check, always in the same order.

    Raises:
      UserError: there is no result, or another one took its place meanwhile.
    """
    if not os.path.lexists(output / CURRENT):
        raise UserError(f"Expected the result of a run in {output}, but there is none: name its --output folder.")
    snapshot = current_snapshot(output)
    if snapshot is None:
        gone = f"{output / CURRENT} leads to {os.readlink(output / CURRENT)}, which is not there"
        return [Finding("links", "failed", gone)]
    findings = [_check_links(output), *check_snapshot(snapshot)]
    if current_snapshot(output) != snapshot:
        raise UserError(f"Expected {output} to stay as it is meanwhile, but a run replaced the result: check it again.")
    return findings


def advice(findings: Sequence[Finding], output: Path) -> str | None:
    """What to do about findings; None where all is well."""
    failed = [finding.check for finding in findings if finding.state == "failed"]
    if any(name in _MENDED_BY_REBUILD for name in failed):
        return f"Next: care-kpis rebuild {shlex.quote(str(output))} makes anew what can be made from what is whole."
    if failed or any(finding.state != "ok" for finding in findings):
        return (
            "The files are as they were published: what is wrong was so from the start. Next: run care-kpis batch over "
            "all inputs again."
        )
    return None


def check_snapshot(snapshot: Path) -> list[Finding]:
    """Checks one published result, or one in the making that has its manifest.

    Args:
      snapshot: its folder.
    """
    manifest, found = _read_manifest(snapshot)
    damage = {} if manifest is None else find_damage(snapshot, manifest.files)
    findings = [found, _check_files(manifest, damage), _check_unknown_files(snapshot, manifest)]
    with Reading(snapshot, manifest, damage) as reading:
        checks = (_CHECKS[0], _Check("rows", (), lambda of: check_rows(of, manifest)), *_CHECKS[1:])
        return [*findings, *(_run(check, reading) for check in checks)]


def _run(check: _Check, reading: Reading) -> Finding:
    """Asks one question; what cannot be read is an answer too."""
    missing = [why for spec in check.tables if (why := reading.why_not(spec)) is not None]
    if missing:
        return Finding(check.name, "not run", _listed(missing))
    try:
        verdict = check.ask(reading)
    except UNREADABLE as error:
        return Finding(check.name, "failed", f"the tables cannot be read: {first_line(error)}")
    if verdict.problems:
        return Finding(check.name, "failed", _listed(verdict.problems))
    if verdict.left_out:
        return Finding(check.name, "not run", _listed(verdict.left_out))
    return Finding(check.name, "ok", verdict.found)


def _check_links(output: Path) -> Finding:
    """Every name in the output folder leads to the current snapshot, and nothing hides it."""
    problems = [
        f"{output / name} does not lead to {CURRENT}/{name}"
        for name in LINKS
        if not (output / name).is_symlink() or os.readlink(output / name) != f"{CURRENT}/{name}"
    ]
    log = output / f"{WAREHOUSE}.wal"
    if os.path.lexists(log):
        problems.append(f"{log} holds changes that somebody made to {WAREHOUSE}")
    if problems:
        return Finding("links", "failed", _listed(problems))
    return Finding("links", "ok", f"{len(LINKS)} names lead to {os.readlink(output / CURRENT)}")


def _read_manifest(snapshot: Path) -> tuple[Manifest | None, Finding]:
    try:
        manifest = read_manifest(snapshot)
    except UserError as error:
        return None, Finding("manifest", "failed", str(error))
    return manifest, Finding("manifest", "ok", f"commit {manifest.commit_id:,}, {len(manifest.files):,} files")


def _check_files(manifest: Manifest | None, damage: dict[str, str]) -> Finding:
    if manifest is None:
        return Finding("files", "not run", "there is no manifest to tell what they should be")
    if damage:
        return Finding("files", "failed", _listed([f"{path}: {words}" for path, words in damage.items()]))
    size = sum(entry.bytes for entry in manifest.files.values())
    return Finding("files", "ok", f"{len(manifest.files):,} files, {size / 1e6:,.1f} MB, as they were published")


def _check_unknown_files(snapshot: Path, manifest: Manifest | None) -> Finding:
    if manifest is None:
        return Finding("unknown files", "not run", "there is no manifest to tell which files belong here")
    unknown = sorted(set(list_files(snapshot)) - manifest.files.keys() - {MANIFEST})
    if unknown:
        return Finding("unknown files", "failed", _listed([f"{path} is not in the manifest" for path in unknown]))
    return Finding("unknown files", "ok", "none")


def _listed(words: Sequence[str]) -> str:
    """Some of many, and how many more."""
    more = f"; and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more
