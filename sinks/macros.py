"""Macros of the warehouse: histograms put together, what `kpis` said at some moment, and those of questions."""

from __future__ import annotations

from sinks.credit import CREDIT_MACROS
from sinks.moments import MOMENT_MACROS
from sinks.periods import PERIOD_MACROS
from sinks.views import KPI_VALUES, Macro, kpis_query
from transforms.tables import KPI_CHANGES, KPI_TABLE, RUNS

_BUCKET = "CAST(NULL AS SMALLINT)"
_NEEDED = "-CAST(ceil(q * CAST(list_sum(list_transform(histogram, lambda entry: entry.count)) AS BIGINT)) AS BIGINT)"


def _kpis_as_of() -> Macro:
    """The rows of then: those that are still there, and those that a later commit replaced or took away.

    A row was there from the commit named by its changed_at on. Commits are compared by their number, which unlike the
    clock never goes back.
    """
    stored = ", ".join(c.name for c in KPI_TABLE.columns if c.name != "is_complete")
    return Macro(
        "kpis_as_of",
        "The table kpis as it stood at a moment, after the latest commit made by then; no rows before the first. The "
        "moment is a timestamp or text in ISO 8601; one without a zone is taken in the session's TimeZone.",
        # Apart from all tables: a moment that names a column, such as committed_at, is the caller's column.
        "(moment) AS TABLE WITH given AS (SELECT CAST(moment AS TIMESTAMPTZ) AS moment_at), "
        f"run AS (SELECT commit_id AS last_id, as_of FROM {RUNS.name}, given "
        "WHERE committed_at <= moment_at ORDER BY commit_id DESC LIMIT 1), "
        f"made AS (SELECT committed_at FROM {RUNS.name}, run WHERE commit_id <= last_id), "
        f"known AS (SELECT {stored} FROM {KPI_VALUES} "
        f"UNION ALL SELECT {stored} FROM {KPI_CHANGES.name}, run WHERE commit_id > last_id), "
        "shown AS (SELECT known.*, window_end <= as_of AS is_complete FROM known, run "
        f"WHERE changed_at IN (SELECT committed_at FROM made)) {kpis_query('shown')}",
        "MACRO TABLE",
    )


MACROS = (
    Macro(
        "bucket_seconds",
        "Seconds that a histogram bucket stands for: its middle, within 0.8 % of every value in it; bucket 0 is 0.",
        "(bucket) AS CASE WHEN bucket = 0 THEN 0.0::DOUBLE ELSE "
        "pow(2.0, (bucket - 1) // 64) * (1 + ((bucket - 1) % 64 + 0.5) / 64) / 1e6 END",
    ),
    Macro(
        "histogram_percentile",
        "Percentile q (0 to 1, nearest rank) of a histogram, in seconds; null where it is empty. Histograms are put "
        "together by flatten(list(histogram)): histogram_percentile(flatten(list(reply_histogram)), 0.9).",
        # One pass that starts at minus the rank and stops where it reaches 0.
        "(histogram, q) AS bucket_seconds(list_reduce(list_sort(histogram), lambda reached, entry: "
        "CASE WHEN reached.count >= 0 THEN reached "
        "ELSE {'bucket': entry.bucket, 'count': reached.count + entry.count} END, "
        f"{{'bucket': {_BUCKET}, 'count': {_NEEDED}}}).bucket)",
    ),
    Macro(
        "merge_histograms",
        "One histogram out of a list of histograms: merge_histograms(list(reply_histogram)).",
        "(histograms) AS (SELECT list({'bucket': bucket, 'count': count} ORDER BY bucket) FROM ("
        "SELECT bucket, CAST(sum(count) AS BIGINT) AS count FROM ("
        "SELECT unnest(flatten(histograms), recursive := true)) GROUP BY bucket))",
    ),
    _kpis_as_of(),
    *MOMENT_MACROS,
    *PERIOD_MACROS,
    *CREDIT_MACROS,
)
