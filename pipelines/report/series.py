"""KPIs by window from the additive statistics: all channels together, and each channel."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from pipelines.report.period import Grain
from pipelines.report.warehouse import PARTS, Warehouse
from sinks.views import merged_value
from transforms.definitions import KPIS, STATISTICS, Kpi

_HISTOGRAMS = tuple(dict.fromkeys(kpi.numerator for kpi in KPIS if kpi.kind == "percentile"))
_COUNTS = tuple(s.name for s in STATISTICS if s.kind == "count")
ALL = ""
"""The name under which all channels together stand; no channel has an empty name."""


def basis_of(kpi: Kpi) -> str | None:
    """The column with the number of cases behind a mean, rate or percentile; None where the KPI is itself a number."""
    if kpi.kind in ("mean", "rate"):
        return f"n_{kpi.denominator}"
    return f"n_{kpi.numerator}" if kpi.kind == "percentile" else None


def read_series(warehouse: Warehouse, grain: Grain, start_at: datetime, end_at: datetime) -> pd.DataFrame:
    """Every KPI of every window of a grain from one moment to another, quiet windows too.

    Args:
      warehouse: the result.
      grain: of the windows.
      start_at: no window begins before it.
      end_at: no window begins at it or after.

    Returns:
      Index: channel (ALL: all of them together), window_start (UTC). Columns: window_end, is_complete, each KPI, and
      `n_` + statistic for the number of cases behind a value. Counts are 0 where nothing fell, values are missing.
    """
    keys = "window_start, channel"
    stored = [kpi for kpi in KPIS if kpi.kind not in ("running", "percentile")]
    running = [kpi for kpi in KPIS if kpi.kind == "running"]
    totals = ", ".join(
        [f"{merged_value(kpi)} AS {kpi.name}" for kpi in stored]
        + [f"CAST(sum({name}) AS BIGINT) AS n_{name}" for name in _COUNTS]
    )
    steps = [
        f"totals AS (SELECT window_start, coalesce(channel, '{ALL}') AS channel, {totals} FROM {PARTS} "
        f"WHERE grain = $grain AND window_start < $until GROUP BY GROUPING SETS (({keys}), (window_start)))",
        f"names AS (SELECT DISTINCT channel FROM {PARTS} UNION ALL SELECT '{ALL}')",
        "grid AS (SELECT window_start, window_end, is_complete, channel FROM windows, names "
        "WHERE grain = $grain AND window_start < $until)",
        *(_percentiles(name) for name in _HISTOGRAMS),
    ]
    columns = [f"coalesce({k.name}, 0) AS {k.name}" if k.kind in ("count", "change") else k.name for k in stored]
    columns += [f"coalesce(n_{name}, 0) AS n_{name}" for name in _COUNTS]
    columns += [f"CAST(sum(coalesce({k.numerator}, 0)) OVER series AS BIGINT) AS {k.name}" for k in running]
    columns += [f"{name}_ranks.* EXCLUDE (window_start, channel)" for name in _HISTOGRAMS]
    joins = " ".join(f"LEFT JOIN {name}_ranks USING ({keys})" for name in _HISTOGRAMS)
    query = (
        f"WITH {', '.join(steps)} SELECT * FROM (SELECT grid.channel, grid.window_start, window_end, is_complete, "
        f"{', '.join(columns)} FROM grid LEFT JOIN totals USING ({keys}) {joins} "
        "WINDOW series AS (PARTITION BY grid.channel ORDER BY grid.window_start ROWS UNBOUNDED PRECEDING)) "
        "WHERE window_start >= $since ORDER BY channel, window_start"
    )
    values = {"grain": grain, "since": start_at, "until": end_at}
    found = warehouse.connection.sql(query, params=values).to_arrow_table().to_pandas()
    for name in ("window_start", "window_end"):
        found[name] = found[name].dt.tz_convert("UTC")
    return found.set_index(["channel", "window_start"])


def _percentiles(histogram: str) -> str:
    """A CTE with the percentiles of a histogram and the number of its values: nearest rank, by running counts."""
    keys = "window_start, channel"
    ranks = ", ".join(
        f"bucket_seconds(min(bucket) FILTER (reached >= ceil({kpi.quantile} * total))) AS {kpi.name}"
        for kpi in KPIS
        if kpi.kind == "percentile" and kpi.numerator == histogram
    )
    return (
        f"{histogram}_ranks AS (SELECT {keys}, any_value(total) AS n_{histogram}, {ranks} FROM ("
        f"SELECT {keys}, bucket, CAST(sum(count) OVER (PARTITION BY {keys} ORDER BY bucket) AS BIGINT) AS reached, "
        f"CAST(sum(count) OVER (PARTITION BY {keys}) AS BIGINT) AS total FROM ("
        f"SELECT window_start, coalesce(channel, '{ALL}') AS channel, bucket, sum(count) AS count FROM ("
        f"SELECT window_start, channel, unnest({histogram}, recursive := true) FROM {PARTS} "
        "WHERE grain = $grain AND window_start >= $since AND window_start < $until) "
        f"GROUP BY GROUPING SETS (({keys}, bucket), (window_start, bucket)))) GROUP BY {keys})"
    )
