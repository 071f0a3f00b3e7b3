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

    def piece(self, start: int, stop: int) -> pa.Buffer:
        """The text of the lines [start, stop), not copied."""
        low, high = int(self.starts[start]), int(self.ends[stop - 1])
        return pa.py_buffer(self.text).slice(low, high - low)

    def are_braced(self, start: int, stop: int) -> bool:
        """Whether each of the lines [start, stop) begins and ends with a curly brace."""
        data = np.frombuffer(self.text, np.uint8)
        return bool(
            (data[self.starts[start:stop]] == BRACE).all() and (data[self.ends[start:stop] - 1] == CLOSING_BRACE).all()
        )

    def are_utf8(self, start: int, stop: int) -> bool:
        """Whether the lines [start, stop) are valid UTF-8."""
        return is_utf8(self.piece(start, stop))


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
