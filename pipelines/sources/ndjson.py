"""Reads NDJSON: one JSON object a line.

Arrow parses whole pieces of lines at once. A piece that it cannot take in one go, with one type a column, is cut into
smaller pieces, down to a few hundred lines that are parsed one by one; so a few bad lines cost little, and what is
read does not depend on how the file was cut.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.json

from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile
from pipelines.sources.lines import Lines, line_blocks
from transforms.raw_rows import RawRows, Rows, Unreadable
from transforms.schema import EVENT_COLUMNS, RAW_LIMIT
from transforms.times import Mask, parse_times

PIECES = 8
"""A piece that cannot be parsed at once is cut into this many."""

SINGLE_LINES = 256
"""A piece of so many lines or fewer is parsed line by line."""

SAMPLE_LINES = 64
"""From so many lines of a piece its columns' types are guessed."""

COLUMN_TYPES = {column.name: column.type for column in EVENT_COLUMNS}

_ODD_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|-?Inf(?:inity)?\b|-NaN\b')


class WrittenNumber(str):
    """A number with a fraction as it was written: a double would not tell 0.9999 ms from 1 ms at today's times."""

    __slots__ = ()


def blocks(file: InputFile) -> Iterator[Block]:
    """Whole lines, about BLOCK_BYTES a block.

    Raises:
      UserError: the compressed file is damaged.
    """
    yield from line_blocks(file)


@dataclass(frozen=True)
class JsonLines:
    """Lines of JSON, to be given back for the dead letters."""

    lines: Lines
    rows: Rows

    def restate(self, rows: Rows) -> list[str]:
        """The lines with these places as they came, without `text`."""
        return [_without_text(self.lines.line(row)) for row in self.rows[rows]]


def _without_text(line: bytes) -> str:
    if b'"text"' not in line and b"\\u" not in line:
        return line.decode("utf-8-sig", "replace")
    row = _loads(line) or {}
    row.pop("text", None)
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode()


def read(block: Block) -> list[RawRows]:
    """Reads the lines of a block."""
    assert isinstance(block.payload, bytes)
    if block.is_oversize:
        line = Lines(block.payload, np.array([0]), np.array([len(block.payload)]), np.array([block.first_row]))
        return [_part(block.source, line, np.empty(0, np.int64), {}, {}, [0])]
    lines = Lines.of(block.payload, block.first_row)
    return list(_read_piece(block.source, lines, 0, len(lines)))


def _read_piece(source: str, lines: Lines, start: int, stop: int) -> Iterator[RawRows]:
    if start == stop:
        return
    part = _read_at_once(source, lines, start, stop)
    if part is not None:
        yield part
    elif stop - start <= SINGLE_LINES:
        yield _read_singly(source, lines, start, stop)
    else:
        edges = np.linspace(start, stop, PIECES + 1).astype(int).tolist()
        for low, high in itertools.pairwise(edges):
            yield from _read_piece(source, lines, low, high)


def _read_at_once(source: str, lines: Lines, start: int, stop: int) -> RawRows | None:
    """Lets Arrow parse a piece; None where it cannot, or where rows could not be told from lines.

    Where every line begins with a brace and ends with one, no JSON value can span two lines: so as many rows as
    lines means one row a line.
    """
    if not lines.are_braced(start, stop) or not lines.are_utf8(start, stop):
        return None
    guess = _guessed_types(lines, start, stop)
    if guess is None:
        return None
    types, unknown = guess
    piece = lines.piece(start, stop)
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(piece),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(piece) + 1),
            pyarrow.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != stop - start:
        return None
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    return RawRows(
        source,
        columns,
        lines.numbers[start:stop],
        JsonLines(lines, np.arange(start, stop)),
        unknown_columns=unknown,
    )


def _guessed_types(lines: Lines, start: int, stop: int) -> tuple[dict[str, pa.DataType], tuple[str, ...]] | None:
    """Arrow types of the contract's columns, from a sample of lines, and the names of other columns."""
    kinds: dict[str, set[type]] = {}
    for row in np.unique(np.linspace(start, stop - 1, SAMPLE_LINES).astype(int)):
        for name, value in (_loads(lines.line(row)) or {}).items():
            if value is not None:
                kinds.setdefault(name, set()).add(type(value))
            else:
                kinds.setdefault(name, set())
    types = dict(COLUMN_TYPES, occurred_at=pa.string())
    for name in types:
        found = kinds.get(name, set())
        if found <= {int, float} and found and (float in found or types[name] == pa.float64()):
            types[name] = pa.float64()
        elif found == {int}:
            types[name] = pa.int64()
        elif found == {str}:
            types[name] = pa.string()
        elif found == {bool}:
            types[name] = pa.bool_()
        elif found:
            return None
        if found == {int, float} and COLUMN_TYPES[name] == pa.string():
            return None
    return types, tuple(sorted(set(kinds) - set(types)))


def _loads(line: bytes) -> dict[str, object] | None:
    """The JSON object of a line, read as Arrow reads it; None where there is none."""
    try:
        text = line.decode("utf-8-sig")
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            # Arrow also takes -NaN and Inf.
            row = json.loads(_ODD_NUMBERS.sub(_plain_number, text))
        except ValueError:
            row = json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 4000 else math.inf)
        except RecursionError:
            return _loads_deep(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and type(row.get("occurred_at")) is float and math.isfinite(row["occurred_at"]):
        row["occurred_at"] = json.loads(text, parse_float=WrittenNumber)["occurred_at"]
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


def _loads_deep(line: bytes) -> dict[str, object] | None:
    """A row nested so deep that Python refuses it: Arrow can, where its columns have the usual types."""
    types = dict(COLUMN_TYPES, occurred_at=pa.string())
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(line),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(line) + 1),
            pyarrow.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    row: dict[str, object] = table.to_pylist()[0]
    return row if table.num_rows == 1 else None


def _read_singly(source: str, lines: Lines, start: int, stop: int) -> RawRows:
    rows, parsed, unreadable = [], [], []
    for row in range(start, stop):
        found = _loads(lines.line(row))
        if found is None:
            unreadable.append(row)
        else:
            rows.append(row)
            parsed.append(found)
    columns: dict[str, pa.Array] = {}
    faults: dict[tuple[str, str], Mask] = {}
    for name in COLUMN_TYPES:
        columns[name] = _column(name, [row.get(name) for row in parsed], faults)
    unknown = {name for row in parsed for name in row} - set(COLUMN_TYPES)
    return _part(source, lines, np.array(rows, np.int64), columns, faults, unreadable, tuple(sorted(unknown)))


def _part(
    source: str,
    lines: Lines,
    rows: Rows,
    columns: dict[str, pa.Array],
    faults: dict[tuple[str, str], Mask],
    unreadable: Sequence[int],
    unknown: tuple[str, ...] = (),
) -> RawRows:
    raw = tuple(lines.line(row)[: 4 * RAW_LIMIT].decode("utf-8", "replace")[:RAW_LIMIT] for row in unreadable)
    return RawRows(
        source,
        columns,
        lines.numbers[rows],
        JsonLines(lines, rows),
        faults=faults,
        unreadable=Unreadable(lines.numbers[np.array(unreadable, np.int64)], raw),
        unknown_columns=unknown,
    )


def _column(name: str, values: list[object], faults: dict[tuple[str, str], Mask]) -> pa.Array:
    """One column of rows that were parsed singly: each value may have a type of its own."""
    kind = COLUMN_TYPES[name]
    if name == "occurred_at":
        read = _moments(values, faults)
    elif name == "text":
        read = pa.array([None if v is None or type(v) in (str, int) else "" for v in values], pa.string())
    elif kind == pa.string():
        read = pa.array([v if type(v) is str else str(v) if type(v) is int else None for v in values], kind)
    elif kind == pa.float64():
        read = pa.array([_number(v) for v in values], kind)
    else:
        read = pa.array([v if type(v) is bool else None for v in values], kind)
    missed = [
        v is not None and v != "" and not valid for v, valid in zip(values, read.is_valid().to_pylist(), strict=True)
    ]
    if name == "text":
        missed = [v is not None and type(v) not in (str, int) for v in values]
        read = pa.nulls(len(values), kind)
    if any(missed) and name != "occurred_at":
        faults[name, "wrong_type"] = np.array(missed)
    return read


def _number(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


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
    return pa.compute.coalesce(texts.values, numbers.values)
