"""Reads CSV as RFC 4180 has it: comma, double quotes (which may hold line breaks), a header row.

A quote opens a quoted field only at the field's beginning; anywhere else it is a character like any other.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.sources.blocks import BLOCK_BYTES, MAX_LINE_BYTES, Block
from pipelines.sources.files import InputFile, read_chunks
from pipelines.sources.lines import is_utf8
from transforms.errors import UserError
from transforms.raw_rows import RawRows, Rows, Unreadable
from transforms.schema import EVENT_COLUMNS, RAW_LIMIT
from transforms.times import Mask

COLUMN_NAMES = tuple(column.name for column in EVENT_COLUMNS)
REQUIRED_COLUMNS = tuple(column.name for column in EVENT_COLUMNS if not column.nullable)

_QUOTED = rb'(?:"[^"]*+(?:""[^"]*+)*+(?:"|(\Z)))?+'
_RECORD = re.compile(rb"(?:%b[^,\n]*+,)*+%b[^,\n]*+\n?" % (_QUOTED, _QUOTED))
_BARE_RETURN = re.compile(rb"\r(?!\n)")


def blocks(file: InputFile) -> Iterator[Block]:
    """Whole records of a CSV file with the contract's columns, about BLOCK_BYTES a block.

    Raises:
      UserError: there is no header row, or the compressed file is damaged.
    """
    yield from csv_blocks(file, REQUIRED_COLUMNS, COLUMN_NAMES)


def csv_blocks(file: InputFile, required: Collection[str], known: Collection[str]) -> Iterator[Block]:
    """Whole records of a CSV file, about BLOCK_BYTES a block; each carries the header.

    A record that is too long, or whose quotes never close, is given up: its first line becomes a block of its own
    (`is_oversize`) and reading goes on with the line after it.

    Args:
      file: the file.
      required: columns of which the header names at least one, else the file has none.
      known: columns that must not come twice.

    Raises:
      UserError: there is no header row, or the compressed file is damaged.
    """
    header: tuple[str, ...] = ()
    for first, text, is_whole in _records(file):
        if not header:
            header, size = _header(file.path, first, text, is_whole, required, known)
            first, text = first + text.count(b"\n", 0, size), text[size:]
        if text and header:
            yield Block(file.path, "csv", first, text, header=header, is_oversize=not is_whole)


def _records(file: InputFile) -> Iterator[tuple[int, bytes, bool]]:
    """Texts of whole records with the number of their first line; (…, False) for the first line of one given up."""
    first, rest, is_skipping = 1, b"", False
    for chunk in read_chunks(file, BLOCK_BYTES):
        if is_skipping:
            if b"\n" not in chunk:
                continue
            chunk, first, is_skipping = chunk[chunk.index(b"\n") + 1 :], first + 1, False
        rest += chunk
        ends, _ = _record_ends(rest)
        if len(ends):
            cut = int(ends[-1]) + 1
            yield first, rest[:cut], True
            first, rest = first + rest.count(b"\n", 0, cut), rest[cut:]
        if len(rest) > MAX_LINE_BYTES:
            line, newline, rest = rest.partition(b"\n")
            yield first, line[: 4 * RAW_LIMIT], False
            is_skipping = not newline
            first += len(newline)
    while rest:
        ends, is_open = _record_ends(rest)
        if not is_open:
            yield first, rest, True
            return
        if len(ends):
            cut = int(ends[-1]) + 1
            yield first, rest[:cut], True
            first, rest = first + rest.count(b"\n", 0, cut), rest[cut:]
        line, newline, rest = rest.partition(b"\n")
        yield first, line[: 4 * RAW_LIMIT], False
        first += len(newline)


def _record_ends(text: bytes) -> tuple[Rows, bool]:
    """Places of the line breaks that end records, in text that begins with a record; and whether a quote is open."""
    data = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(data == ord("\n"))
    if b'"' not in text:
        return breaks, False
    quotes = np.flatnonzero(data == ord('"'))
    opening = quotes[::2]
    before = data[opening - 1]
    if ((opening == 0) | (before == ord(",")) | (before == ord("\n")) | (before == ord('"'))).all():
        # Every second quote opens a field or is the second of a doubled one: then counting quotes is enough.
        return breaks[np.searchsorted(quotes, breaks) % 2 == 0], len(quotes) % 2 == 1
    spans = ((*record.span(), record[2] is not None) for record in _RECORD.finditer(text))
    found = [(end, is_open) for start, end, is_open in spans if start < end]
    ends = np.array([end - 1 for end, is_open in found if text[end - 1] == ord("\n") and not is_open], np.int64)
    return ends, any(is_open for _, is_open in found)


def _header(
    path: str, first: int, text: bytes, is_whole: bool, required: Collection[str], known: Collection[str]
) -> tuple[tuple[str, ...], int]:
    """Column names in the first record of a text, and the bytes up to its end; no names where all is blank."""
    start = len(text) - len(text.lstrip(b" \t\r\n"))
    if start == len(text):
        return (), start
    ends, _ = _record_ends(text[start:])
    size = start + (int(ends[0]) + 1 if len(ends) else len(text) - start)
    try:
        names = tuple(next(csv.reader([text[start:size].decode().rstrip("\r\n")]))) if is_whole else ()
    except (UnicodeDecodeError, csv.Error):
        names = ()
    line = first + text.count(b"\n", 0, start)
    if not set(required) & set(names):
        raise UserError(
            f"Expected a header row with the columns {', '.join(required)}, but line {line} of {path} names none of"
            " them: add the header row, or give the right --format or --source."
        )
    twice = [name for name in names if name in known and names.count(name) > 1]
    if twice:
        raise UserError(f"Expected each column once, but line {line} of {path} names {twice[0]} twice: rename one.")
    return names, size


@dataclass(frozen=True)
class Records:
    """Records of a CSV text: their bytes, and how their fields are called.

    Attributes:
      text: the text.
      starts, ends: where each record begins and ends in it.
      header: column names.
    """

    text: bytes
    starts: Rows
    ends: Rows
    header: tuple[str, ...]

    def take(self, rows: Rows | Mask) -> Records:
        """Some of the records."""
        return Records(self.text, self.starts[rows], self.ends[rows], self.header)

    def record(self, row: int) -> bytes:
        """The bytes of one record."""
        return self.text[self.starts[row] : self.ends[row]]

    def restate(self, rows: Rows) -> list[str]:
        """JSON text of the records with these places, without `text`; all values are text."""
        names = {str(place): name for place, name in enumerate(self.header) if name != "text"}
        columns = self.take(rows).parse(list(names))[0].to_pydict()
        fields = zip(*(columns[place] for place in names), strict=True)
        return [json.dumps(dict(zip(names.values(), row, strict=True)), ensure_ascii=False) for row in fields]

    def parse(self, places: list[str]) -> tuple[pa.Table, Rows]:
        """Fields of the records, as text, and which records (from 0) have not as many as the header.

        Args:
          places: which fields: their numbers from 0, as text; they are the names in the result as well.

        Raises:
          ArrowInvalid: text is not UTF-8.
        """
        text = b"\n".join(self.record(row) for row in range(len(self.starts))) if self._has_gaps() else self._text()
        invalid: list[int] = []

        def note(row: pyarrow.csv.InvalidRow) -> str:
            invalid.append(row.number - 1)
            return "skip"

        everything = [str(place) for place in range(len(self.header))]
        if not text:
            return pa.table({place: pa.array([], pa.string()) for place in places}), np.empty(0, np.int64)
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(column_names=everything, use_threads=False, block_size=len(text) + 1),
            pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(everything, pa.string()), include_columns=places, null_values=[]
            ),
        )
        return table, np.array(invalid, np.int64)

    def _text(self) -> pa.Buffer | bytes:
        if not len(self.starts):
            return b""
        start = int(self.starts[0])
        return pa.py_buffer(self.text).slice(start, int(self.ends[-1]) - start)

    def _has_gaps(self) -> bool:
        """Whether something other than line breaks lies between the records."""
        return bool((self.starts[1:] - self.ends[:-1] > 2).any())


@dataclass(frozen=True)
class Fields:
    """What a block of CSV holds: columns of text for its readable records, and the others."""

    columns: dict[str, pa.Array]
    positions: Rows
    records: Records
    unreadable: Unreadable


def read_fields(block: Block, names: Collection[str]) -> Fields:
    """Reads the columns with these names, as text; one that the header lacks is left out."""
    assert isinstance(block.payload, bytes)
    text = block.payload
    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    ends = np.array([], np.int64) if block.is_oversize else _record_ends(text)[0]
    if not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)
    positions = block.first_row + np.searchsorted(breaks, starts)
    returns = (starts < ends) & (np.frombuffer(text, np.uint8)[ends - 1] == ord("\r"))
    ends = ends - returns
    records, positions = _without_blank(Records(text, starts, ends, block.header), positions)
    places = {str(place): name for place, name in enumerate(block.header) if name in names}
    bad = np.full(len(positions), block.is_oversize)
    if not bad.any() and not is_utf8(pa.py_buffer(text)):
        bad = np.array([not is_utf8(pa.py_buffer(records.record(row))) for row in range(len(positions))])
    table, invalid = records.take(~bad).parse(list(places))
    if table.num_rows + len(invalid) != (~bad).sum():
        bad |= np.array([_breaks_off(records, row) for row in range(len(positions))])
        table, invalid = records.take(~bad).parse(list(places))
    bad[np.flatnonzero(~bad)[invalid]] = True
    raw = tuple(
        records.record(row)[: 4 * RAW_LIMIT].decode("utf-8", "replace")[:RAW_LIMIT]
        for row in np.flatnonzero(bad).tolist()
    )
    columns = {name: table.column(place).combine_chunks() for place, name in places.items()}
    return Fields(columns, positions[~bad], records.take(~bad), Unreadable(positions[bad], raw))


def _without_blank(records: Records, positions: Rows) -> tuple[Records, Rows]:
    full = records.starts < records.ends
    first = np.frombuffer(records.text, np.uint8)[records.starts.clip(max=len(records.text) - 1)]
    for row in np.flatnonzero(full & (first <= ord(" "))).tolist():
        full[row] = bool(records.record(row).strip(b" \t\r"))
    return records.take(full), positions[full]


def _breaks_off(records: Records, row: int) -> bool:
    """Whether a carriage return outside quotes, which Arrow takes for a line break, tears a record."""
    if not _BARE_RETURN.search(records.record(row)):
        return False
    table, invalid = records.take(np.array([row])).parse(["0"])
    return bool(table.num_rows + len(invalid) != 1)


def read(block: Block) -> list[RawRows]:
    """Reads the records of a block that has the contract's columns."""
    fields = read_fields(block, set(COLUMN_NAMES) - {"text"})
    unknown = tuple(sorted(set(block.header) - set(COLUMN_NAMES) - {""}))
    return [
        RawRows(
            block.source,
            fields.columns,
            fields.positions,
            fields.records,
            all_text=True,
            unreadable=fields.unreadable,
            unknown_columns=unknown,
        )
    ]
