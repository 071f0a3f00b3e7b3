"""Cuts text files into blocks of whole lines, and finds the lines of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.sources.blocks import BLOCK_BYTES, MAX_LINE_BYTES, Block
from pipelines.sources.files import InputFile, damaged, decompressed, open_stored, read_chunks
from transforms.errors import UserError
from transforms.raw_rows import Rows
from transforms.schema import RAW_LIMIT
from transforms.times import Mask

SAMPLE_BYTES = 1 << 20
"""From so much text the number of lines is estimated."""

SPACES = b" \t\r"
BRACE, CLOSING_BRACE = ord("{"), ord("}")


@dataclass(frozen=True)
class Lines:
    """The lines of some text that are not blank, without spaces around them.

    Attributes:
      text: the text.
      starts, ends: where each line begins and ends in it.
      numbers: the number of each line in its file.
    """

    text: bytes
    starts: Rows
    ends: Rows
    numbers: Rows

    @classmethod
    def of(cls, text: bytes, first_number: int) -> Lines:
        """Finds the lines of a text; `first_number` is the number of its first line."""
        data = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        if not text.endswith(b"\n"):
            ends = np.append(ends, len(text))
        starts = np.append(0, ends[:-1] + 1)
        numbers = np.arange(first_number, first_number + len(ends), dtype=np.int64)
        padded = np.flatnonzero(starts < ends)
        padded = padded[(data[starts[padded]] <= ord(" ")) | (data[ends[padded] - 1] <= ord(" "))]
        if len(padded) and (data[ends[padded] - 1] == ord("\r")).all():
            ends[padded] -= 1
            padded = padded[starts[padded] < ends[padded]]
            padded = padded[(data[starts[padded]] <= ord(" ")) | (data[ends[padded] - 1] <= ord(" "))]
        for row in padded.tolist():
            line = text[starts[row] : ends[row]]
            starts[row] += len(line) - len(line.lstrip(SPACES))
            ends[row] = starts[row] + len(line.strip(SPACES) if line.strip() else b"")
        full = starts < ends
        return cls(text, starts[full], ends[full], numbers[full])

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self.starts)

    def line(self, row: int) -> bytes:
        """One line."""
        return self.text[self.starts[row] : self.ends[row]]

    def piece(self, rows: Rows) -> pa.Buffer:
        """The text of some lines, in ascending order; not copied where they lie together."""
        text = pa.py_buffer(self.text)
        ends = np.append(np.flatnonzero(np.diff(rows) != 1), len(rows) - 1)
        begins = self.starts[rows[np.append(0, ends[:-1] + 1)]]
        parts = [text[low:high] for low, high in zip(begins.tolist(), self.ends[rows[ends]].tolist(), strict=True)]
        return parts[0] if len(parts) == 1 else pa.py_buffer(b"\n".join(parts))

    def braced(self) -> Mask:
        """Which lines begin and end with a curly brace."""
        data = np.frombuffer(self.text, np.uint8)
        return np.asarray((data[self.starts] == BRACE) & (data[self.ends - 1] == CLOSING_BRACE))

    def utf8(self) -> Mask:
        """Which lines are valid UTF-8."""
        if is_utf8(pa.py_buffer(self.text)):
            return np.ones(len(self), dtype=bool)
        return np.array([is_utf8(pa.py_buffer(self.line(row))) for row in range(len(self))], dtype=bool)


def is_utf8(text: pa.Buffer) -> bool:
    """Whether text is valid UTF-8."""
    try:
        offsets = pa.py_buffer(np.array([0, len(text)], np.int64))
        pa.LargeStringArray.from_buffers(1, offsets, text).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def line_blocks(file: InputFile) -> Iterator[Block]:
    """Whole lines of a text file, about BLOCK_BYTES a block; a longer line has a block of its own.

    A line longer than MAX_LINE_BYTES becomes a block that has but its beginning.

    Raises:
      UserError: the compressed file is damaged.
    """
    first, waiting, size, skipping = 1, list[bytes](), 0, False
    for chunk in read_chunks(file, BLOCK_BYTES):
        if skipping:
            end = chunk.find(b"\n")
            if end < 0:
                continue
            chunk, skipping = chunk[end + 1 :], False
            first += 1
        end = chunk.rfind(b"\n") + 1
        if end:
            text = b"".join([*waiting, chunk[:end]])
            yield Block(file.path, file.format, first, text)
            first += text.count(b"\n")
            waiting, size = [], 0
        if len(chunk) > end:
            waiting.append(chunk[end:])
            size += len(chunk) - end
        if size > MAX_LINE_BYTES:
            beginning = b"".join(waiting)[: 4 * RAW_LIMIT]
            yield Block(file.path, file.format, first, beginning, is_oversize=True)
            waiting, size, skipping = [], 0, True
    if size:
        yield Block(file.path, file.format, first, b"".join(waiting))


def estimate_rows(file: InputFile) -> int:
    """About how many lines a text file has, from those at its beginning."""
    with open_stored(file.path) as stored:
        stream = stored if file.compression == "none" else decompressed(stored, file.compression)
        try:
            text = stream.read(SAMPLE_BYTES)
        except (OSError, pa.ArrowException) as error:
            raise UserError(damaged(file.path, "its beginning", error)) from error
        return int((text.count(b"\n") + 1) * max(1.0, file.size / max(1, stored.tell())))
