"""Late events: those that come after the state that they would need may have been dropped."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from transforms.schema import AUTHOR_TYPES, EVENT_TYPES
from transforms.tables import LATE_EVENTS

_CODES = {"event_type": pa.array(EVENT_TYPES), "author_type": pa.array(AUTHOR_TYPES)}


def split_late(events: pa.Table, watermark: int | None, allowed_lateness: int) -> tuple[pa.Table, pa.Table]:
    """Tells late events from the others.

    Args:
      events: schema PARSED_EVENTS.
      watermark: of the commit before, microseconds; None before the first event.
      allowed_lateness: an event older than the watermark by more is late, microseconds.

    Returns:
      The others, and the late ones with the schema of LATE_EVENTS.
    """
    if watermark is None or not events.num_rows:
        return events, LATE_EVENTS.schema.empty_table()
    is_late = pc.less(events["occurred_at"].cast(pa.int64()), watermark - allowed_lateness)
    if not pc.any(is_late).as_py():
        return events, LATE_EVENTS.schema.empty_table()
    return events.filter(pc.invert(is_late)), late_rows(events.filter(is_late))


def late_rows(events: pa.Table) -> pa.Table:
    """Events (schema PARSED_EVENTS) as rows of LATE_EVENTS."""
    columns = []
    for field in LATE_EVENTS.schema:
        column = events[field.name].combine_chunks()
        words = _CODES.get(field.name)
        columns.append((column if words is None else words.take(column)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=LATE_EVENTS.schema)
