"""Sentences of a report, and the short text for mail or chat."""

from __future__ import annotations

from pipelines.report.background import chosen_accounts
from pipelines.report.comparison import HEADLINE, Comparison, Unusual, is_settled
from pipelines.report.data import ReportData
from pipelines.report.words import Words

IN_TEXT = (
    "conversation_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "p50_reply_seconds",
    "first_contact_resolution_rate",
    "response_rate",
    "backlog_count",
    "avg_csat",
)
"""KPIs of the short text."""

MOST_UNUSUAL = 8
"""Unusual days that the short text names."""


def period_words(data: ReportData, words: Words) -> str:
    """The period as a reader says it."""
    period = data.period
    if period.grain == "day":
        return words.long_date(period.first)
    return words.say("{first} to {last}", first=words.long_date(period.first), last=words.long_date(period.last))


def unusual_sentence(one: Unusual, words: Words) -> str:
    """What was unusual on a day, and against what."""
    text = (
        "{day}: {kpi} {value}, above what is usual on this weekday ({range}, from the {weeks} weeks before)."
        if one.is_high
        else "{day}: {kpi} {value}, below what is usual on this weekday ({range}, from the {weeks} weeks before)."
    )
    return words.say(
        text,
        day=words.long_date(one.day),
        kpi=words.label(one.kpi.label),
        value=words.value(one.value, one.kpi.unit),
        range=words.range(one.low, one.high, one.kpi.unit),
        weeks=one.weeks,
    )


def notices(data: ReportData, words: Words) -> list[str]:
    """What a reader has to know before the numbers: no data, or not all of it yet."""
    found = []
    if data.known is None:
        found.append(words.say("There is no data: no event has been read yet."))
    elif not data.fell:
        first, last = (words.value(day, "date") for day in data.known)
        found.append(
            words.say(
                "There is no data for this period: nothing happened in it, or it was not read. The result has data "
                "from {first} to {last}.",
                first=first,
                last=last,
            )
        )
    if data.known is not None and not data.is_complete:
        found.append(
            words.say(
                "This period is not complete: the data reaches to {as_of}.",
                as_of=words.value(data.run["as_of"], "moment"),
            )
        )
    if data.audit is not None and data.audit.verdict != "passed":
        found.append(audit_sentence(data, words))
    return found


def audit_sentence(data: ReportData, words: Words) -> str:
    """What came of the audit before the result was published."""
    if data.audit is None:
        return words.say("No audit of this result is on record.")
    checks = words.value(data.audit.check_count, "count")
    at = words.value(data.audit.audited_at, "moment")
    if data.audit.verdict == "passed":
        return words.say("Audit of {at}: all {checks} checks passed.", at=at, checks=checks)
    return words.say(
        "Audit of {at}: published with a warning, for {problems} of {checks} checks do not hold: {names}.",
        at=at,
        checks=checks,
        problems=words.value(len(data.audit.problems), "count"),
        names=", ".join(str(problem["check"]) for problem in data.audit.problems[:MOST_UNUSUAL]),
    )


def headline(data: ReportData) -> list[Comparison]:
    """The KPIs that a report begins with, in their order."""
    by_name = {one.kpi.name: one for one in data.compared}
    return [by_name[name] for name in HEADLINE]


def changes(one: Comparison, data: ReportData, words: Words) -> list[str]:
    """A KPI against what was before, as phrases; those that cannot be said are left out."""
    unit, found = one.kpi.unit, []
    on = {"day": "{change} on the day before", "week": "{change} on the week before"}
    before = words.change(one.value, one.before, unit)
    if any(letter.isdigit() for letter in before):
        found.append(words.say(on.get(data.period.grain, "{change} on the month before"), change=before))
    week_ago = words.change(one.value, one.week_ago, unit)
    if any(letter.isdigit() for letter in week_ago):
        found.append(words.say("{change} on a week ago", change=week_ago))
    return found


def restated_sentence(data: ReportData, words: Words) -> str:
    """How many windows say something else than in the report before."""
    if not data.restated:
        return words.say("No day that was complete in the report before says anything else now.")
    return words.say(
        "{windows} windows (day, account and channel) that were complete in the report before say something else now.",
        windows=words.value(len(data.restated), "count"),
    )


def short_text(data: ReportData, words: Words, page: str) -> str:
    """The report in a few lines of plain text.

    Args:
      data: what it says.
      words: the reader's language.
      page: name of the HTML file.
    """
    lines = [words.say("Customer care report"), f"{period_words(data, words)} ({data.period.zone})"]
    chosen = [*chosen_accounts(data, words), *data.filters.channels]
    if chosen:
        lines.append(words.say("Only: {names}", names=", ".join(chosen)))
    lines += ["", *notices(data, words)]
    if data.fell:
        by_name = {one.kpi.name: one for one in data.compared}
        for name in IN_TEXT:
            one = by_name[name]
            settled = is_settled(name, data.period.end_at, data.run["as_of"])
            said = ", ".join([*changes(one, data, words), *([] if settled else [words.say("still settling")])])
            value = words.value(one.value, one.kpi.unit)
            lines.append(f"{words.label(one.kpi.label)}: {value}{f' ({said})' if said else ''}")
        lines += ["", *(unusual_sentence(one, words) for one in data.unusual[:MOST_UNUSUAL])]
        if not data.unusual:
            lines.append(words.say("Nothing was unusual."))
        if len(data.unusual) > MOST_UNUSUAL:
            more = words.value(len(data.unusual) - MOST_UNUSUAL, "count")
            lines.append(words.say("And {more} more, in the report.", more=more))
    lines.append(restated_sentence(data, words))
    if data.audit is not None and data.audit.verdict == "passed":
        # (Warnings stand above.)
        lines.append(audit_sentence(data, words))
    lines += ["", words.say("The whole report: {page}", page=page)]
    # A name with a line break in it must not make a line of its own.
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines) + "\n"
