"""Finds the input files that are meant by paths, globs, folders and addresses.

Local paths are handled in plain Python; Beam's file systems are imported only for addresses with a scheme.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transforms.errors import UserError

SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
"""Begins an address."""

_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", "~")


class NoInputFiles(UserError):
    """Nothing matches a path, glob, folder or address."""


def find_files(patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Path and size of the files that are meant, sorted by path, each once.

    Args:
      patterns: paths, globs, folders (taken with all that is in them), or addresses with a scheme that Beam's file
        systems know. Hidden and unfinished files (names that begin with . or _, end with ~ or .tmp, and the like)
        are left out unless named in full.

    Raises:
      NoInputFiles: nothing matches one of them.
      UserError: no pattern, or a place that cannot be listed.
    """
    if not patterns:
        raise UserError("Expected at least one input path, but got none: name a file, a folder or a glob.")
    found: dict[str, tuple[str, int]] = {}
    for path, size in sorted(match for pattern in patterns for match in _matches(pattern)):
        found.setdefault(path if SCHEME.match(path) else os.path.realpath(path), (path, size))
    return list(found.values())


def _matches(pattern: str) -> list[tuple[str, int]]:
    """Paths and sizes that one pattern stands for."""
    if pattern.lower().startswith("file://"):
        pattern = pattern[len("file://") :]
    if SCHEME.match(pattern):
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
        raise NoInputFiles(f"Expected a file, a folder or a glob, but {shown} {what}: check the path.")
    if not paths:
        raise NoInputFiles(f"Expected input files, but {pattern} holds or matches none: check the path.")
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


def file_systems() -> Any:
    """Beam's file systems."""
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _remote_matches(pattern: str) -> list[tuple[str, int]]:
    from apache_beam.io.filesystem import BeamIOError

    # A folder comes first: where folders are real ones, they "exist" by their plain name as well.
    candidates = [pattern] if glob.has_magic(pattern) else [pattern.rstrip("/") + "/**", pattern]
    try:
        for candidate in candidates:
            listed = [(m.path, m.size_in_bytes) for m in file_systems().match([candidate])[0].metadata_list]
            kept = [(path, size) for path, size in listed if path == pattern or not _is_hidden_below(path, pattern)]
            if kept:
                return kept
    except (BeamIOError, ValueError, OSError) as error:
        raise UserError(f"Expected an address that can be listed, but {pattern} failed: {error}") from error
    raise NoInputFiles(f"Expected input files, but {pattern} holds or matches none: check the address.")


def _is_hidden_below(path: str, pattern: str) -> bool:
    """Whether a part of the path that the pattern does not spell out is to be left out."""
    spelled = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    below = path[len(spelled) :] if path.startswith(spelled) else path
    return below.endswith("/") or any(_is_left_out(name) for name in below.split("/"))
