"""Cuts input files into blocks and reads a block, whatever the format.

`blocks` is cheap and in order (it finds where rows end); `read_block` does the work, in any thread or process.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.sources import delimited, lines, ndjson, tables
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile
from transforms.raw_rows import RawRows

_CUT = {
    "ndjson": ndjson.blocks,
    "csv": delimited.blocks,
    "parquet": tables.parquet_blocks,
    "arrow": tables.arrow_blocks,
}

_READ = {
    "ndjson": ndjson.read,
    "csv": delimited.read,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
}

_ESTIMATE = {
    "ndjson": lines.estimate_rows,
    "csv": lines.estimate_rows,
    "parquet": tables.estimate_rows,
    "arrow": tables.estimate_rows,
}


def blocks(file: InputFile) -> Iterator[Block]:
    """Cuts a file into blocks, in order; text is decompressed on the way, never the whole file at once.

    Raises:
      UserError: the file is damaged; names file and place.
    """
    yield from _CUT[file.format](file)


def read_block(block: Block) -> list[RawRows]:
    """Reads the rows of a block, for `transforms.events.parse_events`.

    Raises:
      UserError: the file is damaged; names file and place.
    """
    if isinstance(block.payload, RawRows):
        return [block.payload]
    return _READ[block.format](block)


def estimate_rows(file: InputFile) -> int:
    """About how many rows a file has, from a look at its beginning; of a Parquet file, exactly.

    Raises:
      UserError: the file is damaged.
    """
    return _ESTIMATE[file.format](file)
