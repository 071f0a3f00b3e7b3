"""Reads parts of a published result back, for the cycle that adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transforms.tables import CONVERSATIONS, DEAD_LETTERS, KPI_STATISTICS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def stored_statistics(result: Path, windows: Mapping[str, list[int]]) -> pa.Table:
    """Rows of kpi_statistics of some windows.

    Args:
      result: folder of the result.
      windows: by grain, window_start of the windows, seconds since the epoch.

    Returns:
      Columns of KPI_STATISTICS.
    """
    empty, wanted, months = KPI_STATISTICS.schema.empty_table(), pc.scalar(False), set()
    for grain, starts in windows.items():
        instants = [_EPOCH + timedelta(seconds=start) for start in starts]
        months |= {instant.strftime("%Y-%m") for instant in instants}
        moments = pa.array(instants, empty.schema.field("window_start").type)
        wanted = wanted | ((pc.field("grain") == grain) & pc.field("window_start").isin(moments))
    folders = [result / KPI_STATISTICS.name / f"window_month={month}" for month in sorted(months)]
    files = [file for folder in folders for file in sorted(folder.glob("*.parquet"))]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda file: pq.read_table(file, partitioning=None, filters=wanted), files))
    return pa.concat_tables([empty, *(part.select(empty.column_names).cast(empty.schema) for part in parts)])


def conversation_keys_of(result: Path, customers: pa.Table) -> list[str]:
    """The keys of all conversations with some customers.

    Args:
      result: folder of the result.
      customers: account_id and customer_id; a null customer is nobody.
    """
    names = ["account_id", "customer_id"]
    ids = customers["customer_id"].combine_chunks().drop_null().unique()
    found = []
    for file in sorted((result / CONVERSATIONS.name).rglob("*.parquet")):
        rows = pq.read_table(
            file,
            columns=["conversation_key", *names],
            partitioning=None,
            filters=pc.field("customer_id").isin(ids),
        )
        found.append(rows.cast(pa.schema([(name, pa.string()) for name in rows.column_names])))
    if not found:
        return []
    rows, wanted = pa.concat_tables(found), customers.select(names)
    # A join takes no null for equal; an account may be null.
    for name in names:
        rows = rows.append_column(f"{name}_known", pc.is_valid(rows[name]))
        wanted = wanted.append_column(f"{name}_known", pc.is_valid(wanted[name]))
    filled = [
        table.set_column(
            table.schema.get_field_index("account_id"), "account_id", pc.fill_null(table["account_id"], "")
        )
        for table in (rows, wanted)
    ]
    keys = [*names, "account_id_known", "customer_id_known"]
    joined = filled[0].join(filled[1], keys, join_type="left semi")
    keys_found: list[str] = joined["conversation_key"].unique().to_pylist()
    return keys_found


def stored_letters(result: Path, sources: list[str]) -> pa.Table:
    """Rows of dead_letters of some sources.

    Args:
      result: folder of the result.
      sources: names of sources.
    """
    empty = DEAD_LETTERS.schema.empty_table()
    parts = [
        pq.read_table(file, partitioning=None, filters=pc.field("source").isin(sources))
        for file in sorted((result / DEAD_LETTERS.name).glob("*.parquet"))
    ]
    return pa.concat_tables([empty, *(part.select(empty.column_names).cast(empty.schema) for part in parts)])
