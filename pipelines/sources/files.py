"""Tells the format and compression of input files, and opens them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.sources.matching import SCHEME, file_systems, find_files
from transforms.errors import UserError

FORMATS = ("ndjson", "csv", "parquet", "arrow")
"""File formats that can be read; arrow is an IPC file or an IPC stream."""

_SUFFIXES_OF = {
    "ndjson": (".ndjson", ".jsonl", ".jsonlines", ".json"),
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".arrows", ".ipc", ".feather"),
}
SUFFIXES = {suffix: kind for kind, suffixes in _SUFFIXES_OF.items() for suffix in suffixes}

COMPRESSIONS = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst"}

_CODECS = {"gz": "gzip", "zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
_REFUSED_MAGIC = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "7z",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
      path: where it is: a local path, or an address with a scheme (gs://…, s3://…).
      size: bytes, as stored.
      format: one of FORMATS.
      compression: "none", "gz" or "zst".
    """

    path: str
    size: int
    format: str
    compression: str = "none"


def list_files(patterns: Sequence[str], format: str | None = None) -> list[InputFile]:
    """Finds the files that are meant and tells what is in them.

    Args:
      patterns: see `find_files`.
      format: format of all the files, one of FORMATS; None: told by content, then by name.

    Returns:
      The files sorted by path, each once.

    Raises:
      UserError: nothing matches; or a file's format or compression is unknown or contradicts its name.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"Expected a format out of {', '.join(FORMATS)}, but got {format!r}.")
    return [inspect_file(path, size, format) for path, size in find_files(patterns)]


def inspect_file(path: str, size: int, format: str | None) -> InputFile:
    """Tells format and compression of a file by what is in it and by its name."""
    stem, suffix = os.path.splitext(path.lower())
    named_compression = COMPRESSIONS.get(suffix)
    if named_compression:
        suffix = os.path.splitext(stem)[1]
    named = format or SUFFIXES.get(suffix)
    by = "--format says" if format else "its name says"
    with open_stored(path) as stored:
        head = _read_head(path, stored)
    compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "none")
    if size and named_compression and compression != named_compression:
        raise UserError(
            f"Expected {path} to be compressed as its name says ({named_compression}), but its content says"
            f" {compression}: rename the file or replace it."
        )
    file = InputFile(path, size, named or "ndjson", compression)
    if compression != "none":
        with open_stream(file) as stream:
            head = _read_head(path, stream)
    for magic, kind in _REFUSED_MAGIC.items():
        if head.startswith(magic):
            raise UserError(f"Expected plain, gz or zst data in UTF-8, but {path} is {kind}: convert it first.")
    found = _format_of(head)
    if found in ("parquet", "arrow file") and compression != "none":
        raise UserError(
            f"Expected no compression around a Parquet or Arrow file, but {path} is {compression}: unpack it."
        )
    found = "arrow" if found == "arrow file" else found
    if found == "blank" and named in ("parquet", "arrow"):
        raise UserError(f"Expected {path} to be {named} as {by}, but it is empty: replace the file or leave it out.")
    if found == "array" and suffix not in (".ndjson", ".jsonl", ".jsonlines") and not format:
        raise UserError(f"Expected one JSON object a line, but {path} holds a JSON array: convert it to NDJSON.")
    if found in FORMATS or (named in ("parquet", "arrow") and found != "blank"):
        if named and named != found:
            raise UserError(
                f"Expected {path} to be {named} as {by}, but its content looks like"
                f" {found if found in FORMATS else 'something else'}: rename it or give the right --format."
            )
        return InputFile(path, size, found, compression)
    if named or found == "blank":
        return InputFile(path, size, named or "ndjson", compression)
    raise UserError(
        f"Expected NDJSON, CSV with a header, Parquet or Arrow, but the format of {path} cannot be told:"
        " give --format, or name only the files that are meant."
    )


def _format_of(head: bytes) -> str:
    """What the first bytes look like: a format, "arrow file", "array", "blank" or "unknown"."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow file"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow"
    text = head.removeprefix(_MARK).lstrip()
    if not text:
        return "blank"
    if text.startswith(b"{"):
        return "ndjson"
    first_line = text.split(b"\n", 1)[0].decode("utf-8", "replace")
    header = next(csv.reader(first_line.splitlines()), [])
    if {"event_id", "event_type", "occurred_at"} & set(header):
        return "csv"
    return "array" if text.startswith(b"[") else "unknown"


def _read_head(path: str, stream: pa.NativeFile) -> bytes:
    try:
        return bytes(stream.read(_HEAD_BYTES))
    except (OSError, pa.ArrowException) as error:
        raise UserError(damaged(path, "its beginning", error)) from error


def damaged(path: str, place: str, error: BaseException) -> str:
    """The sentence for a file that cannot be read to its end."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"Expected a whole file, but {path} cannot be read at {place} ({reason}): replace the file or leave it out."


def open_stored(path: str) -> pa.NativeFile:
    """Opens a file as it is stored, seekable.

    Raises:
      UserError: it cannot be opened.
    """
    try:
        if not SCHEME.match(path):
            return pa.OSFile(path)
        from apache_beam.io.filesystem import CompressionTypes

        opened = file_systems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return pa.PythonFile(opened, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"Expected a file that can be opened, but {path} failed: {error}") from error


def open_stream(file: InputFile) -> pa.NativeFile:
    """Opens a file for reading in order, decompressed on the way.

    Raises:
      UserError: it cannot be opened.
    """
    stored = open_stored(file.path)
    return stored if file.compression == "none" else decompressed(stored, file.compression)


def decompressed(stored: pa.NativeFile, compression: str) -> pa.NativeFile:
    """The content of a compressed file ("gz" or "zst"), in order."""
    return pa.CompressedInputStream(stored, _CODECS[compression])


def read_chunks(file: InputFile, size: int) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in chunks of at most `size`; without a byte order mark.

    Raises:
      UserError: the file is damaged; names the place, in decompressed bytes.
    """
    place = 0
    with open_stream(file) as stream:
        while True:
            try:
                # A first read of just the mark's length tells it whatever the size.
                chunk = bytes(stream.read(size if place else len(_MARK)))
            except (OSError, pa.ArrowException) as error:
                raise UserError(damaged(file.path, f"byte {place:,} of its content or soon after", error)) from error
            if not chunk:
                return
            if place or chunk != _MARK:
                yield chunk
            place += len(chunk)
