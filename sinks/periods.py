"""Macros that answer for any period, from kpi_statistics: totals, breakdowns, rolling days, heat map, distribution.

Statistics are added up and KPIs made of the sums, by the definitions, so that every roll-up gives the right percentile.
A period is half-open, [from_at, to_at), and made of whole days and, at its edges, of whole hours.
"""

from __future__ import annotations

from sinks.sql import sql_text
from sinks.views import HISTOGRAMS, Macro, merged_value
from transforms.definitions import KPIS, Kpi

PERIOD = "from_at, to_at"
CHOICE = "accounts := NULL, channels := NULL"
"""Parameters that every macro of a period has."""

_BY_NAME = {kpi.name: kpi for kpi in KPIS}
_DURATIONS = tuple(name.removesuffix("_histogram") for name in HISTOGRAMS)
_EDGES = "[60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800]"
_PERIOD_SAID = (
    "from_at and to_at are moments, dates or text; without a zone of their own they are local times of the run. "
    "accounts and channels are lists of those wanted (null in the list is the null account); null: all."
)


def given(basis: str) -> str:
    """The CTE `given`: what the caller asks for, under names that no parameter has.

    Args:
      basis: SQL of the basis.
    """
    return (
        "given AS (SELECT instant_of(from_at) AS first_at, instant_of(to_at) AS end_at, "
        f"{basis} AS on_basis, CAST(accounts AS VARCHAR[]) AS of_accounts, "
        "CAST(channels AS VARCHAR[]) AS of_channels)"
    )


def asked_basis() -> str:
    """SQL of the parameter `basis`; another word than the two is an error that names them."""
    return (
        "CASE basis WHEN 'activity' THEN 'activity' WHEN 'opened' THEN 'opened' "
        "ELSE error('Expected the basis activity or opened, got ' || coalesce(CAST(basis AS VARCHAR), 'null')) END"
    )


def chosen(rows: str) -> str:
    """SQL that holds for rows of the accounts and channels asked for."""
    return (
        f"(of_accounts IS NULL OR coalesce(list_position(of_accounts, {rows}.account_id), 0) > 0) "
        f"AND (of_channels IS NULL OR coalesce(list_position(of_channels, {rows}.channel), 0) > 0)"
    )


def _parts() -> str:
    """CTEs that end in `parts`: the rows of kpi_statistics before to_at, each marked whether it is in the period.

    Whole days, and the hours of those days that the period cuts.
    """
    return (
        f"{given(asked_basis())}, "
        "cut AS (SELECT window_start AS cut_start, window_end AS cut_end FROM windows AS w, given "
        "WHERE w.grain = 'day' AND (w.window_start < first_at AND first_at < w.window_end "
        "OR w.window_start < end_at AND end_at < w.window_end)), "
        "parts AS (SELECT s.*, given.*, 'all' AS everything, s.window_start >= first_at AS is_within "
        f"FROM kpi_statistics AS s, given WHERE s.basis = on_basis AND {chosen('s')} AND s.grain = 'day' "
        "AND s.window_end <= end_at AND (s.window_end <= first_at OR s.window_start >= first_at) "
        "UNION ALL SELECT s.*, given.*, 'all', s.window_start >= first_at "
        "FROM kpi_statistics AS s JOIN cut ON s.window_start >= cut_start AND s.window_start < cut_end, given "
        f"WHERE s.basis = on_basis AND {chosen('s')} AND s.grain = 'hour' AND s.window_start < end_at)"
    )


def _of_period(kpi: Kpi) -> str:
    """SQL of a KPI over `parts`: running sums from everything before the end, all else from what is in the period."""
    if kpi.kind not in ("running", "change"):
        return merged_value(kpi, " FILTER (is_within)")
    value = merged_value(_BY_NAME[kpi.numerator]) if kpi.kind == "running" else merged_value(kpi, " FILTER (is_within)")
    return f"CASE WHEN min(on_basis) = 'activity' THEN {value} END"


def _ranks(name: str, keys: str, counts: str) -> str:
    """A CTE with the percentiles that are taken from a histogram, a row for each value of the keys.

    Args:
      name: of the histogram; the CTE is called after it.
      keys: columns, with commas between.
      counts: SQL of rows with the keys, bucket and count; a bucket may come several times.
    """
    values = ", ".join(
        f"bucket_seconds(min(bucket) FILTER (reached >= ceil({k.quantile} * total))) AS {k.name}"
        for k in KPIS
        if k.kind == "percentile" and k.numerator == name
    )
    return (
        f"{name}_ranks AS (SELECT {keys}, {values} FROM (SELECT *, "
        f"CAST(sum(count) OVER (PARTITION BY {keys} ORDER BY bucket) AS BIGINT) AS reached, "
        f"CAST(sum(count) OVER (PARTITION BY {keys}) AS BIGINT) AS total FROM ("
        f"SELECT {keys}, bucket, sum(count) AS count FROM ({counts}) GROUP BY ALL)) GROUP BY ALL)"
    )


def _percentiles(keys: str, source: str) -> str:
    """CTEs with all percentiles over the rows of a source."""
    return ", ".join(
        _ranks(name, keys, f"SELECT {keys}, unnest({name}, recursive := true) FROM {source}") for name in HISTOGRAMS
    )


def _columns(left_out: tuple[str, ...] = ()) -> str:
    """The select list of KPIs over `totals` and the merged histograms."""
    return ", ".join(
        f"{f'{k.numerator}_ranks' if k.kind == 'percentile' else 'totals'}.{k.name}"
        for k in KPIS
        if k.kind not in left_out
    )


def _joins(keys: tuple[str, ...]) -> str:
    return " ".join(
        f"LEFT JOIN {name}_ranks ON "
        + " AND ".join(f"totals.{key} IS NOT DISTINCT FROM {name}_ranks.{key}" for key in keys)
        for name in HISTOGRAMS
    )


def _kpis_of_period(name: str, row: str, keys: tuple[str, ...]) -> Macro:
    """The KPIs of a period, a row for each value of some columns."""
    grouped = keys or ("everything",)
    names = ", ".join(grouped)
    totals = ", ".join(f"{_of_period(k)} AS {k.name}" for k in KPIS if k.kind != "percentile")
    shown = "".join(f"totals.{key}, " for key in keys)
    return Macro(
        name,
        f"{row}: the KPIs of the period from from_at up to, but without, to_at; hours count where they begin in it; "
        f"backlog and waiting are those at its end. {_PERIOD_SAID} basis is activity or opened.",
        f"({PERIOD}, {CHOICE}, basis := 'activity') AS TABLE WITH {_parts()}, "
        f"{_percentiles(names, 'parts WHERE is_within')}, "
        f"totals AS (SELECT {names}, min(first_at) AS window_start, min(end_at) AS window_end, {totals} "
        f"FROM parts GROUP BY {names}) "
        f"SELECT {shown}totals.window_start, totals.window_end, {_columns()} "
        f"FROM totals {_joins(grouped)} {'ORDER BY ALL' if keys else ''}",
        "MACRO TABLE",
    )


def _kpis_rolling() -> Macro:
    """KPIs of the days that end with each day; buckets are added up by day first, then over days."""
    merged = ", ".join(
        f"{name}_days AS (SELECT place, bucket, sum(count) AS count FROM (SELECT place, "
        f"unnest({name}, recursive := true) FROM parts) GROUP BY ALL), "
        + _ranks(
            name,
            "last_place",
            f"SELECT last_place, bucket, count FROM spans JOIN {name}_days ON place BETWEEN first_place AND last_place",
        )
        for name in HISTOGRAMS
    )
    running = [k for k in KPIS if k.kind == "running"]
    totals = ", ".join(f"{merged_value(k)} AS {k.name}" for k in KPIS if k.kind not in ("percentile", "running"))
    sums = ", ".join(f"{merged_value(_BY_NAME[k.numerator])} AS {k.name}" for k in running)
    levels = ", ".join(
        f"CAST(sum(coalesce({k.name}, 0)) OVER (ORDER BY days.place) AS BIGINT) AS {k.name}" for k in running
    )
    sources = {"running": "levels"}
    shown = ", ".join(
        f"{f'{k.numerator}_ranks' if k.kind == 'percentile' else sources.get(k.kind, 'totals')}.{k.name}" for k in KPIS
    )
    return Macro(
        "kpis_rolling",
        "One row per complete day that begins in the period: the KPIs of the days that end with it, as many as "
        "window_days says (7, 28), or as many as there are (day_count); backlog and waiting are those at its end; "
        f"activity basis. {_PERIOD_SAID}",
        f"(window_days, {PERIOD}, {CHOICE}) AS TABLE WITH {given(repr('activity'))}, "
        "days AS (SELECT w.window_start, w.window_end, row_number() OVER (ORDER BY w.window_start) AS place "
        "FROM windows AS w WHERE w.grain = 'day' AND w.is_complete), "
        "spans AS (SELECT place AS last_place, greatest(place - window_days + 1, 1) AS first_place, window_end "
        "FROM days, given WHERE window_start >= first_at AND window_start < end_at), "
        "parts AS (SELECT s.*, place FROM kpi_statistics AS s JOIN days USING (window_start), given "
        f"WHERE s.basis = on_basis AND s.grain = 'day' AND {chosen('s')}), "
        f"{merged}, "
        f"levels AS (SELECT days.place, {levels} FROM days LEFT JOIN "
        f"(SELECT place, {sums} FROM parts GROUP BY place) AS moved ON days.place = moved.place), "
        f"totals AS (SELECT last_place, {totals} FROM spans LEFT JOIN parts "
        "ON place BETWEEN first_place AND last_place GROUP BY last_place) "
        "SELECT begins.window_start, spans.window_end, spans.last_place - spans.first_place + 1 AS day_count, "
        f"{shown} FROM spans JOIN totals USING (last_place) JOIN levels ON levels.place = spans.last_place "
        "JOIN days AS begins ON begins.place = spans.first_place "
        + " ".join(f"LEFT JOIN {name}_ranks ON {name}_ranks.last_place = spans.last_place" for name in HISTOGRAMS)
        + " ORDER BY spans.window_end",
        "MACRO TABLE",
    )


def _kpis_heat_map() -> Macro:
    """Hours are those of the windows themselves: at a repeated local hour there are two of them."""
    keys = ("weekday", "hour")
    totals = ", ".join(f"{merged_value(k)} AS {k.name}" for k in KPIS if k.kind not in ("percentile", "running"))
    return Macro(
        "kpis_heat_map",
        "One row per weekday (1 Monday to 7 Sunday) and hour (0 to 23) in the zone of the run, for the hours that "
        "begin in the period: the KPIs of all of them together, and how many there are (hour_count); activity basis. "
        f"{_PERIOD_SAID}",
        f"({PERIOD}, {CHOICE}) AS TABLE WITH {given(repr('activity'))}, "
        "hours AS (SELECT w.window_start, isodow(local_time(w.window_start)) AS weekday, "
        "hour(local_time(w.window_start)) AS hour FROM windows AS w, given "
        "WHERE w.grain = 'hour' AND w.window_start >= first_at AND w.window_start < end_at), "
        "parts AS (SELECT s.*, weekday, hour FROM kpi_statistics AS s JOIN hours USING (window_start), given "
        f"WHERE s.basis = on_basis AND s.grain = 'hour' AND {chosen('s')}), "
        f"{_percentiles(', '.join(keys), 'parts')}, "
        "cells AS (SELECT weekday, hour, count(*) AS hour_count FROM hours GROUP BY ALL), "
        f"totals AS (SELECT cells.weekday, cells.hour, min(cells.hour_count) AS hour_count, {totals} "
        "FROM cells LEFT JOIN parts ON cells.weekday = parts.weekday AND cells.hour = parts.hour GROUP BY ALL) "
        f"SELECT totals.weekday, totals.hour, totals.hour_count, {_columns(('running',))} "
        f"FROM totals {_joins(keys)} ORDER BY totals.weekday, totals.hour",
        "MACRO TABLE",
    )


def _distribution() -> Macro:
    """Buckets are narrow: each goes whole into the range that its middle lies in."""
    words = ", ".join(_DURATIONS)
    which = " ".join(f"WHEN '{duration}' THEN {duration}_histogram" for duration in _DURATIONS)
    return Macro(
        "duration_distribution",
        f"One row per range of durations: how many there were in the period, their share, and the share of all up to "
        f"its end. duration is one of {words}. edges are the ends of the ranges in seconds, ascending; a duration "
        f"within 1 % of an edge may count on its other side. {_PERIOD_SAID} basis is activity or opened.",
        f"(duration, {PERIOD}, {CHOICE}, edges := {_EDGES}, basis := 'activity') AS TABLE WITH {_parts()}, "
        "ends AS (SELECT list_prepend(0.0::DOUBLE, CAST(edges AS DOUBLE[])) AS starts), "
        "ranges AS (SELECT unnest(range(1, len(starts) + 1)) AS place, unnest(starts) AS from_seconds, "
        "unnest(list_append(starts[2:], NULL)) AS to_seconds FROM ends), "
        "buckets AS (SELECT bucket_seconds(bucket) AS seconds, sum(count) AS count FROM (SELECT unnest("
        f"CASE duration {which} ELSE error('Expected a duration out of {words}; got ' || coalesce(duration, 'null')) "
        "END, recursive := true) FROM parts WHERE is_within) GROUP BY bucket), "
        "counts AS (SELECT place, ranges.from_seconds, ranges.to_seconds, CAST(coalesce(sum(count), 0) AS BIGINT) AS n "
        "FROM ranges LEFT JOIN buckets ON seconds >= from_seconds AND (to_seconds IS NULL OR seconds < to_seconds) "
        "GROUP BY ALL) "
        "SELECT from_seconds, to_seconds, n AS count, n / nullif(sum(n) OVER (), 0) AS share, "
        "sum(n) OVER (ORDER BY place) / nullif(sum(n) OVER (), 0) AS share_up_to FROM counts ORDER BY place",
        "MACRO TABLE",
    )


def _beside_last_week() -> Macro:
    """Both days by channel and together, KPI by KPI."""
    entries = ", ".join(
        f"{{'place': {place}, 'name': '{k.name}', 'label': {sql_text(k.label)}, 'unit': '{k.unit}', "
        f"'value': CAST({k.name} AS DOUBLE)}}"
        for place, k in enumerate(KPIS)
    )

    def rows(start: str, end: str) -> str:
        choice = "accounts := accounts, channels := channels"
        return (
            f"SELECT channel, unnest([{entries}], recursive := true) FROM ("
            f"SELECT * FROM kpis_by_channel({start}, {end}, {choice}) UNION ALL BY NAME "
            f"SELECT NULL AS channel, * FROM kpis_between({start}, {end}, {choice}))"
        )

    return Macro(
        "kpis_beside_last_week",
        "One row per channel (null: all that are asked for) and KPI: its value on a local date, a week before, and the "
        "difference; activity basis. accounts and channels are lists of those wanted; null: all.",
        f"(day, {CHOICE}) AS TABLE WITH now AS ({rows('CAST(day AS DATE)', 'CAST(day AS DATE) + 1')}), "
        f"before AS ({rows('CAST(day AS DATE) - 7', 'CAST(day AS DATE) - 6')}) "
        "SELECT now.channel, now.name, now.label, now.unit, now.value, before.value AS value_week_before, "
        "now.value - before.value AS difference FROM now LEFT JOIN before "
        "ON now.channel IS NOT DISTINCT FROM before.channel AND now.place = before.place "
        "ORDER BY now.channel IS NULL, now.channel, now.place",
        "MACRO TABLE",
    )


PERIOD_MACROS = (
    _kpis_of_period("kpis_between", "One row, all accounts and channels that are asked for together", ()),
    _kpis_of_period("kpis_by_channel", "One row per channel, accounts together", ("channel",)),
    _kpis_of_period("kpis_by_account", "One row per account, channels together", ("account_id",)),
    _kpis_of_period("kpis_by_account_and_channel", "One row per account and channel", ("account_id", "channel")),
    _kpis_rolling(),
    _beside_last_week(),
    _kpis_heat_map(),
    _distribution(),
)
