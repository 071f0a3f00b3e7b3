"""Reads NDJSON: one JSON object a line.

Arrow parses all lines of a block at once, with one type a column. Where a line does not fit in, it is set aside and the
lines around it are tried again; what is set aside is parsed line by line. So a few bad lines cost little, and what is
read does not depend on how the file was cut.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile
from pipelines.sources.json_rows import (
    ARROW_TYPES,
    COLUMN_TYPES,
    USUAL_TYPES,
    WrittenNumber,
    parse_at_once,
    parse_object,
    typed_column,
)
from pipelines.sources.lines import Lines, line_blocks
from transforms.raw_rows import RawRows, Rows, Unreadable
from transforms.schema import RAW_LIMIT
from transforms.times import Mask

SAMPLE_LINES = 64
"""From so many lines of a block its columns' types are guessed."""

FEW_LINES = 32
"""So many lines are parsed singly in less time than Arrow takes to begin."""

MANY_LINES = 1_024
"""Where lines that do not fit in follow each other closely, up to so many are parsed singly without asking Arrow."""


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
    row = parse_object(line) or {}
    row.pop("text", None)
    if isinstance(row.get("occurred_at"), WrittenNumber):
        row["occurred_at"] = float(str(row["occurred_at"]))
    try:
        text = json.dumps(row, ensure_ascii=False)
    except RecursionError:
        text = json.dumps({name: row[name] for name in COLUMN_TYPES if name in row}, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def read(block: Block) -> list[RawRows]:
    """Reads the lines of a block."""
    assert isinstance(block.payload, bytes)
    if block.is_oversize:
        line = Lines(block.payload, np.array([0]), np.array([len(block.payload)]), np.array([block.first_row]))
        return [_part(block.source, line, np.empty(0, np.int64), {}, {}, [0])]
    lines = Lines.of(block.payload, block.first_row)
    fit = lines.braced() & lines.utf8()
    rows = np.flatnonzero(fit)
    types, unknown = _guessed_types(lines, rows)
    tables, parsed, others = _read_at_once(lines, rows, types)
    parts: list[RawRows] = []
    if tables:
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
        arrays = {name: table.column(name).chunk(0) for name in table.column_names}
        taken = rows[np.concatenate(parsed)]
        parts.append(
            RawRows(block.source, arrays, lines.numbers[taken], JsonLines(lines, taken), unknown_columns=unknown)
        )
    singly = np.sort(np.concatenate([np.flatnonzero(~fit), *(rows[other] for other in others)]))
    if len(singly):
        parts.append(_read_singly(block.source, lines, singly))
    return parts


def _read_at_once(
    lines: Lines, rows: Rows, types: dict[str, pa.DataType]
) -> tuple[list[pa.Table], list[Rows], list[Rows]]:
    """Lets Arrow parse as many of the rows as it can.

    Every one of the rows begins with a brace and ends with one, so that no JSON value can span two of them: as many
    values as rows means one value a row.

    Returns:
      Tables, the places (in `rows`) of their rows, and the places of rows to be parsed singly.
    """
    tables: list[pa.Table] = []
    parsed: list[Rows] = []
    others: list[Rows] = []
    pieces, aside = [(0, len(rows))], FEW_LINES
    while pieces:
        start, stop = pieces.pop()
        if stop - start <= FEW_LINES:
            others.append(np.arange(start, stop))
            continue
        found = parse_at_once(lines.piece(rows[start:stop]), types)
        if isinstance(found, pa.Table) and found.num_rows == stop - start:
            tables.append(found)
            parsed.append(np.arange(start, stop))
            aside = FEW_LINES
        elif not isinstance(found, int) or start + found >= stop:
            edges = np.linspace(start, stop, 9).astype(int).tolist()
            pieces += list(itertools.pairwise(edges))[::-1]
        else:
            # The row that does not fit in goes aside, with its neighbours where the last one was near as well.
            failed = start + found
            resume = failed + 1
            if found < FEW_LINES:
                failed, resume = start, max(resume, min(stop, start + aside))
                aside = min(2 * aside, MANY_LINES)
            others.append(np.arange(failed, resume))
            pieces += [piece for piece in ((resume, stop), (start, failed)) if piece[0] < piece[1]]
    return tables, parsed, others


def _guessed_types(lines: Lines, rows: Rows) -> tuple[dict[str, pa.DataType], tuple[str, ...]]:
    """Arrow types of the contract's columns, those that most lines of a sample have; and names of other columns."""
    kinds: dict[str, Counter[type]] = {}
    for row in rows[:: max(1, len(rows) // SAMPLE_LINES)].tolist():
        for name, value in (parse_object(lines.line(row)) or {}).items():
            kinds.setdefault(name, Counter())[type(value)] += 1
    types = dict(USUAL_TYPES)
    for name in types:
        found = kinds.get(name, Counter())
        del found[type(None)]
        if not found:
            continue
        kind = found.most_common(1)[0][0]
        if kind in (int, float) and COLUMN_TYPES[name] == pa.float64():
            types[name] = pa.float64()
        elif kind is not float:
            # As doubles, whole numbers could not be told from others.
            types[name] = ARROW_TYPES.get(kind, types[name])
    return types, tuple(sorted(set(kinds) - set(types)))


def _read_singly(source: str, lines: Lines, rows: Rows) -> RawRows:
    read, unreadable = list[int](), list[int]()
    values = list[dict[str, object]]()
    for row in rows.tolist():
        found = parse_object(lines.line(row))
        if found is None:
            unreadable.append(row)
        else:
            read.append(row)
            values.append(found)
    columns: dict[str, pa.Array] = {}
    faults: dict[tuple[str, str], Mask] = {}
    names = {name for value in values for name in value}
    for name in COLUMN_TYPES.keys() & names:
        columns[name] = typed_column(name, [row.get(name) for row in values], faults)
    unknown = tuple(sorted(names - COLUMN_TYPES.keys()))
    return _part(source, lines, np.array(read, np.int64), columns, faults, unreadable, unknown)


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
