"""Reads messages of a topic: each is one JSON object (a row) or an array of them (a row each).

Messages are joined to lines, so that the reader of NDJSON takes them apart: Arrow parses what fits in at once, and the
few that do not fit are parsed singly. Whatever a message holds, it never stops the run: what can not be read becomes an
unreadable row of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipelines.sources import ndjson
from pipelines.sources.blocks import BLOCK_BYTES, MAX_LINE_BYTES, Block
from transforms.raw_rows import RawRows, Rows, Unreadable
from transforms.schema import RAW_LIMIT

_OPENING = ord("[")
_MARK = b"\xef\xbb\xbf"
_SPACES = re.compile(r"[ \t\n\r]*")
# Numbers are left as text: their values are not needed here, and a number can be too long for Python.
_SCAN = json.JSONDecoder(parse_int=str, parse_float=str).scan_once


@dataclass(frozen=True)
class _Lines:
    """Messages as lines.

    Attributes:
      lines: one JSON value each, without line ends in it.
      messages: of which message each line is, from 0.
      elements: which element of its message's array each line is, from 1; 1 where the message is no array.
      originals: lines that were changed, as they came.
    """

    lines: list[bytes]
    messages: Rows
    elements: Rows
    originals: dict[int, bytes]


def read_messages(topic: str, partition: int, offsets: Rows, values: Sequence[bytes | None]) -> list[RawRows]:
    """Reads messages of one partition.

    A message that is an object is a row; of an array, each element is one. An empty array holds no row. Messages
    without a value, or whose value is no JSON, no object, no UTF-8, or longer than a line of NDJSON may be, are
    unreadable rows, and so is an element that is no object; an array with an error in it is one unreadable row.

    Args:
      topic: name of the topic.
      partition: number of the partition.
      offsets: int64, offset of each message; there may be gaps between them.
      values: value of each message.

    Returns:
      Rows for `parse_events`. Place of a row: its topic, partition and offset; the source of an array's 2nd, 3rd …
      element is `topic[2]`, `topic[3]` …, so that no two rows have the same place.
    """
    parts: list[RawRows] = []
    for start, stop in _pieces(values):
        parts += _read_piece(topic, partition, offsets[start:stop], values[start:stop])
    return parts


def _pieces(values: Sequence[bytes | None]) -> Iterator[tuple[int, int]]:
    """Ranges of messages that have about BLOCK_BYTES together."""
    total = np.cumsum([len(value) if value else 0 for value in values])
    start = 0
    while start < len(values):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + BLOCK_BYTES, "right")))
        yield start, stop
        start = stop


def _read_piece(topic: str, partition: int, offsets: Rows, values: Sequence[bytes | None]) -> list[RawRows]:
    lines = _as_lines(values)
    parts = ndjson.read(Block(topic, "ndjson", 0, b"\n".join(lines.lines)))
    found: list[RawRows] = []
    seen = np.zeros(len(lines.lines), dtype=bool)
    for part in parts:
        unreadable = part.unreadable.positions
        seen[part.positions] = seen[unreadable] = True
        raw = part.unreadable.raw
        if lines.originals:
            given = zip(unreadable.tolist(), raw, strict=True)
            raw = tuple(_beginning(lines.originals[row]) if row in lines.originals else text for row, text in given)
        found.append(_placed(part, topic, partition, offsets, lines, part.positions, Unreadable(unreadable, raw)))
    if not seen.all():
        # Empty messages, which are no lines to the reader of NDJSON, and those that were too long to be given to it.
        rows = np.flatnonzero(~seen)
        raw = tuple(_beginning(values[row] or b"") for row in lines.messages[rows].tolist())
        empty = RawRows(topic, {}, np.empty(0, np.int64), _Nothing())
        found.append(_placed(empty, topic, partition, offsets, lines, empty.positions, Unreadable(rows, raw)))
    return found


class _Nothing:
    """Originals of no rows."""

    def restate(self, rows: Rows) -> list[str]:
        """No text, since there is no row."""
        return []


def _placed(
    part: RawRows, topic: str, partition: int, offsets: Rows, lines: _Lines, rows: Rows, unreadable: Unreadable
) -> RawRows:
    """A part whose places are those of Kafka instead of lines."""
    elements = lines.elements[np.append(rows, unreadable.positions)]
    source: str | pa.DictionaryArray = topic
    if len(elements) and elements.max() > 1:
        numbers, codes = np.unique(elements, return_inverse=True)
        names = [topic if number == 1 else f"{topic}[{number}]" for number in numbers.tolist()]
        source = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names))
    return replace(
        part,
        source=source,
        partition=partition,
        positions=offsets[lines.messages[rows]],
        unreadable=Unreadable(offsets[lines.messages[unreadable.positions]], unreadable.raw),
    )


def _beginning(value: bytes) -> str:
    return value[: 4 * RAW_LIMIT].decode("utf-8", "replace")[:RAW_LIMIT]


def _as_lines(values: Sequence[bytes | None]) -> _Lines:
    """Makes lines of messages; those without a value, and those that are too long, become empty ones."""
    lines = [value if value is not None and len(value) <= MAX_LINE_BYTES else b"" for value in values]
    messages = np.arange(len(lines), dtype=np.int64)
    elements = np.ones(len(lines), np.int64)
    arrays = {row: _elements(lines[row]) for row in _arrays(lines)}
    arrays = {row: found for row, found in arrays.items() if found is not None}
    if arrays:
        counts = elements.copy()
        counts[list(arrays)] = [len(found) for found in arrays.values()]
        messages = np.repeat(messages, counts)
        elements = np.arange(len(messages)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        lines = [line for row, whole in enumerate(lines) for line in arrays.get(row, (whole,))]
    originals = {row: line for row, line in enumerate(lines) if b"\n" in line}
    for row, line in originals.items():
        # As a line end, a tab is a space between values, and not allowed inside of text.
        lines[row] = line.replace(b"\n", b"\t")
    return _Lines(lines, messages, elements, originals)


def _arrays(lines: list[bytes]) -> list[int]:
    """Which lines may be arrays."""
    firsts = np.frombuffer(b"".join([line[:1] or b"\n" for line in lines]), np.uint8)
    rows = np.flatnonzero((firsts == _OPENING) | (firsts <= ord(" ")) | (firsts == _MARK[0]))
    return [row for row in rows.tolist() if lines[row].removeprefix(_MARK).lstrip()[:1] == b"["]


def _elements(value: bytes) -> list[bytes] | None:
    """The elements of a JSON array as they are written; None where it is none."""
    found: list[bytes] = []
    try:
        text = value.decode("utf-8-sig").strip(" \t\n\r")
        place = _after_spaces(text, 1)
        is_open = text[place] != "]"
        while is_open:
            end = _SCAN(text, place)[1]
            found.append(text[place:end].encode())
            place = _after_spaces(text, end)
            is_open = text[place] == ","
            if is_open:
                place = _after_spaces(text, place + 1)
    except (ValueError, IndexError, StopIteration, RecursionError):
        return None
    return found if text[place:] == "]" else None


def _after_spaces(text: str, place: int) -> int:
    found = _SPACES.match(text, place)
    return found.end() if found else place
