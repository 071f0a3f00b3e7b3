"""Reads moments: what came as text, number or timestamp becomes whole microseconds of UTC.

The rules are those of `occurred_at`: text is an ISO 8601 date and time in the extended form (T or space, seconds
optional) with an offset or Z; a number counts milliseconds since the epoch; what is finer than 1 µs is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import valid_rows
from transforms.schema import MAX_OCCURRED_AT, TIMESTAMP

Mask = npt.NDArray[np.bool_]
Micros = npt.NDArray[np.int64]

ISO_TIME = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[T ]([01]\d|2[0-3]):[0-5]\d"
    r"(:[0-5]\d(\.\d+)?)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)$"
)
"""The accepted text, but for days that their month does not have."""

IMPOSSIBLE_DAY = r"^\d{4}-(02-3|(0[2469]|11)-31)"

NUMBER_TEXT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

OUTSIDE = -1
"""Microseconds given to a number that no timestamp can hold; like them, it is out of range."""

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Times:
    """Moments read from a column.

    Attributes:
      values: timestamp[us, UTC], one per row; null where nothing came or what came is no time.
      wrong_type: rows whose value can be no time at all; None where there are none.
      bad_time: rows whose value should be a time but is none; None where there are none.
    """

    values: pa.Array
    wrong_type: Mask | None = None
    bad_time: Mask | None = None


def parse_times(array: pa.Array, digits_are_numbers: bool = False) -> Times:
    """Reads a column of moments, whatever its Arrow type.

    Args:
      array: timestamps of any unit, numbers (epoch milliseconds), text, or anything else (then no time).
      digits_are_numbers: text that spells a number is epoch milliseconds, as in CSV.

    Returns:
      The moments and which rows are at fault. A timestamp without a zone, or a date, is a bad time, like text
      without an offset.
    """
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return Times(_from_timestamps(array))
    if pa.types.is_null(kind):
        return Times(pa.nulls(len(array), TIMESTAMP))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Times(pa.nulls(len(array), TIMESTAMP), bad_time=valid_rows(array))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Times(_from_milliseconds(array))
    if pa.types.is_dictionary(kind):
        return parse_times(array.dictionary_decode(), digits_are_numbers)
    if is_text(kind):
        return _from_text(array.cast(pa.string()), digits_are_numbers)
    return Times(pa.nulls(len(array), TIMESTAMP), wrong_type=valid_rows(array))


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def to_timestamps(micros: Micros, valid: Mask | None = None) -> pa.Array:
    """Timestamps from microseconds since the epoch; null where not valid."""
    return pa.array(micros, pa.int64(), mask=None if valid is None else ~valid).view(TIMESTAMP)


def _from_timestamps(array: pa.Array) -> pa.Array:
    unit = array.type.unit
    if unit == "us":
        return array.cast(TIMESTAMP)
    valid = None if array.null_count == 0 else valid_rows(array)
    ticks = array.view(pa.int64()).fill_null(0).to_numpy()
    if unit == "ns":
        return to_timestamps(ticks // 1_000, valid)
    return to_timestamps(_scaled(ticks, _UNITS[unit]), valid)


def _scaled(ticks: npt.NDArray[np.int64], factor: int) -> Micros:
    """Ticks in microseconds, without overflow: what lies outside the range of occurred_at becomes OUTSIDE."""
    inside = (ticks >= 0) & (ticks < MAX_OCCURRED_AT // factor)
    return np.where(inside, np.where(inside, ticks, 0) * factor, OUTSIDE)


def _from_milliseconds(array: pa.Array) -> pa.Array:
    valid = None if array.null_count == 0 else valid_rows(array)
    if pa.types.is_integer(array.type) and array.type != pa.uint64():
        return to_timestamps(_scaled(array.cast(pa.int64()).fill_null(0).to_numpy(), 1_000), valid)
    numbers = array.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
    inside = (numbers >= 0) & (numbers < MAX_OCCURRED_AT / 1_000)
    numbers = np.where(inside, numbers, 0.0)
    # The nearest microsecond is right where the number is its closest double ("….001" is 1 µs though the double
    # is a little less); else the fraction is finer than 1 µs and is cut off.
    micros = np.rint(numbers * 1_000)
    micros -= micros / 1_000 > numbers
    return to_timestamps(np.where(inside, micros.astype(np.int64), OUTSIDE), valid)


def _from_text(array: pa.Array, digits_are_numbers: bool) -> Times:
    if pc.min(pc.binary_length(array)).as_py() == 0:
        array = pc.if_else(pc.equal(array, ""), None, array)
    numbers = None
    if digits_are_numbers:
        spelled = pc.match_substring_regex(array, NUMBER_TEXT)
        if pc.any(spelled).as_py():
            numbers = _from_number_text(pc.if_else(spelled, array, None))
            array = pc.if_else(spelled, None, array)
    times = _from_iso_text(array)
    if numbers is None:
        return times
    return Times(pc.coalesce(times.values, numbers), bad_time=times.bad_time)


def _from_number_text(array: pa.Array) -> pa.Array:
    try:
        return _from_milliseconds(array.cast(pa.int64()))
    except pa.ArrowInvalid:
        pass
    # Digits are cut, not rounded: a double cannot tell 0.9999 ms from 1 ms at today's times.
    plain = pc.match_substring_regex(array, r"^\d{1,15}(\.\d*)?$")
    digits = pc.replace_substring_regex(pc.if_else(plain, array, None), r"^(\d+)\.?(\d{0,3}).*$", r"\1.\2000")
    digits = pc.replace_substring_regex(digits, r"^(\d+)\.(\d{3}).*$", r"\1\2")
    others = _from_milliseconds(pc.if_else(plain, None, array).cast(pa.float64()))
    return pc.coalesce(digits.cast(pa.int64()).view(TIMESTAMP), others)


def _from_iso_text(array: pa.Array) -> Times:
    try:
        # Arrow reads nearly the same grammar, in one pass; it also takes hours without minutes.
        values = array.cast(TIMESTAMP)
        if _have_minutes(array):
            return Times(values)
    except pa.ArrowInvalid:
        pass
    valid = valid_rows(array)
    good = pc.match_substring_regex(array, ISO_TIME)
    good = pc.and_(good, pc.invert(pc.match_substring_regex(array, IMPOSSIBLE_DAY)))
    good = np.asarray(good.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
    good &= ~_leap_days_out_of_place(array, good)
    text = pc.if_else(pa.array(good), array, None)
    text = pc.replace_substring_regex(text, r"\.(\d{1,6})\d*", r".\1")
    bad = valid & ~good
    return Times(text.cast(TIMESTAMP), bad_time=bad if bad.any() else None)


def _have_minutes(array: pa.Array) -> bool:
    """Whether every text, each known to be a time for Arrow, has a colon after the hour."""
    if array.null_count == len(array):
        return True
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4)[:-1]
    if array.null_count:
        offsets = offsets[valid_rows(array)]
    return bool((np.frombuffer(array.buffers()[2], np.uint8)[offsets + 13] == ord(":")).all())


def _leap_days_out_of_place(array: pa.Array, good: Mask) -> Mask:
    """Rows, among those that look good, that name 29 February of a year that has none."""
    misplaced = np.zeros(len(array), dtype=bool)
    leap = pc.fill_null(pc.equal(pc.utf8_slice_codeunits(array, 5, 10), "02-29"), False)
    rows = np.flatnonzero(good & leap.to_numpy(zero_copy_only=False))
    if len(rows):
        years = pc.utf8_slice_codeunits(array.take(pa.array(rows)), 0, 4).cast(pa.int64()).to_numpy()
        misplaced[rows] = (years % 4 != 0) | ((years % 100 == 0) & (years % 400 != 0))
    return misplaced
