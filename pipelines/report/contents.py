"""The tables of a report, in the reader's words."""

from __future__ import annotations

from typing import Any

from pipelines.report import background
from pipelines.report.comparison import BY_NAME, HEADLINE, Comparison
from pipelines.report.data import ReportData
from pipelines.report.facts import EDGES
from pipelines.report.series import ALL
from pipelines.report.sheets import Column, Sheet
from pipelines.report.words import Words

GROUP_KPIS = (
    "conversation_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "first_contact_resolution_rate",
    "avg_handle_seconds",
    "avg_csat",
    "rating_count",
)
CHANNEL_KPIS = (
    *GROUP_KPIS[:3],
    "p50_reply_seconds",
    "p90_reply_seconds",
    *GROUP_KPIS[3:5],
    "response_rate",
    "avg_csat",
    "rating_count",
)
GROUPS = {"team_id": "teams", "agent_id": "agents", "topic": "topics"}


def make_sheets(data: ReportData, words: Words) -> dict[str, Sheet]:
    """Every table by its name, in the order of the report."""
    sheets = (
        background.about(data, words),
        _headline(data, words),
        _unusual(data, words),
        _trends(data, words),
        *_distributions(data, words),
        _hours(data, words),
        _channels(data, words),
        *(_group(data, words, column) for column in GROUPS),
        _backlog(data, words),
        _waits(data, words),
        _scores(data, words),
        background.restated(data, words),
        background.audit(data, words),
        background.runs(data, words),
        background.dead_letters(data, words),
        background.definitions(data, words),
    )
    return {sheet.name: sheet for sheet in sheets}


def _kpi_columns(names: tuple[str, ...], words: Words) -> tuple[Column, ...]:
    return tuple(Column(name, words.label(BY_NAME[name].label), BY_NAME[name].unit) for name in names)


def _headline(data: ReportData, words: Words) -> Sheet:
    say, is_day = words.say, data.period.grain == "day"
    columns = [
        Column("name", say("Column"), "text"),
        Column("kpi", say("KPI"), "text"),
        Column("unit", say("Unit"), "text"),
        Column("value", say("Value"), "row"),
        Column("before", before_word(data, words), "row"),
    ]
    if is_day:
        columns += [
            Column("week_ago", say("A week ago"), "row"),
            Column("low", say("Normal from"), "row"),
            Column("high", say("Normal to"), "row"),
        ]
    order = {name: place for place, name in enumerate(HEADLINE)}
    chosen = sorted(data.compared, key=lambda one: order.get(one.kpi.name, len(order)))

    def row(one: Comparison) -> tuple[Any, ...]:
        values = (one.value, one.before, *((one.week_ago, one.low, one.high) if is_day else ()))
        return (one.kpi.name, words.label(one.kpi.label), say(one.kpi.unit), *values)

    units = tuple(one.kpi.unit for one in chosen)
    return Sheet("headline", say("All KPIs"), 1, tuple(columns), [row(one) for one in chosen], units)


def before_word(data: ReportData, words: Words) -> str:
    """What the period before is called."""
    return words.say(
        {"day": "The day before", "week": "The week before", "month": "The month before"}[data.period.grain]
    )


def _unusual(data: ReportData, words: Words) -> Sheet:
    say = words.say
    columns = (
        Column("day", say("Day"), "date"),
        Column("name", say("Column"), "text"),
        Column("kpi", say("KPI"), "text"),
        Column("value", say("Value"), "row"),
        Column("low", say("Usual from"), "row"),
        Column("high", say("Usual to"), "row"),
        Column("weeks", say("Weeks compared"), "count"),
    )
    rows = [(u.day, u.kpi.name, words.label(u.kpi.label), u.value, u.low, u.high, u.weeks) for u in data.unusual]
    return Sheet("unusual", say("Unusual days"), 2, columns, rows, tuple(u.kpi.unit for u in data.unusual))


def _trends(data: ReportData, words: Words) -> Sheet:
    names = tuple(BY_NAME)
    columns = (
        Column("day", words.say("Day"), "date"),
        Column("channel", words.say("Channel"), "text"),
        *_kpi_columns(names, words),
    )
    values = {(channel, name): data.trend(name, channel) for channel in (ALL, *data.channels) for name in names}
    rows = [
        (day, channel or words.say("all channels"), *(float(values[channel, name][place]) for name in names))
        for channel in (ALL, *data.channels)
        for place, day in enumerate(data.trend_days)
    ]
    return Sheet("trends", words.say("Trends"), 2, columns, rows)


def _distributions(data: ReportData, words: Words) -> list[Sheet]:
    titles = {"first_response_histogram": "First response time (FRT)", "reply_histogram": "Reply time"}
    columns = (
        Column("from_seconds", words.say("From"), "seconds"),
        Column("to_seconds", words.say("To below"), "seconds"),
        Column("count", words.say("Number"), "count"),
    )
    return [
        Sheet(
            name.removesuffix("_histogram"),
            words.say(titles[name]),
            2,
            columns,
            list(zip(EDGES, (*EDGES[1:], None), counts, strict=True)) if counts else [],
        )
        for name, counts in data.bars.items()
    ]


def _hours(data: ReportData, words: Words) -> Sheet:
    columns = (
        Column("weekday", words.say("Weekday"), "count"),
        Column("hour", words.say("Hour"), "count"),
        Column("name", words.say("Weekday"), "text"),
        Column("messages", words.say("Messages"), "number"),
        Column("waiting", words.say("Waiting"), "number"),
    )
    rows = [
        (row["weekday"], row["hour"], words.weekday(row["weekday"]), row["messages"], row["waiting"])
        for row in data.hours
    ]
    return Sheet("hours", words.say("By weekday and hour"), 2, columns, rows)


def _channels(data: ReportData, words: Words) -> Sheet:
    columns = (Column("channel", words.say("Channel"), "text"), *_kpi_columns(CHANNEL_KPIS, words))
    rows = []
    for channel in (*data.channels, ALL):
        now = data.now(channel)
        if now is not None:
            values = (float(now[name]) for name in CHANNEL_KPIS)
            rows.append((channel or words.say("all channels"), *values))
    return Sheet("channels", words.say("Channels"), 1, columns, rows)


def _group(data: ReportData, words: Words, column: str) -> Sheet:
    name = GROUPS[column]
    titles = {"teams": "Teams", "agents": "Agents", "topics": "Topics"}
    heads = {"teams": "Team", "agents": "Agent", "topics": "Topic"}
    columns = (Column(column, words.say(heads[name]), "text"), *_kpi_columns(GROUP_KPIS, words))
    rows = [
        (words.say("(none)") if row["name"] is None else row["name"], *(row[kpi] for kpi in GROUP_KPIS))
        for row in data.groups[column]
    ]
    return Sheet(name, words.say(titles[name]), 1, columns, rows, shown=background.SHOWN)


def _backlog(data: ReportData, words: Words) -> Sheet:
    names = ("backlog_count", "backlog_change", "waiting_count", "waiting_change")
    columns = (Column("channel", words.say("Channel"), "text"), *_kpi_columns(names, words))
    rows = []
    for channel in (*data.channels, ALL):
        now = data.now(channel)
        if now is not None:
            rows.append((channel or words.say("all channels"), *(float(now[name]) for name in names)))
    return Sheet("backlog", words.say("Backlog"), 1, columns, rows)


def _waits(data: ReportData, words: Words) -> Sheet:
    say = words.say
    columns = (
        Column("conversation_key", say("Conversation"), "text"),
        Column("account_id", say("Account"), "text"),
        Column("channel", say("Channel"), "text"),
        Column("agent_id", say("Agent"), "text"),
        Column("turn_started_at", say("Waited since"), "moment"),
        Column("outcome", say("Outcome"), "text"),
        Column("waited_seconds", say("Waited"), "seconds"),
    )
    rows = [
        (
            row["conversation_key"],
            row["account_id"],
            row["channel"],
            row["agent_id"],
            row["turn_started_at"],
            say("answered") if row["is_answered"] else say("still waiting"),
            row["waited_seconds"],
        )
        for row in data.waits
    ]
    return Sheet("longest_waits", say("The longest waits"), 1, columns, rows)


def _scores(data: ReportData, words: Words) -> Sheet:
    total = sum(row["ratings"] for row in data.scores)
    columns = (
        Column("score", words.say("Score"), "count"),
        Column("ratings", words.say("Ratings"), "count"),
        Column("share", words.say("Share"), "rate"),
    )
    rows = [(row["score"], row["ratings"], row["ratings"] / total) for row in data.scores] if total else []
    return Sheet("csat", words.say("CSAT"), 1, columns, rows)
