"""What a reader of the warehouse asks for at once: views, made from the definitions of the KPIs.

No KPI is spelled here a second time: each value is built from its kind, numerator and denominator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.schema import TIMESTAMP, Column
from transforms.tables import (
    COMMIT_COLUMNS,
    CONVERSATIONS,
    COUNT,
    KPI_TABLE,
    MILLIONTHS,
    SECONDS,
    TEXT,
    TURNS,
    WINDOW,
    Table,
)

KPI_VALUES = "kpi_values"
"""Table of the warehouse that holds `kpis` as stored; `kpis` itself is a view that adds the running sums."""

ROLLING_DAYS = 28

_STARTS = {column.name: column for column in WINDOW}
_IS_COMPLETE = KPI_TABLE.columns[len(WINDOW)]
_KPI_COLUMNS = tuple(Column(k.name, COUNT if k.unit == "count" else SECONDS, k.sentence) for k in KPIS)
_STATISTIC_KINDS = {statistic.name: statistic.kind for statistic in STATISTICS}
HISTOGRAMS = tuple(statistic.name for statistic in STATISTICS if statistic.kind == "histogram")
"""The statistics from which percentiles are taken."""

_AS_OF = "(SELECT as_of FROM runs ORDER BY commit_id DESC LIMIT 1)"

WINDOWS = Table(
    "windows",
    "One row per window from the first of its grain in which anything fell to the one of as_of, none left out.",
    ("grain", "window_start"),
    (_STARTS["grain"], _STARTS["window_start"], _STARTS["window_end"], _IS_COMPLETE),
)


@dataclass(frozen=True)
class View:
    """A view: name, sentence, columns in order, and the query that it stands for."""

    name: str
    sentence: str
    columns: tuple[Column, ...]
    query: str


@dataclass(frozen=True)
class Macro:
    """A macro: name, sentence, what follows its name in CREATE MACRO, and how COMMENT ON calls it."""

    name: str
    sentence: str
    signature: str
    kind: Literal["MACRO", "MACRO TABLE"] = "MACRO"


def merged_value(kpi: Kpi, when: str = "") -> str:
    """SQL of a KPI over the rows of kpi_statistics that a GROUP BY brings together.

    Args:
      kpi: any but a running sum; a percentile is taken from the column `merged` of the CTE of its histogram.
      when: a FILTER clause for its aggregates, or nothing.

    Returns:
      An expression; a zero denominator gives null.
    """

    def total(name: str) -> str:
        if _STATISTIC_KINDS[name] in ("seconds", "score"):
            # Added up as whole millionths: the same result in whatever order the rows come.
            return f"(coalesce(sum({MILLIONTHS[name]}){when}, 0)::DOUBLE / 1e6)"
        return f"CAST(coalesce(sum({name}){when}, 0) AS BIGINT)"

    if kpi.kind == "count":
        return total(kpi.numerator)
    assert kpi.denominator is not None
    if kpi.kind == "change":
        return f"({total(kpi.numerator)} - {total(kpi.denominator)})"
    return f"({total(kpi.numerator)} / nullif({total(kpi.denominator)}, 0))"


def _percentile(kpi: Kpi) -> str:
    """SQL of a percentile where the CTE of `_merged_histograms` is joined."""
    return f"histogram_percentile({kpi.numerator}_merged.merged, {kpi.quantile})"


def _merged_histograms(source: str, keys: str, sets: str) -> str:
    """CTEs that add up each histogram over the rows of a source: one row per value of the keys.

    Buckets are added up before lists are made of them: a percentile walks along its list, which has to be short.
    """
    return ", ".join(
        f"{name}_merged AS (SELECT {keys}, list({{'bucket': bucket, 'count': count}}) AS merged FROM ("
        f"SELECT {keys}, bucket, CAST(sum(count) AS BIGINT) AS count FROM ("
        f"SELECT {keys}, unnest({name}, recursive := true) FROM {source}) GROUP BY {sets}) GROUP BY {keys})"
        for name in HISTOGRAMS
    )


def _select(running: Callable[[Kpi], str], stored: Callable[[Kpi], str]) -> str:
    """The select list of all KPIs in the order of their definitions."""
    return ", ".join(f"{running(k) if k.kind == 'running' else stored(k)} AS {k.name}" for k in KPIS)


def _names(columns: tuple[Column, ...], of: str = "") -> str:
    return ", ".join(f"{of}{column.name}" for column in columns)


def _running(kpi: Kpi) -> str:
    """A running sum of changes over the window `series`; null where there is none (the opened basis)."""
    return f"CASE WHEN basis = 'activity' THEN CAST(coalesce(sum({kpi.numerator}) OVER series, 0) AS BIGINT) END"


def _series(*names: str) -> str:
    return f"WINDOW series AS (PARTITION BY {', '.join(names)} ORDER BY window_start ROWS UNBOUNDED PRECEDING)"


def kpis_query(source: str) -> str:
    """SQL of the table `kpis`, its running sums made from changes.

    Args:
      source: a table or CTE with the columns of KPI_TABLE, all rows of a result.
    """
    return (
        f"SELECT {_names(WINDOW)}, is_complete, {_select(_running, lambda k: k.name)}, {_names(COMMIT_COLUMNS)} "
        f"FROM {source} {_series('basis', 'grain', 'account_id', 'channel')}"
    )


def _kpis() -> View:
    return View(
        "kpis",
        KPI_TABLE.grain + " Stored in kpi_values; backlog_count and waiting_count are added on reading.",
        (*WINDOW, _IS_COMPLETE, *_KPI_COLUMNS, *COMMIT_COLUMNS),
        kpis_query(KPI_VALUES),
    )


def _kpis_dense() -> View:
    def filled(kpi: Kpi) -> str:
        if kpi.kind == "count":
            return f"coalesce(v.{kpi.name}, 0)"
        if kpi.kind == "change":
            return f"CASE WHEN grid.basis = 'activity' THEN coalesce(v.{kpi.name}, 0) END"
        return f"v.{kpi.name}"

    stored = tuple(kpi for kpi in KPIS if kpi.kind != "running")
    rows = ", ".join(f"{filled(kpi)} AS {kpi.name}" for kpi in stored)
    return View(
        "kpis_dense",
        "As kpis, with a row for every window from the first of its basis, grain, account and channel to the one that "
        "as_of lies in: where nothing fell, counts are 0, values null, and backlog and waiting go on.",
        (*WINDOW, _IS_COMPLETE, *_KPI_COLUMNS, *(Column(c.name, c.type, c.description) for c in COMMIT_COLUMNS)),
        "WITH firsts AS (SELECT basis, grain, account_id, channel, min(window_start) AS first_start "
        f"FROM {KPI_VALUES} GROUP BY ALL), "
        "grid AS (SELECT basis, grain, window_start, window_end, account_id, channel, is_complete "
        "FROM firsts JOIN windows USING (grain) WHERE window_start >= first_start), "
        f"filled AS (SELECT {_names(WINDOW, 'grid.')}, grid.is_complete, {rows}, "
        f"{_names(COMMIT_COLUMNS, 'v.')} FROM grid LEFT JOIN {KPI_VALUES} AS v ON grid.basis = v.basis "
        "AND grid.grain = v.grain AND grid.window_start = v.window_start AND grid.channel = v.channel "
        "AND grid.account_id IS NOT DISTINCT FROM v.account_id) "
        f"{kpis_query('filled')}",
    )


def _kpis_latest_day() -> View:
    dense = _kpis_dense()
    return View(
        "kpis_latest_day",
        "One row per account and channel: the latest complete day of the time zone (activity basis), days without any "
        "event too; empty before the first day is complete.",
        dense.columns,
        f"SELECT {_names(dense.columns)} FROM kpis_dense WHERE basis = 'activity' AND grain = 'day' AND window_start = "
        "(SELECT max(window_start) FROM windows WHERE grain = 'day' AND is_complete) ORDER BY account_id, channel",
    )


def _kpis_all_channels() -> View:
    kept = tuple(c for c in WINDOW if c.name not in ("account_id", "channel"))
    keys = "basis, grain, window_start"

    def total(kpi: Kpi) -> str:
        return (
            f"CASE WHEN basis = 'activity' THEN {merged_value(kpi)} END" if kpi.kind == "change" else merged_value(kpi)
        )

    totals = ", ".join(f"{total(k)} AS {k.name}" for k in KPIS if k.kind not in ("running", "percentile"))
    joins = " ".join(f"LEFT JOIN {name}_merged USING ({keys})" for name in HISTOGRAMS)
    return View(
        "kpis_all_channels",
        "One row per basis, grain and window in which anything fell: all accounts and channels together.",
        (*kept, _IS_COMPLETE, *_KPI_COLUMNS),
        f"WITH totals AS (SELECT {_names(kept)}, {totals} FROM kpi_statistics GROUP BY {_names(kept)}), "
        f"{_merged_histograms('kpi_statistics', keys, f'{keys}, bucket')} "
        f"SELECT {_names(kept)}, window_end <= {_AS_OF} AS is_complete, "
        f"{_select(_running, lambda k: _percentile(k) if k.kind == 'percentile' else k.name)} "
        f"FROM totals {joins} {_series('basis', 'grain')}",
    )


def _kpis_last_28_days() -> View:
    by_name = {kpi.name: kpi for kpi in KPIS}

    def value(kpi: Kpi) -> str:
        if kpi.kind == "running":
            return merged_value(by_name[kpi.numerator])
        return merged_value(kpi, " FILTER (WHERE is_within)")

    totals = ", ".join(f"{value(k)} AS {k.name}" for k in KPIS if k.kind != "percentile")
    joins = " ".join(
        f"LEFT JOIN {name}_merged ON totals.channel IS NOT DISTINCT FROM {name}_merged.channel" for name in HISTOGRAMS
    )
    return View(
        "kpis_last_28_days",
        f"One row per channel, and one with channel null for all channels: the {ROLLING_DAYS} days that end with the "
        "latest complete day (activity basis, all accounts together), or as many as there are; backlog and waiting are "
        "those at the end.",
        (
            Column("channel", _STARTS["channel"].type, "Channel; null: all channels together."),
            Column("window_start", TIMESTAMP, "First instant of the first day.", False),
            Column("window_end", TIMESTAMP, "First instant after the last day.", False),
            Column("day_count", COUNT, "Days in it.", False),
            *_KPI_COLUMNS,
        ),
        "WITH days AS (SELECT window_start, window_end FROM windows WHERE grain = 'day' AND is_complete "
        f"ORDER BY window_start DESC LIMIT {ROLLING_DAYS}), "
        "period AS (SELECT min(window_start) AS first_start, max(window_end) AS last_end, count(*) AS day_count "
        "FROM days), "
        "parts AS (SELECT s.*, period.*, s.window_start >= first_start AS is_within FROM kpi_statistics AS s, period "
        "WHERE basis = 'activity' AND grain = 'day' AND s.window_start < last_end), "
        f"{_merged_histograms('parts WHERE is_within', 'channel', 'GROUPING SETS ((channel, bucket), (bucket))')}, "
        "totals AS (SELECT channel, min(first_start) AS window_start, min(last_end) AS window_end, "
        f"min(day_count) AS day_count, {totals} FROM parts GROUP BY GROUPING SETS ((channel), ()) HAVING count(*) > 0) "
        "SELECT totals.channel, window_start, window_end, day_count, "
        f"{_select(lambda k: k.name, lambda k: _percentile(k) if k.kind == 'percentile' else k.name)} "
        f"FROM totals {joins} ORDER BY totals.channel IS NULL, totals.channel",
    )


def _waiting_now() -> View:
    turns, conversations = ({column.name: column for column in spec.columns} for spec in (TURNS, CONVERSATIONS))
    of_turn = ("conversation_key", "started_at", "turn_number", "account_id", "channel", "turn_started_at")
    of_conversation = ("agent_id", "team_id", "topic", "priority", "language", "customer_id")

    def said(key: str) -> str:
        return f"coalesce(run.by_channel[c.channel], run.otherwise)->>'{key}'"

    # Durations are written as in "1h30m"; a ticket with a life cycle may stay silent longer than the rest.
    limit = (
        "list_sum(list_transform(regexp_extract_all(CASE WHEN json_array_length(t.conversation_key) = 2 "
        f"AND {said('has_life_cycle')} = 'true' AND {said('split_threads')} = 'false' "
        f"AND {said('infer_resolution')} = 'false' THEN {said('max_open')} ELSE {said('max_idle')} END, "
        "'[0-9.]+[dhms]'), lambda part: CAST(part[:-2] AS DOUBLE) * "
        "CASE part[-1] WHEN 'd' THEN 86400 WHEN 'h' THEN 3600 WHEN 'm' THEN 60 ELSE 1 END))"
    )
    return View(
        "waiting_now",
        "One row per customer turn that waits for a human as of as_of, the longest wait first: neither answered nor "
        "closed, in a conversation that is neither over by silence nor followed by another one of its key. A turn that "
        "a bot replied to is here too; it counts as waiting in kpis only where it is due again.",
        (
            Column("waiting_seconds", SECONDS, "as_of - turn_started_at.", False),
            *(turns[name] for name in of_turn),
            *(
                Column(name, TEXT, f"Of its conversation. {conversations[name].description}")
                for name in of_conversation
            ),
            Column("message_count", COUNT, "Customer messages in the turn.", False),
            Column("bot_replied_at", TIMESTAMP, turns["bot_replied_at"].description),
        ),
        "WITH run AS (SELECT as_of, CAST(settings->'channel' AS MAP(VARCHAR, JSON)) AS by_channel, "
        "CAST(settings AS JSON)->'default' AS otherwise FROM runs ORDER BY commit_id DESC LIMIT 1), "
        "lasts AS (SELECT conversation_key, max(started_at) AS last_started_at FROM conversations GROUP BY ALL) "
        "SELECT (epoch_us(run.as_of) - epoch_us(t.turn_started_at)) / 1e6 AS waiting_seconds, "
        f"{', '.join(f't.{name}' for name in of_turn)}, {', '.join(f'c.{name}' for name in of_conversation)}, "
        "t.message_count, t.bot_replied_at "
        "FROM turns AS t JOIN conversations AS c USING (conversation_key, started_at) "
        "JOIN lasts ON lasts.conversation_key = t.conversation_key AND lasts.last_started_at = t.started_at, run "
        "WHERE t.outcome = 'waiting' AND c.state = 'open' "
        f"AND epoch_us(run.as_of) <= epoch_us(c.last_event_at) + {limit} * 1e6 "
        "ORDER BY t.turn_started_at, t.conversation_key, t.turn_number",
    )


VIEWS = (_kpis(), _kpis_dense(), _kpis_latest_day(), _kpis_all_channels(), _kpis_last_28_days(), _waiting_now())
"""In the order in which they can be made."""
