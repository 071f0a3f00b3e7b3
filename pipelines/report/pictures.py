"""Which charts a report has, and what each says to those who do not see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.report import charts
from pipelines.report.comparison import BY_NAME, by_day, dates_index, usual_ranges
from pipelines.report.data import ReportData
from pipelines.report.facts import EDGES
from pipelines.report.series import ALL
from pipelines.report.words import Words

TRENDS = (
    "conversation_count",
    "p50_first_response_seconds",
    "p90_first_response_seconds",
    "p50_reply_seconds",
    "first_contact_resolution_rate",
    "response_rate",
    "avg_handle_seconds",
    "avg_csat",
)
"""KPIs with a trend of their own, all channels together."""

CHANNEL_TRENDS = ("conversation_count", "p50_first_response_seconds", "p50_reply_seconds", "response_rate")
"""KPIs with a trend for each channel."""

MOST_CHANNELS = 10
"""Channels with a line of their own: the busiest. The files have all of them."""


@dataclass(frozen=True)
class Picture:
    """A chart, with what stands above it and below its title."""

    title: str
    svg: str
    note: str = ""


def make_pictures(data: ReportData, words: Words) -> dict[str, list[Picture]]:
    """The charts of each section: trends, channel_trends, distributions, hours, backlog, csat."""
    return {
        "trends": [_trend(data, words, name) for name in TRENDS if _is_known(data, name)],
        "channel_trends": [_panels(data, words, name) for name in CHANNEL_TRENDS if _is_known(data, name)],
        "distributions": [
            picture
            for name, kpi in (("first_response_histogram", "first_response"), ("reply_histogram", "reply"))
            if (picture := _distribution(data, words, name, kpi)) is not None
        ],
        "hours": _heat(data, words),
        "backlog": [_backlog(data, words)] if _is_known(data, "backlog_count") else [],
        "csat": [_scores(data, words)] if any(row["ratings"] for row in data.scores) else [],
    }


def _is_known(data: ReportData, name: str) -> bool:
    return not bool(np.isnan(data.trend(name)).all())


def _said(data: ReportData, words: Words, name: str, channel: str = ALL) -> str:
    """First, last, least and greatest value of a trend, in words."""
    unit, values = BY_NAME[name].unit, data.trend(name, channel)
    known = values[~np.isnan(values)]
    if not len(known):
        return words.say("no value")
    return words.say(
        "{least} at least, {most} at most, {last} on the last day",
        least=words.value(float(known.min()), unit),
        most=words.value(float(known.max()), unit),
        last=words.value(float(values[-1]), unit),
    )


def _trend(data: ReportData, words: Words, name: str) -> Picture:
    kpi, days = BY_NAME[name], by_day(data.series, data.period.zone)
    usual = usual_ranges(days, kpi).reindex(dates_index(data.trend_days))
    limits = usual["low"].to_numpy(float), usual["high"].to_numpy(float)
    unusual = _unusual_places(data, name)
    title = words.label(kpi.label)
    svg = charts.trend(
        data.trend_days,
        data.trend(name),
        limits,
        unusual,
        kpi.unit,
        lambda value: words.axis(value, kpi.unit),
        words.short_date,
        f"{title}: {_said(data, words, name)}",
    )
    return Picture(title, svg)


def _unusual_places(data: ReportData, name: str) -> np.ndarray:
    marked = {one.day for one in data.unusual_in_trend if one.kpi.name == name}
    return np.array([day in marked for day in data.trend_days])


def _panels(data: ReportData, words: Words, name: str) -> Picture:
    kpi = BY_NAME[name]
    channels = {channel: data.trend(name, channel) for channel in data.channels[:MOST_CHANNELS]}
    title = words.say("{kpi} by channel", kpi=words.label(kpi.label))
    parts = "; ".join(f"{channel}: {_said(data, words, name, channel)}" for channel in channels)
    svg = charts.panels(
        data.trend_days,
        channels,
        kpi.unit,
        lambda value: words.axis(value, kpi.unit),
        words.short_date,
        f"{title}. {parts}",
    )
    return Picture(title, svg)


def _distribution(data: ReportData, words: Words, histogram: str, kpi: str) -> Picture | None:
    counts = data.bars[histogram]
    now = data.now(ALL)
    if not counts or now is None:
        return None
    title = words.label(BY_NAME[f"avg_{kpi}_seconds"].label.removesuffix(", mean"))
    quantiles = {f"p{q}": float(now[f"p{q}_{kpi}_seconds"]) for q in (50, 90, 95)}
    known = {name: value for name, value in quantiles.items() if not np.isnan(value)}
    lines = {name: _place(value) for name, value in known.items()}
    labels = [words.axis(edge, "seconds") if place % 2 == 1 else "" for place, edge in enumerate(EDGES)]
    said = ", ".join(f"{name} {words.duration(value)}" for name, value in known.items())
    alternative = f"{title}: {words.value(sum(counts), 'count')}; {said}"
    svg = charts.bars(counts, labels, lines, lambda value: words.axis(value, "count"), alternative)
    return Picture(title, svg, said)


def _place(seconds: float) -> float:
    """Where a value lies among the bars of EDGES: by its logarithm within its bar."""
    edges = np.log([max(edge, 1) for edge in (*EDGES, 2 * EDGES[-1])])
    return float(np.interp(np.log(max(seconds, 1)), edges, np.arange(len(edges))))


def _heat(data: ReportData, words: Words) -> list[Picture]:
    titles = {
        "messages": "Customer messages in an hour",
        "waiting": "Customers waiting at the end of an hour",
    }
    pictures = []
    for column, title in titles.items():
        grid = np.full((7, 24), np.nan)
        for row in data.hours:
            grid[row["weekday"] - 1, row["hour"]] = row[column]
        if np.isnan(grid).all():
            continue
        day, hour = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
        said = words.say(
            "most on {day} at {hour}: {value}",
            day=words.weekday(int(day) + 1),
            hour=f"{hour:02}:00",
            value=words.value(float(grid[day, hour]), "number"),
        )
        weekdays = [words.weekday(number, "abbreviated") for number in range(1, 8)]
        head = words.say(title)
        svg = charts.heat(grid, weekdays, lambda value: words.axis(value, "count"), f"{head}: {said}")
        pictures.append(Picture(head, svg))
    return pictures


def _backlog(data: ReportData, words: Words) -> Picture:
    names = ("backlog_count", "waiting_count")
    labels = [words.label(BY_NAME[name].label) for name in names]
    said = "; ".join(f"{label}: {_said(data, words, name)}" for label, name in zip(labels, names, strict=True))
    lines = {label: data.trend(name) for label, name in zip(labels, names, strict=True)}
    svg = charts.two_lines(data.trend_days, lines, lambda v: words.axis(v, "count"), words.short_date, said)
    return Picture(" · ".join(labels), svg)


def _scores(data: ReportData, words: Words) -> Picture:
    counts = [int(row["ratings"]) for row in data.scores]
    title = words.say("Ratings by score")
    said = ", ".join(f"{row['score']}: {words.value(row['ratings'], 'count')}" for row in data.scores)
    svg = charts.columns(
        counts, [str(row["score"]) for row in data.scores], lambda v: words.axis(v, "count"), f"{title}: {said}"
    )
    return Picture(title, svg)
