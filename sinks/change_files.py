"""Change files: what a stream on a cluster writes, for machines that merge it into a result of their own.

    URL/stream.json                          what the stream is, written once
    URL/changes/2026-01-31/<name>.json       a manifest: the files of one change; replacing nothing, it is the commit
    URL/files/2026-01-31/<name>-<kind>.parquet

Files are never changed. A change is named by its content: what is written again after a failure is the same change, or
says the same of a key with another version. It counts once its manifest is there, and then whole. No file belongs to
two changes, so that each can be removed without the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sinks.file_systems import RemoteFolder, reached
from transforms.errors import UserError

ABOUT = "stream.json"
_CHANGES, _FILES = "changes", "files"
_THREADS = 8


def begin_changes(url: str, about: Mapping[str, Any]) -> None:
    """Says what a stream is, or sees that the one at a URL is the same.

    Args:
      url: a folder that Beam has a file system for.
      about: JSON values; they must not change while the stream goes on.

    Raises:
      UserError: another stream is there, or the URL cannot be written.
    """
    with reached(url):
        folder = RemoteFolder(url)
        folder.put(ABOUT, json.dumps(about, indent=1, sort_keys=True).encode())
    there, wanted = about_changes(url), json.loads(json.dumps(about))
    names = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
    if names:
        raise UserError(
            f"Expected the stream at {url} to go on as it began, but {', '.join(names)} changed from "
            f"{json.dumps({n: there.get(n) for n in names})} to {json.dumps({n: wanted.get(n) for n in names})}: give "
            "the same settings, or another folder."
        )


def about_changes(url: str) -> dict[str, Any]:
    """What a stream is.

    Raises:
      UserError: there is none at the URL.
    """
    with reached(url):
        folder = RemoteFolder(url)
        if not folder.exists(ABOUT):
            raise UserError(
                f"Expected the change files of a stream at {url}, but {ABOUT} is not there: name the --output of "
                "`python -m pipelines.streaming`."
            )
        return dict(json.loads(folder.read(ABOUT)))


def has_changes(url: str) -> bool:
    """Whether there are change files at a URL, and not an uploaded result."""
    with reached(url):
        return RemoteFolder(url).exists(ABOUT)


def write_changes(url: str, day: str, tables: Mapping[str, pa.Table]) -> str:
    """Writes one change.

    Args:
      url: where the stream is.
      day: YYYY-MM-DD, for the folders.
      tables: rows by kind.

    Returns:
      Name of the manifest.
    """
    with reached(url):
        folder, contents = RemoteFolder(url), {kind: _parquet(rows) for kind, rows in tables.items()}
        digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
        name = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:24]
        files = {}
        for kind, content in contents.items():
            file = f"{_FILES}/{day}/{name}-{kind}.parquet"
            folder.put(file, content)
            files[kind] = {"file": file, "rows": tables[kind].num_rows, "sha256": digests[kind]}
        manifest = f"{_CHANGES}/{day}/{name}.json"
        folder.put(manifest, json.dumps(files, sort_keys=True).encode())
    return manifest


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def list_changes(url: str) -> list[str]:
    """Names of the manifests, sorted."""
    with reached(url):
        return RemoteFolder(url).names(f"{_CHANGES}/*/*.json")


def read_changes(url: str, manifests: Sequence[str]) -> dict[str, list[pa.Table]]:
    """Reads changes.

    Args:
      url: where the stream is.
      manifests: their names.

    Returns:
      By kind, the tables.

    Raises:
      UserError: a file is not what its manifest says.
    """
    folder = RemoteFolder(url)
    with reached(url), ThreadPoolExecutor(_THREADS) as pool:
        files: dict[str, tuple[str, str]] = {}
        for said in pool.map(folder.read, manifests):
            for kind, entry in json.loads(said).items():
                files[entry["file"]] = kind, entry["sha256"]
        tables: dict[str, list[pa.Table]] = {}
        for (name, (kind, digest)), content in zip(files.items(), pool.map(folder.read, files), strict=True):
            if hashlib.sha256(content).hexdigest() != digest:
                raise UserError(f"Expected {url}/{name} as it was written, but its checksum differs: write it again.")
            tables.setdefault(kind, []).append(pq.read_table(pa.BufferReader(content)))
    return tables


def remove_changes(url: str, manifests: Sequence[str]) -> None:
    """Removes changes, of each the files first: where it is interrupted, what is left is removed the next time.

    Args:
      url: where the stream is.
      manifests: their names; some may be gone.
    """
    folder = RemoteFolder(url)

    def remove(manifest: str) -> None:
        if folder.exists(manifest):
            files = [entry["file"] for entry in json.loads(folder.read(manifest)).values()]
            for name in [*files, manifest]:
                folder.remove(name)

    with reached(url), ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(remove, manifests))


def may_come_again(manifest: str, now: datetime) -> bool:
    """Whether a change that was removed may still be written once more: a writer writes into the folder of its day.

    Args:
      manifest: its name.
      now: the time.
    """
    return manifest >= f"{_CHANGES}/{now - timedelta(days=1):%Y-%m-%d}"
