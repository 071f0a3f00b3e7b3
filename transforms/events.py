"""Parses and validates events: rows as a source gave them become events, and what is at fault dead letters.

Whatever the format, a reader hands over `RawRows` (columns in the Arrow types they came in) and `parse_events`
applies the contract to whole columns at once: values, required columns, ranges and author rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms import schema
from transforms.hashing import raw_values, valid_rows
from transforms.raw_rows import RawRows, Rows
from transforms.schema import EVENT_COLUMNS, PARSED_EVENTS, WORD
from transforms.tables import DEAD_LETTERS
from transforms.times import Mask, parse_times
from transforms.values import ABSENT, UNKNOWN, as_flags, as_numbers, as_text, as_words, codes_of


@dataclass(frozen=True)
class ParsedEvents:
    """What became of the rows.

    Attributes:
      events: valid rows, schema PARSED_EVENTS.
      dead_letters: all others, schema of DEAD_LETTERS.
      rows_read: their sum; blank lines are no rows.
      unknown_columns: names of columns that were ignored, sorted.
    """

    events: pa.Table
    dead_letters: pa.Table
    rows_read: int
    unknown_columns: tuple[str, ...]


def parse_events(parts: Sequence[RawRows]) -> ParsedEvents:
    """Applies the contract's rules for input to rows as they came.

    Args:
      parts: rows, in parts that each have one Arrow type a column.

    Returns:
      Events, dead letters (each with its first faulty column in the contract's order and one reason) and counts.
    """
    events, letters, unknown = [], [], set[str]()
    rows_read = 0
    for part in parts:
        parsed, dead = _parse_part(part)
        if parsed.num_rows:
            events.append(parsed)
        letters += dead
        rows_read += len(part.positions) + len(part.unreadable.positions)
        unknown.update(part.unknown_columns)
    return ParsedEvents(
        _joined(events, PARSED_EVENTS), _joined(letters, DEAD_LETTERS.schema), rows_read, tuple(sorted(unknown))
    )


def _joined(tables: list[pa.Table], kind: pa.Schema) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    return pa.concat_tables(tables).combine_chunks() if tables else kind.empty_table()


class _Faults:
    """The first fault of each row, columns being visited in the contract's order."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._codes: npt.NDArray[np.int32] | None = None
        self._kinds: list[tuple[str | None, str]] = []

    def mark(self, column: str, reason: str, mask: Mask | None) -> None:
        """Notes a fault of the rows in the mask that have none yet."""
        if mask is None or not mask.any():
            return
        if self._codes is None:
            self._codes = np.full(self._rows, -1, np.int32)
        self._codes[mask & (self._codes < 0)] = len(self._kinds)
        self._kinds.append((column, reason))

    def dead(self) -> Mask | None:
        """The rows at fault; None where there are none."""
        return None if self._codes is None else self._codes >= 0

    def of(self, rows: Rows) -> tuple[list[str | None], list[str]]:
        """Columns and reasons of rows at fault."""
        kinds = [] if self._codes is None else [self._kinds[code] for code in self._codes[rows]]
        return [column for column, _ in kinds], [reason for _, reason in kinds]


def _parse_part(part: RawRows) -> tuple[pa.Table, list[pa.Table]]:
    count = len(part.positions)
    faults = _Faults(count)
    values: dict[str, pa.Array] = {}
    for column in EVENT_COLUMNS:
        name = column.name
        for (at_fault, reason), mask in part.faults.items():
            if at_fault == name:
                faults.mark(name, reason, mask)
        array = part.columns.get(name)
        if array is None:
            array = pa.nulls(count)
        elif isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if name == "text":
            faults.mark(name, "wrong_type", as_text(array)[1])
        else:
            values[name] = _CHECKS.get(name, _check_other)(name, array, part, values, faults)
    values["source"] = _sources(part.source, np.arange(count))
    values["source_partition"] = (
        pa.nulls(count, pa.int32()) if part.partition is None else pa.array(np.full(count, part.partition, np.int32))
    )
    values["source_row"] = pa.array(part.positions)
    dead = faults.dead()
    unreadable = count + np.arange(len(part.unreadable.positions))
    letters = [_dead_letters(part, unreadable, part.unreadable.positions, "read", part.unreadable.raw)]
    if dead is None:
        events = pa.Table.from_arrays([values[name] for name in PARSED_EVENTS.names], schema=PARSED_EVENTS)
    else:
        kept = pa.array(~dead)
        events = pa.Table.from_arrays([values[name].filter(kept) for name in PARSED_EVENTS.names], schema=PARSED_EVENTS)
        rows = np.flatnonzero(dead)
        columns, reasons = faults.of(rows)
        raw = part.originals.restate(rows)
        letters.append(_dead_letters(part, rows, part.positions[rows], "parse", raw, reasons, columns))
    return events, [letter for letter in letters if letter.num_rows]


def _sources(source: str | pa.DictionaryArray, rows: Rows) -> pa.DictionaryArray:
    if isinstance(source, str):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([source]), safe=False)
    return source.take(pa.array(rows))


def _dead_letters(
    part: RawRows,
    rows: Rows,
    positions: Rows,
    stage: str,
    raw: Sequence[str],
    reasons: Sequence[str] | None = None,
    columns: Sequence[str | None] | None = None,
) -> pa.Table:
    count = len(positions)
    return pa.Table.from_arrays(
        [
            _sources(part.source, rows).cast(pa.string()),
            pa.array([part.partition] * count, pa.int32()),
            pa.array(positions, pa.int64()),
            pa.array([stage] * count, pa.string()),
            pa.array(reasons if reasons is not None else ["unreadable"] * count, pa.string()),
            pa.array(columns if columns is not None else [None] * count, pa.string()),
            pa.array(raw, pa.string()),
        ],
        schema=DEAD_LETTERS.schema,
    )


def _nulls(array: pa.Array) -> Mask | None:
    return None if array.null_count == 0 else ~valid_rows(array)


class _Check(Protocol):
    """Reads one column, notes its faults and returns its values in the type that PARSED_EVENTS has."""

    def __call__(
        self, name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
    ) -> pa.Array:
        """Values of the column `name`; `values` has the columns before it."""
        ...


def _check_other(
    name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
) -> pa.Array:
    """Text, as words where PARSED_EVENTS has words; some of it required."""
    is_id = name in ("conversation_id", "customer_id")
    array, wrong = as_words(array, is_id) if PARSED_EVENTS.field(name).type == WORD else as_text(array)
    faults.mark(name, "wrong_type", wrong)
    if not PARSED_EVENTS.field(name).nullable:
        faults.mark(name, "missing", _nulls(array))
    if name == "customer_id" and array.null_count:
        unkeyed = _nulls(values["conversation_id"])
        faults.mark(name, "missing", None if unkeyed is None else unkeyed & ~valid_rows(array))
    return array


def _check_event_type(
    name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
) -> pa.Array:
    words, wrong = as_words(array)
    faults.mark(name, "wrong_type", wrong)
    codes = codes_of(words, schema.EVENT_TYPES)
    if len(codes) and codes.max() >= UNKNOWN:
        faults.mark(name, "missing", codes == ABSENT)
        faults.mark(name, "unknown_event_type", codes == UNKNOWN)
    return pa.array(codes)


def _check_occurred_at(
    name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
) -> pa.Array:
    times = parse_times(array, part.all_text)
    faults.mark(name, "wrong_type", times.wrong_type)
    faults.mark(name, "bad_time", times.bad_time)
    faults.mark(name, "missing", _nulls(times.values))
    micros = times.values.view(pa.int64())
    least, greatest = pc.min_max(micros).as_py().values()
    last = schema.MAX_OCCURRED_AT - 1 if part.not_after is None else min(part.not_after, schema.MAX_OCCURRED_AT - 1)
    if least is not None and (least < schema.MIN_OCCURRED_AT or greatest > last):
        numbers = micros.fill_null(schema.MIN_OCCURRED_AT).to_numpy()
        faults.mark(name, "out_of_range", (numbers < schema.MIN_OCCURRED_AT) | (numbers > last))
    return times.values


_ALLOWED = np.ones((256, 256), dtype=bool)
_ALLOWED[schema.MESSAGE, [schema.AGENT, schema.BOT, schema.SYSTEM]] = False
_ALLOWED[schema.REPLY, schema.CUSTOMER] = False


def _check_author_type(
    name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
) -> pa.Array:
    words, wrong = as_words(array)
    faults.mark(name, "wrong_type", wrong)
    codes = codes_of(words, schema.AUTHOR_TYPES)
    faults.mark(name, "unknown_author_type", codes == UNKNOWN)
    if words.null_count < len(codes):
        faults.mark(name, "author_type_not_allowed", ~_ALLOWED[values["event_type"].to_numpy(), codes])
    return pa.array(codes, mask=codes == ABSENT)


def _check_flag(name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults) -> pa.Array:
    array, wrong = as_flags(array, part.all_text)
    faults.mark(name, "wrong_type", wrong)
    return array


_RANGES = {
    "sentiment": (-1.0, 1.0, None),
    "score": (1.0, 5.0, schema.RATING),
    "duration_seconds": (0.0, schema.MAX_DURATION_SECONDS, schema.WRAP_UP),
}
"""Least and greatest value of each number column, and the event type that must have one."""


def _check_number(
    name: str, array: pa.Array, part: RawRows, values: Mapping[str, pa.Array], faults: _Faults
) -> pa.Array:
    least, greatest, needed_for = _RANGES[name]
    array, wrong = as_numbers(array, part.all_text)
    faults.mark(name, "wrong_type", wrong)
    if array.null_count and needed_for is not None:
        faults.mark(name, "missing", (values["event_type"].to_numpy() == needed_for) & ~valid_rows(array))
    if array.null_count < len(array):
        numbers = raw_values(array)
        faults.mark(name, "out_of_range", ~((numbers >= least) & (numbers <= greatest)) & valid_rows(array))
    return array


_CHECKS: dict[str, _Check] = {
    "event_type": _check_event_type,
    "occurred_at": _check_occurred_at,
    "author_type": _check_author_type,
    "is_automated": _check_flag,
    "sentiment": _check_number,
    "score": _check_number,
    "duration_seconds": _check_number,
}
