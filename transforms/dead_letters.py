"""Dead letters of events that parsed well: of the copies of an event whose contents differ, those that are not kept."""

from __future__ import annotations

import json

import pyarrow as pa

from transforms.schema import AUTHOR_TYPES, CONTENT_COLUMNS, EVENT_TYPES
from transforms.tables import DEAD_LETTERS


def conflict_letters(events: pa.Table) -> pa.Table:
    """Makes the dead letters of conflicting duplicates.

    Args:
      events: columns of PARSED_EVENTS; the rows that conflict.

    Returns:
      Rows of `dead_letters`; raw is the row as it was parsed, without what is null.
    """
    if not events.num_rows:
        return DEAD_LETTERS.schema.empty_table()
    # One dictionary a row, for conflicting rows only: they are few, and each is written out as JSON.
    raw = []
    for row in events.select(CONTENT_COLUMNS).to_pylist():
        row["event_type"] = EVENT_TYPES[row["event_type"]]
        row["occurred_at"] = row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if row["author_type"] is not None:
            row["author_type"] = AUTHOR_TYPES[row["author_type"]]
        raw.append(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False))
    count = events.num_rows
    return pa.table(
        {
            "source": events["source"].cast(pa.string()),
            "source_partition": events["source_partition"],
            "source_row": events["source_row"],
            "stage": pa.array(["pair"] * count),
            "reason": pa.array(["conflicting_duplicate"] * count),
            "column_name": pa.nulls(count, pa.string()),
            "raw": pa.array(raw, pa.string()),
        }
    ).cast(DEAD_LETTERS.schema)


def letters_by_reason(letters: pa.Table) -> dict[str, int]:
    """Numbers of dead letters, under "dead letter <reason>"."""
    counted = letters["reason"].value_counts().to_pylist()
    return {f"dead letter {item['values']}": item["counts"] for item in counted}
