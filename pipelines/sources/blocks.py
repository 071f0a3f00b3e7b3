"""A block: some neighbouring rows of one file, small enough to be read at once."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from transforms.raw_rows import RawRows

BLOCK_BYTES = 8 << 20
"""Text is cut into blocks of about this size."""

BLOCK_ROWS = 1 << 18
"""Small Arrow record batches are put together to blocks of about this many rows."""

MAX_LINE_BYTES = 256 << 20
"""A line or record of text longer than this is not read; it is a dead letter."""


@dataclass(frozen=True)
class Block:
    """Some neighbouring rows of one file.

    Attributes:
      source: path of the file, as the dead letters name it.
      format: "ndjson", "csv", "parquet", "arrow", or "rows": made by an adapter.
      first_row: place of the first row: line of a text file or row of a table file, from 1.
      payload: whole lines (ndjson, csv), the file's metadata (parquet), a table (arrow), rows (rows).
      row_group: the row group to read, from 0 (parquet).
      header: names of the columns (csv).
      is_oversize: the payload is the beginning of a line that is too long to be read.
    """

    source: str
    format: str
    first_row: int
    payload: bytes | pq.FileMetaData | pa.Table | RawRows
    row_group: int = 0
    header: tuple[str, ...] = ()
    is_oversize: bool = False
