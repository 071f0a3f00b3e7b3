"""The tables of a report on where its numbers come from: the result, its runs, what was restated, definitions."""

from __future__ import annotations

from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from pipelines.report.comparison import BY_NAME
from pipelines.report.data import RESTATED_KPIS, ReportData
from pipelines.report.sheets import Column, Sheet
from pipelines.report.words import Words

SHOWN = 15
"""Rows of a long table that the page shows; the files have all of them."""


_VERDICTS = {"none": "not audited", "passed": "passed", "warning": "published with warnings"}


def chosen_accounts(data: ReportData, words: Words) -> list[str]:
    """The accounts that the report is about, as a reader knows them; nothing where it is about all."""
    return [name or words.say("(none)") for name in data.filters.accounts]


def about(data: ReportData, words: Words) -> Sheet:
    """What the report is about, and what it was made of."""
    say, run, period = words.say, data.run, data.period
    rows: list[tuple[str, Any, str]] = [
        ("first_day", period.first, "date"),
        ("last_day", period.last, "date"),
        ("timezone", period.zone, "text"),
        ("accounts", ", ".join(chosen_accounts(data, words)) or say("all"), "text"),
        ("channels", ", ".join(data.filters.channels) or say("all"), "text"),
        ("commit_id", run["commit_id"], "count"),
        ("committed_at", run["committed_at"], "moment"),
        ("as_of", run["as_of"], "moment"),
        ("audit", say(_VERDICTS["none" if data.audit is None else data.audit.verdict]), "text"),
        ("version", run["version"], "text"),
    ]
    columns = (Column("what", say("About"), "text"), Column("value", say("Value"), "row"))
    units = tuple(unit for *_, unit in rows)
    return Sheet("report", say("This report"), 1, columns, [row[:2] for row in rows], units)


def restated(data: ReportData, words: Words) -> Sheet:
    """Days that say something else now: what they said and say."""
    say, zone = words.say, ZoneInfo(data.period.zone)
    columns = [Column("day", say("Day"), "date"), Column("account_id", say("Account"), "text")]
    columns += [Column("channel", say("Channel"), "text"), Column("name", say("Column"), "text")]
    columns += [Column("kpi", say("KPI"), "text")]
    columns += [Column("before", say("It said"), "row"), Column("now", say("It says"), "row")]
    rows, units = [], []
    for row in data.restated:
        day = row["window_start"].astimezone(UTC).astimezone(zone).date()
        for name in RESTATED_KPIS:
            before, now = row[f"before_{name}"], row[name]
            if before != now:
                label = words.label(BY_NAME[name].label)
                rows.append((day, row["account_id"], row["channel"], name, label, before, now))
                units.append(BY_NAME[name].unit)
    return Sheet("restated", say("Restated since"), 4, tuple(columns), rows, tuple(units), shown=2 * SHOWN)


def runs(data: ReportData, words: Words) -> Sheet:
    """What the runs since the report before read, kept and dropped."""
    labels = {
        "commit_id": ("Commit", "count"),
        "committed_at": ("Made at", "moment"),
        "kind": ("Kind", "text"),
        "as_of": ("As of", "moment"),
        "rows_read_count": ("Rows read", "count"),
        "events_kept_count": ("Events kept", "count"),
        "dead_letter_count": ("Dead letters", "count"),
        "exact_duplicate_count": ("Exact duplicates", "count"),
        "late_event_count": ("Late events", "count"),
        "stray_event_count": ("Stray events", "count"),
    }
    columns = tuple(Column(name, words.say(label), unit) for name, (label, unit) in labels.items())
    return Sheet("runs", words.say("Runs"), 1, columns, [tuple(row[name] for name in labels) for row in data.runs])


def audit(data: ReportData, words: Words) -> Sheet:
    """What did not hold when the result was audited; the rows are told as the audit told them."""
    say = words.say
    columns = (
        Column("check", say("Check"), "text"),
        Column("severity", say("Severity"), "text"),
        Column("sentence", say("What should hold"), "text"),
        Column("count", say("Rows"), "count"),
        Column("rows", say("The first of them"), "text"),
    )
    problems = () if data.audit is None else data.audit.problems
    rows = [
        (p["check"], say(p["severity"]), p["sentence"], p["count"], "; ".join(map(str, p["rows"][:SHOWN])))
        for p in problems
    ]
    return Sheet("audit", say("Audit"), 1, columns, rows, shown=SHOWN)


def dead_letters(data: ReportData, words: Words) -> Sheet:
    """Why rows could not be used."""
    columns = (
        Column("stage", words.say("Stage"), "text"),
        Column("reason", words.say("Reason"), "text"),
        Column("rows", words.say("Rows"), "count"),
    )
    rows = [(row["stage"], row["reason"], row["rows"]) for row in data.dead_letters]
    return Sheet("dead_letters", words.say("Dead letters"), 2, columns, rows, shown=SHOWN)


def definitions(data: ReportData, words: Words) -> Sheet:
    """Every KPI's definition."""
    columns = (
        Column("name", words.say("Column"), "text"),
        Column("label", words.say("KPI"), "text"),
        Column("unit", words.say("Unit"), "text"),
        Column("sentence", words.say("What it says"), "text"),
        Column("numerator", words.say("Made of"), "text"),
        Column("denominator", words.say("Divided by or less"), "text"),
    )
    rows = [
        (
            row["name"],
            words.label(row["label"]),
            words.say(row["unit"]),
            words.sentence(row["sentence"]),
            row["numerator"],
            row["denominator"],
        )
        for row in data.definitions
    ]
    return Sheet("definitions", words.say("What each KPI means"), 1, columns, rows)
