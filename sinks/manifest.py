"""The manifest of a snapshot: every file with its bytes and SHA-256, and how a snapshot is sealed with it.

    manifest.json
      commit_id        number of the commit
      tables.<name>    rows, and files: path, rows, bytes, sha256 of each Parquet file
      other_files      path, bytes, sha256 of each other file (care.duckdb, …)
      sha256           of the rest of the manifest, so that damage to it is not taken for damage to a file

A SHA-256 is what `sha256sum FILE` prints. Processors with instructions for it read 2 GB/s; nothing else that comes with
Python and tells apart what may have been changed on purpose is as fast there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from transforms.errors import UserError
from transforms.tables import TABLES

MANIFEST = "manifest.json"
REPAIR = "run `care-kpis rebuild`"

_THREADS = 2
_TABLE_NAMES = frozenset(table.name for table in TABLES)


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file: bytes, SHA-256 in hexadecimal, and rows (of the Parquet file of a table)."""

    bytes: int
    sha256: str
    rows: int | None


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read.

    Attributes:
      commit_id: number of the commit.
      files: every file of the snapshot but the manifest, by its path below the snapshot.
      about: what else it says.
    """

    commit_id: int
    files: dict[str, FileEntry]
    about: dict[str, object]

    def of_table(self, name: str) -> dict[str, FileEntry]:
        """The Parquet files of a table, by path."""
        return {path: entry for path, entry in self.files.items() if _table_of(path) == name}


def read_manifest(snapshot: Path) -> Manifest:
    """Reads the manifest of a snapshot.

    Args:
      snapshot: its folder.

    Raises:
      UserError: it is not there, not whole, or without checksums.
    """
    path = snapshot / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"Expected a manifest at {path}, but there is none: {REPAIR}.") from None
    except OSError as error:
        raise UserError(f"Expected to read {path}, but the system says {error.strerror!r}: {REPAIR}.") from error
    try:
        content = json.loads(text)
        if content.pop("sha256") != _digest(content):
            raise ValueError
        listed = [file for table in content.pop("tables").values() for file in table["files"]]
        listed += content.pop("other_files")
        files = {file["path"]: FileEntry(file["bytes"], file["sha256"], file.get("rows")) for file in listed}
        return Manifest(content.pop("commit_id"), files, content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"Expected {path} as a run wrote it, but it is damaged, was changed or is of another version: {REPAIR}."
        ) from None


def seal(snapshot: Path, commit_id: int, about: Mapping[str, object], known: Mapping[str, FileEntry]) -> None:
    """Writes the manifest of a snapshot and forces everything in it to disk.

    Args:
      snapshot: the folder, with all other files in it.
      commit_id: number of the commit.
      about: what else the manifest is to say; JSON values.
      known: files that were sealed before, by path: not read again.

    Raises:
      OSError: the disk is full or not writable.
    """
    paths = sorted(path for path in list_files(snapshot) if path != MANIFEST)
    entries = dict(known)
    new = [path for path in paths if path not in known]
    # The largest first, so that both threads have work to the end.
    new.sort(key=lambda path: -(snapshot / path).stat().st_size)
    with ThreadPoolExecutor(_THREADS) as readers, ThreadPoolExecutor(_THREADS) as writers:
        # Beside each other: one keeps the processor busy, the other the disk.
        synced = [writers.submit(sync, snapshot / path) for path in new]
        read = {path: readers.submit(_entry, snapshot, path) for path in new}
        entries.update({path: entry.result() for path, entry in read.items()})
        _results(synced)
    tables: dict[str, object] = {}
    for table in TABLES:
        files = [_record(path, entries[path]) for path in paths if _table_of(path) == table.name]
        rows = sum(entries[path].rows or 0 for path in paths if _table_of(path) == table.name)
        tables[table.name] = {"rows": rows, "files": files}
    others = [_record(path, entries[path]) for path in paths if _table_of(path) is None]
    content = {"commit_id": commit_id, **about, "tables": tables, "other_files": others}
    content["sha256"] = _digest(content)
    (snapshot / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(snapshot / MANIFEST)
    for folder, _, _ in os.walk(snapshot, topdown=False):
        sync(Path(folder))


def list_files(snapshot: Path) -> list[str]:
    """The paths of all files below a snapshot, the manifest too."""
    return [str(Path(folder, name).relative_to(snapshot)) for folder, _, names in os.walk(snapshot) for name in names]


def find_damage(snapshot: Path, files: Mapping[str, FileEntry]) -> dict[str, str]:
    """Reads files and compares them with what the manifest says of them.

    Args:
      snapshot: the folder.
      files: what the manifest says, by path.

    Returns:
      What is wrong, by path; nothing for files that are as they were published.
    """
    largest_first = sorted(files, key=lambda path: -files[path].bytes)
    with ThreadPoolExecutor(_THREADS) as readers:
        found = {path: readers.submit(_damage, snapshot / path, files[path]) for path in largest_first}
        damage = {path: found[path].result() for path in files}
    return {path: words for path, words in damage.items() if words is not None}


def require_intact(snapshot: Path, tables: Iterable[str]) -> None:
    """Raises UserError, naming the way to mend it, where a Parquet file of one of these tables is not as published.

    Args:
      snapshot: a published folder.
      tables: names of tables. Without a readable manifest nothing is known, and nothing refused.
    """
    try:
        manifest = read_manifest(snapshot)
    except UserError:
        return
    files = {path: entry for name in tables for path, entry in manifest.of_table(name).items()}
    for path, words in find_damage(snapshot, files).items():
        raise UserError(f"Expected {snapshot / path} of the earlier result as it was published, but {words}: {REPAIR}.")


def sync(path: Path) -> None:
    """Forces one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file; None where it is as it was published."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"it has {size:,} bytes instead of {entry.bytes:,}"
        return None if _sha256(path) == entry.sha256 else "its content has changed"
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _entry(snapshot: Path, path: str) -> FileEntry:
    """Reads one file of a snapshot."""
    file = snapshot / path
    rows = None if _table_of(path) is None else pq.read_metadata(file).num_rows
    return FileEntry(file.stat().st_size, _sha256(file), rows)


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Mapping[str, object]) -> str:
    """The checksum of a manifest without its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _record(path: str, entry: FileEntry) -> dict[str, object]:
    """One file as the manifest lists it."""
    rows = {} if entry.rows is None else {"rows": entry.rows}
    return {"path": path, **rows, "bytes": entry.bytes, "sha256": entry.sha256}


def _table_of(path: str) -> str | None:
    """The table whose Parquet file this is; None where it is another file."""
    name = path.split("/", 1)[0]
    return name if name in _TABLE_NAMES and path.endswith(".parquet") else None


def _results(tasks: Iterable[Future[None]]) -> None:
    """Waits for tasks, and raises what the first failed one raised."""
    for task in tasks:
        task.result()
