"""Finds input files, tells their format and compression, and opens them.

Local paths are handled in plain Python; Beam's file systems are imported only for addresses with a scheme.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

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
_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", "~")
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
      patterns: paths, globs, folders (taken with all that is in them), or addresses with a scheme that Beam's file
        systems know. Hidden and unfinished files (names that begin with . or _, end with ~ or .tmp, and the like)
        are left out unless named in full.
      format: format of all the files, one of FORMATS; None: told by content, then by name.

    Returns:
      The files sorted by path, each once.

    Raises:
      UserError: nothing matches; or a file's format or compression is unknown or contradicts its name.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"Expected a format out of {', '.join(FORMATS)}, but got {format!r}.")
    if not patterns:
        raise UserError("Expected at least one input path, but got none: name a file, a folder or a glob.")
    found: dict[str, tuple[str, int]] = {}
    for path, size in sorted(match for pattern in patterns for match in _matches(pattern)):
        found.setdefault(path if _SCHEME.match(path) else os.path.realpath(path), (path, size))
    return [_inspected(path, size, format) for path, size in found.values()]


def _matches(pattern: str) -> list[tuple[str, int]]:
    """Paths and sizes that one pattern stands for."""
    if pattern.lower().startswith("file://"):
        pattern = pattern[len("file://") :]
    if _SCHEME.match(pattern):
        return _remote_matches(pattern)
    if os.path.isfile(pattern):
        paths = [pattern]
    elif os.path.isdir(pattern):
        paths = list(_files_in(pattern))
    elif glob.has_magic(pattern):
        paths = []
        for match in glob.glob(pattern, recursive=True):
            if os.path.isdir(match):
                paths += _files_in(match)
            elif not _is_left_out(os.path.basename(match)):
                paths.append(match)
    else:
        shown = pattern or "an empty text"
        what = "is no regular file" if os.path.exists(pattern) else "does not exist"
        raise UserError(f"Expected a file, a folder or a glob, but {shown} {what}: check the path.")
    if not paths:
        raise UserError(f"Expected input files, but {pattern} holds or matches none: check the path.")
    return [(path, _size(path)) for path in map(os.path.normpath, paths)]


def _size(path: str) -> int:
    if not os.path.isfile(path):
        raise UserError(f"Expected files, but {path} is a broken link or no regular file: name those that are meant.")
    return os.path.getsize(path)


def _is_left_out(name: str) -> bool:
    return name.startswith((".", "_", "beam-temp-")) or name.lower().endswith(_UNFINISHED)


def _files_in(folder: str) -> Iterator[str]:
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not _is_left_out(name)]
        yield from (os.path.join(where, name) for name in names if not _is_left_out(name))


def _refuse(error: OSError) -> None:
    raise UserError(f"Expected a folder that can be read, but {error.filename} says {error.strerror!r}: allow it.")


def _file_systems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _remote_matches(pattern: str) -> list[tuple[str, int]]:
    from apache_beam.io.filesystem import BeamIOError

    # A folder comes first: where folders are real ones, they "exist" by their plain name as well.
    candidates = [pattern] if glob.has_magic(pattern) else [pattern.rstrip("/") + "/**", pattern]
    try:
        for candidate in candidates:
            listed = [(m.path, m.size_in_bytes) for m in _file_systems().match([candidate])[0].metadata_list]
            kept = [(path, size) for path, size in listed if path == pattern or not _is_hidden_below(path, pattern)]
            if kept:
                return kept
    except (BeamIOError, ValueError, OSError) as error:
        raise UserError(f"Expected an address that can be listed, but {pattern} failed: {error}") from error
    raise UserError(f"Expected input files, but {pattern} holds or matches none: check the address.")


def _is_hidden_below(path: str, pattern: str) -> bool:
    """Whether a part of the path that the pattern does not spell out is to be left out."""
    spelled = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    below = path[len(spelled) :] if path.startswith(spelled) else path
    return below.endswith("/") or any(_is_left_out(name) for name in below.split("/"))


def _inspected(path: str, size: int, format: str | None) -> InputFile:
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
        if not _SCHEME.match(path):
            return pa.OSFile(path)
        from apache_beam.io.filesystem import CompressionTypes

        opened = _file_systems().open(path, compression_type=CompressionTypes.UNCOMPRESSED)
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
