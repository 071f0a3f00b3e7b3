"""Parses JSON objects: many at once into a table by Arrow, or one into Python values, by one and the same grammar."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from transforms.schema import EVENT_COLUMNS
from transforms.times import Mask, parse_times

COLUMN_TYPES = {column.name: column.type for column in EVENT_COLUMNS}
USUAL_TYPES = dict(COLUMN_TYPES, occurred_at=pa.string())
ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}

PYTHON_TYPES: dict[pa.DataType, set[type]] = {
    pa.string(): {str, int},
    pa.float64(): {int, float},
    pa.bool_(): {bool},
}
"""What each column of the contract, occurred_at apart, takes."""

_FAILED_ROW = re.compile(r"in row (\d+)$")
_ODD_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|-?Inf(?:inity)?\b|-NaN\b')


class WrittenNumber(str):
    """A number with a fraction as it was written: a double would not tell 0.9999 ms from 1 ms at today's times."""

    __slots__ = ()


def parse_at_once(piece: pa.Buffer, types: dict[str, pa.DataType]) -> pa.Table | int | None:
    """Rows of some lines, or the number of the first that does not fit in; None where Arrow does not say which."""
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(piece),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(piece) + 1),
            pyarrow.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        failed = _FAILED_ROW.search(str(error))
        return int(failed[1]) if failed else None


def parse_object(line: bytes) -> dict[str, object] | None:
    """The JSON object of a line, read as Arrow reads it; None where there is none."""
    try:
        text = line.decode().removeprefix("\ufeff")
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            # Arrow also takes -NaN and Inf.
            row = json.loads(_ODD_NUMBERS.sub(_plain_number, text))
        except ValueError:
            row = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 4000 else math.inf)
        except RecursionError:
            return _parse_deep(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and type(row.get("occurred_at")) is float and math.isfinite(row["occurred_at"]):
        plain = _ODD_NUMBERS.sub(_plain_number, text)
        row["occurred_at"] = json.loads(plain, parse_float=WrittenNumber, parse_int=str)["occurred_at"]
    return row if isinstance(row, dict) and not ("\\u" in text and _has_lone_surrogates(row)) else None


def _plain_number(match: re.Match[str]) -> str:
    found = match[0]
    if found.startswith('"'):
        return found
    return "NaN" if "N" in found else found.removesuffix("inity") + "inity"


def _has_lone_surrogates(row: dict[str, object]) -> bool:
    """Whether a column of the contract, `text` apart, holds half a character."""
    try:
        for name, value in row.items():
            if name in COLUMN_TYPES and name != "text" and isinstance(value, str):
                value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _parse_deep(line: bytes) -> dict[str, object] | None:
    """A row nested so deep that Python refuses it: Arrow can, where its columns have the usual types."""
    found = parse_at_once(pa.py_buffer(line), USUAL_TYPES)
    rows: list[dict[str, object]] = found.to_pylist() if isinstance(found, pa.Table) else []
    return rows[0] if len(rows) == 1 else None


def typed_column(name: str, values: list[object], faults: dict[tuple[str, str], Mask]) -> pa.Array:
    """One column of rows that were parsed singly: each value may have a type of its own."""
    kind = COLUMN_TYPES[name]
    kinds = set(map(type, values)) - {type(None)}
    if name == "occurred_at":
        return _moments(values, faults)
    taken = PYTHON_TYPES[kind]
    if not kinds <= taken:
        wrong = np.array([v is not None and type(v) not in taken and v != "" for v in values], dtype=bool)
        if wrong.any():
            faults[name, "wrong_type"] = wrong
        values = [v if type(v) in taken else None for v in values]
    if name == "text":
        return pa.nulls(len(values), kind)
    if kind == pa.string() and int in kinds:
        values = [str(v) if type(v) is int else v for v in values]
    if kind == pa.float64() and int in kinds:
        values = [_double(v) if type(v) is int else v for v in values]
    return pa.array(values, kind)


def _double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _moments(values: list[object], faults: dict[tuple[str, str], Mask]) -> pa.Array:
    texts = parse_times(pa.array([v if type(v) is str else None for v in values], pa.string()))
    # What is no finite number is out of range, as -1 is.
    spelled = [str(v) if type(v) in (int, WrittenNumber) else "-1" if type(v) is float else None for v in values]
    numbers = parse_times(pa.array(spelled, pa.string()), digits_are_numbers=True)
    if texts.bad_time is not None:
        faults["occurred_at", "bad_time"] = texts.bad_time
    wrong = np.array([v is not None and type(v) not in (str, int, float, WrittenNumber) for v in values], dtype=bool)
    if wrong.any():
        faults["occurred_at", "wrong_type"] = wrong
    return pc.coalesce(texts.values, numbers.values)
