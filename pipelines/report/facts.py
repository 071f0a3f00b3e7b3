"""What a report says besides the KPIs: distributions, hours, teams, waits, scores, restated windows, dead letters."""

from __future__ import annotations

from typing import Any

from pipelines.report.period import Period
from pipelines.report.warehouse import CHANGES, PARTS, TALKS, VALUES, WAITS, Warehouse
from transforms.tables import DEAD_LETTERS, KPI_DEFINITIONS, RUNS

Row = dict[str, Any]
DIMENSIONS = ("team_id", "agent_id", "topic")
LONGEST = 10
HEAT_DAYS = 28

EDGES = (0, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800)
"""Seconds at which the bars of a distribution begin; the last one has no end."""

_SHARES = """count(*) FILTER (message_count > 0 AND opened_at >= $start AND opened_at < $end) AS conversation_count,
  quantile_disc(first_response_seconds, 0.5) FILTER (first_response_at >= $start AND first_response_at < $end)
    AS p50_first_response_seconds,
  quantile_disc(first_response_seconds, 0.9) FILTER (first_response_at >= $start AND first_response_at < $end)
    AS p90_first_response_seconds,
  count(*) FILTER (is_handled AND handled_at >= $start AND handled_at < $end) AS handled_count,
  avg(CAST(is_first_contact_resolution AS INTEGER)) FILTER (is_handled AND handled_at >= $start AND handled_at < $end)
    AS first_contact_resolution_rate,
  avg(CAST(handle_seconds * 1e6 AS BIGINT))
    FILTER (resolution_seconds IS NOT NULL AND resolved_at >= $start AND resolved_at < $end) / 1e6
    AS avg_handle_seconds,
  avg(CAST(csat_score * 1e6 AS BIGINT)) FILTER (message_count > 0 AND rated_at >= $start AND rated_at < $end)
    / 1e6 AS avg_csat,
  count(csat_score) FILTER (message_count > 0 AND rated_at >= $start AND rated_at < $end) AS rating_count"""


def _within(period: Period) -> dict[str, Any]:
    return {"start": period.start_at, "end": period.end_at}


def _query(warehouse: Warehouse, query: str, values: dict[str, Any]) -> list[Row]:
    found = warehouse.connection.execute(query, values)
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def distribution(warehouse: Warehouse, period: Period, histogram: str) -> list[int]:
    """How many values of a histogram lie in each bar from EDGES on, in the window of the period; empty without any."""
    bars = ", ".join(f"CAST(coalesce(sum(count) FILTER (bar = {place}), 0) AS BIGINT)" for place in range(len(EDGES)))
    bar = " + ".join(f"CAST(seconds >= {edge} AS INTEGER)" for edge in EDGES[1:])
    found = warehouse.connection.execute(
        f"SELECT {bars} FROM (SELECT count, {bar} AS bar FROM (SELECT count, bucket_seconds(bucket) AS seconds FROM ("
        f"SELECT unnest({histogram}, recursive := true) FROM {PARTS} WHERE grain = $grain AND window_start = $start)))",
        {"grain": period.grain, "start": period.start_at},
    ).fetchall()
    return list(found[0]) if any(found[0]) else []


def by_hour(warehouse: Warehouse, start_at: Any, end_at: Any) -> list[Row]:
    """Weekday (1 is Monday) and local hour: mean messages, and mean number of customers waiting when the hour ends."""
    return _query(
        warehouse,
        f"""WITH fell AS (SELECT window_start, sum(message_count) AS messages,
          sum(waiting_in_count - waiting_out_count) AS change FROM {PARTS}
          WHERE grain = 'hour' AND window_start < $end GROUP BY window_start),
        hours AS (SELECT window_start, coalesce(messages, 0) AS messages,
          sum(coalesce(change, 0)) OVER (ORDER BY window_start) AS waiting
          FROM (FROM windows WHERE grain = 'hour' AND window_start < $end) LEFT JOIN fell USING (window_start))
        SELECT isodow(window_start) AS weekday, hour(window_start) AS hour, avg(messages)::DOUBLE AS messages,
          avg(waiting)::DOUBLE AS waiting FROM hours WHERE window_start >= $start GROUP BY ALL ORDER BY ALL""",
        {"start": start_at, "end": end_at},
    )


def by_dimension(warehouse: Warehouse, period: Period, column: str) -> list[Row]:
    """KPIs by a column of the conversation rows, the busiest first; each conversation counts for one value, or null.

    Args:
      warehouse: the result.
      period: what falls into it on the activity basis is counted.
      column: one of DIMENSIONS.
    """
    times = ("opened_at", "first_response_at", "handled_at", "resolved_at", "rated_at")
    touched = " OR ".join(f"({at} >= $start AND {at} < $end)" for at in times)
    return _query(
        warehouse,
        f"SELECT {column} AS name, {_SHARES} FROM {TALKS} WHERE {touched} GROUP BY {column} "
        f"HAVING conversation_count + handled_count + rating_count > 0 "
        f"ORDER BY conversation_count DESC, handled_count DESC, {column}",
        _within(period),
    )


def longest_waits(warehouse: Warehouse, period: Period) -> list[Row]:
    """The longest waits: turns answered in the period, and those that began in it and still waited at its end."""
    return _query(
        warehouse,
        f"""SELECT conversation_key, account_id, channel, agent_id, turn_started_at,
          outcome = 'answered' AND turn_ended_at < $end AS is_answered,
          CASE WHEN is_answered THEN wait_seconds
            ELSE (epoch_us(least($end, $as_of)) - epoch_us(turn_started_at)) / 1e6 END AS waited_seconds
        FROM {WAITS} WHERE (outcome = 'answered' AND turn_ended_at >= $start AND turn_ended_at < $end)
          OR (needs_reply AND turn_started_at >= $start AND turn_started_at < least($end, $as_of)
            AND (turn_ended_at IS NULL OR turn_ended_at >= $end))
        ORDER BY waited_seconds DESC, conversation_key, turn_started_at LIMIT {LONGEST}""",
        {**_within(period), "as_of": warehouse.run["as_of"] or period.end_at},
    )


def scores(warehouse: Warehouse, period: Period) -> list[Row]:
    """How many conversations were rated with each whole score from 1 to 5, those without any too."""
    return _query(
        warehouse,
        f"""SELECT score, coalesce(ratings, 0) AS ratings FROM (SELECT unnest(range(1, 6)) AS score) LEFT JOIN (
          SELECT CAST(round(csat_score) AS BIGINT) AS score, count(*) AS ratings FROM {TALKS}
          WHERE message_count > 0 AND csat_score IS NOT NULL AND rated_at >= $start AND rated_at < $end GROUP BY 1)
        USING (score) ORDER BY score""",
        _within(period),
    )


def restated(warehouse: Warehouse, period: Period, since: int, names: tuple[str, ...]) -> list[Row]:
    """Days that had been complete at a commit and say something else now, up to the end of the period.

    Args:
      warehouse: the result.
      period: the report's.
      since: number of the commit that readers saw last.
      names: KPIs to show.

    Returns:
      window_start, account_id, channel, and of each KPI `before_…` and its own name for now (missing: there was
      or is no such row); the latest day first. Rows in which none of these KPIs differs are left out.
    """
    values = ", ".join(f"was.{name} AS before_{name}, now.{name} AS {name}" for name in names)
    differs = " OR ".join(f"was.{name} IS DISTINCT FROM now.{name}" for name in names)
    key = ", ".join(f"coalesce(was.{name}, now.{name}) AS {name}" for name in ("window_start", "account_id", "channel"))
    return _query(
        warehouse,
        f"""WITH later AS (SELECT committed_at FROM {RUNS.name} WHERE commit_id > $since),
        complete AS (SELECT as_of FROM {RUNS.name} WHERE commit_id = $since),
        firsts AS (SELECT * FROM {CHANGES} WHERE commit_id > $since AND window_start < $end
          AND window_end <= (FROM complete)
          QUALIFY row_number() OVER (PARTITION BY window_start, account_id, channel ORDER BY commit_id) = 1),
        was AS (SELECT * FROM firsts WHERE changed_at NOT IN (FROM later)),
        now AS (SELECT * FROM {VALUES} WHERE changed_at IN (FROM later) AND window_start < $end
          AND window_end <= (FROM complete))
        SELECT {key}, {values} FROM was FULL JOIN now ON now.window_start = was.window_start
          AND now.channel = was.channel AND now.account_id IS NOT DISTINCT FROM was.account_id
        WHERE {differs} ORDER BY ALL DESC""",
        {"since": since, "end": period.end_at},
    )


def dead_letters(warehouse: Warehouse) -> list[Row]:
    """Rows that could not be used in the whole result: stage, reason and number, most frequent first."""
    return _query(
        warehouse,
        f"SELECT stage, reason, count(*) AS rows FROM {DEAD_LETTERS.name} GROUP BY stage, reason "
        "ORDER BY rows DESC, stage, reason",
        {},
    )


def runs(warehouse: Warehouse, since: int) -> list[Row]:
    """The commits after one, the latest first; at least the latest, at most 20."""
    return _query(
        warehouse,
        f"""SELECT commit_id, committed_at, kind, as_of, rows_read_count, events_kept_count, dead_letter_count,
          exact_duplicate_count, late_event_count, stray_event_count FROM {RUNS.name}
        WHERE commit_id > $since OR commit_id = (SELECT max(commit_id) FROM {RUNS.name})
        ORDER BY commit_id DESC LIMIT 20""",
        {"since": since},
    )


def definitions(warehouse: Warehouse) -> list[Row]:
    """Every KPI's definition as the result has it, in the order of the list."""
    return _query(warehouse, f"SELECT * FROM {KPI_DEFINITIONS.name} ORDER BY rowid", {})
