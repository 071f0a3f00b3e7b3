"""The first blocks of the input, read beside what a run begins with: importing Beam leaves a core idle.

What was read is for the process that read it; wherever else a block is wanted, it is read there.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from pipelines.sources.blocks import Block
from pipelines.sources.files import list_files
from pipelines.sources.formats import blocks, read_block
from transforms.errors import UserError
from transforms.raw_rows import RawRows

_MOST_BLOCKS = 8
"""So many are kept until they are asked for."""

_ahead: list[_ReadAhead] = []


@contextmanager
def read_ahead(inputs: Sequence[str], format: str | None) -> Iterator[None]:
    """Reads the first blocks of the files that are meant until the first of them is asked for (see `taken`).

    What cannot be read is left alone: whoever reads it in its turn says why.

    Args:
      inputs: see `find_files`.
      format: see `list_files`.
    """
    ahead = _ReadAhead()
    thread = threading.Thread(target=ahead.read, args=(inputs, format), name="read ahead")
    thread.start()
    _ahead.append(ahead)
    try:
        yield
    finally:
        _ahead.remove(ahead)
        ahead.is_asked.set()
        thread.join()


def taken(block: Block) -> list[RawRows] | None:
    """The rows of a block if they were read ahead, once; None where they have to be read."""
    return next((rows for ahead in _ahead if (rows := ahead.take(block)) is not None), None)


class _ReadAhead:
    """Blocks by their source and first row; one that is just being read is waited for."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self._found: dict[tuple[str, int], Future[list[RawRows] | None]] = {}

    def read(self, inputs: Sequence[str], format: str | None) -> None:
        with suppress(UserError):
            every = itertools.chain.from_iterable(map(blocks, list_files(inputs, format)))
            for block in itertools.islice(every, _MOST_BLOCKS):
                if self.is_asked.is_set():
                    break
                found = self._found[block.source, block.first_row] = Future()
                rows = None
                try:
                    rows = read_block(block)
                finally:
                    found.set_result(rows)

    def take(self, block: Block) -> list[RawRows] | None:
        self.is_asked.set()
        found = self._found.pop((block.source, block.first_row), None)
        return None if found is None else found.result()
