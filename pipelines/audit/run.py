"""The audit: measured, judged, kept, and what a run does with its verdict."""

from __future__ import annotations

import html
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.audit.expectations import Expected, Judged, Suite, judge
from pipelines.audit.measures import (
    AGREEMENT,
    agreement_frame,
    broken_rows,
    findings_of,
    order_frame,
    readable_tables,
    table_frame,
)
from pipelines.audit.pages import write_first_page
from pipelines.audit.results import MARK, AuditFailed, AuditResult, Outcome
from pipelines.audit.rules import RULES
from pipelines.audit.volume import VOLUME, volume_frame
from sinks.check import Finding
from sinks.parquet import fill_missing, writing
from sinks.readings import Reading
from transforms.tables import TABLES, Table

if TYPE_CHECKING:
    import pandas as pd

    from sinks.publish import Snapshot

FOLDER = "audit"
"""Folder of the output for the Data Docs of the last KEPT audits, in a folder for each commit."""

KEPT = 10
RESULT = "audit.json"
_MAKING, _ABANDONED_SECONDS = ".making-", 86_400
_NAME = re.compile(r"\d{6,}(-failed)?")

SENTENCES = {
    "manifest": "The manifest says what it said when it was written.",
    "files": "Every file has its size and checksum.",
    "unknown files": "There is no file that the manifest does not name.",
    "columns": "Both copies have the tables, columns and types of this version.",
    "rows": "Each table has as many rows in Parquet as in DuckDB.",
    "same rows": "DuckDB has the rows of Parquet.",
    "keys": "No two rows of a table have the same key.",
    "turns": "Each conversation has the turns and messages that it says.",
    "conservation": "Rows read = events kept + dead letters + exact duplicates + late events.",
    "history": "Each row of kpis was made by a known commit and has all its revisions.",
    "statistics": "Sums and histograms of a row fit each other.",
    "bases": "Over all time both bases agree, in each account.",
    "grains": "Hours add up to days, and days to weeks and months.",
    "kpis": "Every value of kpis follows from kpi_statistics.",
    "facts": "The statistics of a day are those of its conversations and turns.",
}
_VOLUME = (
    Expected("not below usual", "No less than what is usual.", "warning", pair=("value", "low")),
    Expected("not above usual", "No more than what is usual.", "warning", pair=("high", "value")),
)


def audit_commit(snapshot: Snapshot, output: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Audits a result in the making.

    Args:
      snapshot: written, but not published.
      output: the output folder; the Data Docs go into its folder FOLDER.

    Returns:
      What the manifest is to say beside its files, and sentences for the user.

    Raises:
      AuditFailed: a critical check failed; it must not be published.
    """
    with writing(output):
        fill_missing(snapshot.path)
    result = audit_result(snapshot.path, snapshot.commit_id, output / FOLDER)
    if result.verdict == "failed":
        raise AuditFailed(result.refusal())
    return {MARK: result.mark()}, result.notes()


def audit_result(root: Path, commit_id: int, folder: Path) -> AuditResult:
    """Audits a result and keeps its Data Docs.

    Args:
      root: folder of a snapshot, published or not.
      commit_id: its number.
      folder: for the Data Docs: a folder for each commit, the oldest ones removed.

    Returns:
      What came of every check.

    Raises:
      UserError: the Data Docs cannot be written.
    """
    findings = findings_of(root)
    frames: dict[str, pd.DataFrame] = {AGREEMENT: agreement_frame(findings)}
    suites = []
    with writing(folder), Reading(root, None, {}) as reading:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        usable = readable_tables(reading)
        for table in usable:
            frames[table.name] = table_frame(reading, table)
            suites.append(Suite(table.name, table.grain, list(_of_table(table))))
        if len(usable) == len(TABLES) and not any(copy == "duckdb" for copy, _ in reading.unusable):
            # (Where something is unusable, the agreement says so.)
            frames["order"] = order_frame(reading)
            rules = (Expected(rule.column, rule.sentence, rule=rule) for rule in RULES["order"])
            suites.append(Suite("order", "Times and percentiles in their order; running sums.", list(rules)))
            frames[VOLUME] = volume_frame(root)
            suites.append(Suite(VOLUME, "How much there is, against what there was before.", _VOLUME))
        suites.append(Suite(AGREEMENT, "Nothing is lost, and the parts agree.", list(_of_findings(findings))))
        place = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder))
        try:
            judged = judge(suites, frames, place)
            outcomes = [o for suite in suites for o in _outcomes(suite.name, judged[suite.name], frames, reading)]
            return _kept(AuditResult(commit_id, datetime.now(UTC), outcomes, place / "docs"), folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Removes what audits that were killed left; another one may be going on."""
    for path in folder.glob(f"{_MAKING}*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _of_findings(findings: list[Finding]) -> Iterator[Expected]:
    # What could not be asked comes last: something else is the reason.
    for finding in sorted(findings, key=lambda finding: finding.state == "not run"):
        yield Expected(finding.check, SENTENCES.get(finding.check, ""), column=finding.check)


def _of_table(table: Table) -> Iterator[Expected]:
    names = tuple(column.name for column in table.columns)
    yield Expected("schema", f"{table.name} has its columns in their order.", columns=names)
    for rule in RULES[table.name]:
        yield Expected(f"{rule.column} ({rule.kind})", rule.sentence, rule=rule)


def _outcomes(suite: str, judged: list[Judged], frames: dict[str, pd.DataFrame], reading: Reading) -> Iterator[Outcome]:
    """What came of a suite, with the rows that break it."""
    for one in judged:
        expected = one.expected
        count: int | None = None
        rows: tuple[str, ...] = ()
        if one.is_met:
            count = 0
        elif expected.rule is not None:
            count, rows = broken_rows(reading, expected.rule)
        elif expected.column is not None:
            rows = (html.unescape(str(frames[suite][expected.column].iloc[0])),)
        elif expected.pair is not None:
            broken = frames[suite].iloc[list(one.places)]
            count, rows = len(broken), tuple(map(_measured, broken.to_dict("records")))
        yield Outcome(f"{suite}: {expected.name}", expected.severity, expected.sentence, one.is_met, count, rows)


def _measured(row: dict[str, Any]) -> str:
    low, high = (f"{row[name]:,.6g}" for name in ("low", "high"))
    usual = f"at least {low}" if high == "nan" else f"at most {high}" if low == "nan" else f"{low} to {high}"
    return f"{html.unescape(row['what'])}: {row['value']:,.6g}, usual is {usual}"


def _kept(result: AuditResult, folder: Path) -> AuditResult:
    """Puts the Data Docs of an audit in their place, with the result as JSON, and removes the oldest ones."""
    failed = "-failed" if result.verdict == "failed" else ""
    place = folder / f"{result.commit_id:06d}{failed}"
    write_first_page(result)
    (result.docs / RESULT).write_text(json.dumps(result.mark(), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(result.docs, place)
    kept = sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=lambda path: path.stat().st_mtime)
    for old in kept[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return AuditResult(result.commit_id, result.audited_at, result.outcomes, place)
