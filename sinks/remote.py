"""A result on another file system: its Parquet files and their manifest, for machines that make their own DuckDB file.

    URL/current.json            the folder of the result that readers see; replacing it is the commit
    URL/000012/manifest.json    what is in it
    URL/000012/<table>/…        the Parquet files as in OUTPUT

URL is whatever Apache Beam has a file system for (gs://, s3://, hdfs://, …), or a folder that is mounted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinks.duckdb import load_warehouse
from sinks.manifest import MANIFEST, Manifest, read_manifest
from sinks.output_folder import WAREHOUSE, current_snapshot, number_of
from sinks.parquet import writing
from sinks.publish import Snapshot, open_snapshot
from transforms.errors import UserError
from transforms.tables import TABLES

POINTER = "current.json"
_THREADS = 8
_KEPT = 2
"""Results that stay at the URL: the current one, and the one that somebody may still be reading."""


@dataclass(frozen=True)
class Moved:
    """What was moved.

    Attributes:
      commit_id: number of the commit.
      files: how many files were sent or fetched.
      bytes: their bytes.
      kept: how many files were there already.
    """

    commit_id: int
    files: int
    bytes: int
    kept: int


def upload(output: Path, url: str) -> Moved:
    """Puts the Parquet files of the current result at a URL; those that are there already are copied there.

    Args:
      output: the output folder.
      url: a folder that Beam has a file system for.

    Raises:
      UserError: there is no result, it is damaged, or the URL cannot be written.
    """
    snapshot = current_snapshot(output)
    if snapshot is None:
        raise UserError(f"Expected a result in {output}, but there is none: make one with `care-kpis batch`.")
    manifest = read_manifest(snapshot)
    with _said_clearly(url):
        remote = _Remote(url)
        there = remote.current()
        before = remote.manifest(there).files if there is not None and there != snapshot.name else {}
        if there == snapshot.name:
            return Moved(manifest.commit_id, 0, 0, len(_table_files(manifest)))
        names = _table_files(manifest)
        known = [name for name in names if name in before and before[name].sha256 == manifest.files[name].sha256]
        new = [name for name in names if name not in set(known)]
        with ThreadPoolExecutor(_THREADS) as pool:
            if known:
                remote.copy([(f"{there}/{name}", f"{snapshot.name}/{name}") for name in known])
            list(pool.map(lambda name: remote.send(snapshot / name, f"{snapshot.name}/{name}"), new))
        remote.send(snapshot / MANIFEST, f"{snapshot.name}/{MANIFEST}")
        remote.point(snapshot.name)
        remote.remove_all_but(snapshot.name, there)
    return Moved(manifest.commit_id, len(new), sum(manifest.files[name].bytes for name in new), len(known))


def load(url: str, output: Path) -> Moved:
    """Fetches a result and publishes it in an output folder of this machine, with a DuckDB file made of it.

    Args:
      url: where `upload` has put it.
      output: the output folder; it gets the same commit. Files that it has already are not fetched again.

    Raises:
      UserError: there is no result, a file is not what its manifest says, or the output folder has a later commit.
    """
    with _said_clearly(url):
        remote = _Remote(url)
        name = remote.current()
        if name is None:
            raise UserError(f"Expected a result at {url}, but {POINTER} is not there: put one there with `upload`.")
        manifest = remote.manifest(name)
    here = current_snapshot(output)
    if here is not None:
        mine, commit = read_manifest(here), number_of(here.name)[0]
        if commit > manifest.commit_id:
            raise UserError(
                f"Expected an output folder with at most commit {manifest.commit_id}, which is at {url}, but {output} "
                f"has commit {commit}: choose a folder that nothing but `load` writes to."
            )
        if all(mine.files.get(n) == manifest.files[n] for n in _table_files(manifest)) and commit == manifest.commit_id:
            return Moved(manifest.commit_id, 0, 0, len(_table_files(manifest)))
    with open_snapshot(output, commit_id=manifest.commit_id) as snapshot:
        moved = _fetch(remote, name, manifest, snapshot)
        tables = {spec: sorted((snapshot.path / spec.name).rglob("*.parquet")) for spec in TABLES}
        load_warehouse(snapshot.path / WAREHOUSE, tables)
        snapshot.publish(manifest.about)
    return moved


def _fetch(remote: _Remote, name: str, manifest: Manifest, snapshot: Snapshot) -> Moved:
    """Brings the files of the tables into a result in the making."""
    mine = {} if snapshot.previous is None else read_manifest(snapshot.previous).files
    have = {path for path, entry in mine.items() if entry == manifest.files.get(path)}
    names = _table_files(manifest)
    new = [path for path in names if path not in have]
    for path in names:
        if path in have:
            snapshot.link(path)

    def fetch(path: str) -> None:
        found = remote.fetch(f"{name}/{path}", snapshot.path / path)
        if found != manifest.files[path].sha256:
            raise UserError(
                f"Expected {remote.url}/{name}/{path} as it was published, but its checksum differs: upload it again."
            )

    with _said_clearly(remote.url), ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fetch, new))
    return Moved(manifest.commit_id, len(new), sum(manifest.files[path].bytes for path in new), len(names) - len(new))


def _table_files(manifest: Manifest) -> list[str]:
    """The Parquet files of all tables."""
    return sorted(path for spec in TABLES for path in manifest.of_table(spec.name))


@contextmanager
def _said_clearly(url: str) -> Iterator[None]:
    from apache_beam.io.filesystem import BeamIOError

    try:
        yield
    except (BeamIOError, OSError, ValueError) as error:
        raise UserError(
            f"Expected to reach {url}, but it failed: {str(error).splitlines()[0] if str(error) else error!r}; check "
            "the address, your rights, and that Beam's extra for its file system is installed."
        ) from error


class _Remote:
    """The few things that are done to files at a URL."""

    def __init__(self, url: str) -> None:
        from apache_beam.io.filesystems import FileSystems

        self.url = url.removeprefix("file://").rstrip("/")
        self._systems: Any = FileSystems

    def current(self) -> str | None:
        """Name of the folder that readers see; None where there is none."""
        path = f"{self.url}/{POINTER}"
        if not self._systems.exists(path):
            return None
        with self._open(path) as file:
            return str(json.loads(file.read())["folder"])

    def manifest(self, name: str) -> Manifest:
        """The manifest of a folder."""
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(f"{name}/{MANIFEST}", Path(folder) / MANIFEST)
            return read_manifest(Path(folder))

    def send(self, file: Path, name: str) -> None:
        """Writes a file."""
        with open(file, "rb") as source, self._create(f"{self.url}/{name}") as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def fetch(self, name: str, file: Path) -> str:
        """Reads a file; gives its SHA-256."""
        digest = hashlib.sha256()
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self._open(f"{self.url}/{name}") as source, open(file, "wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def copy(self, pairs: list[tuple[str, str]]) -> None:
        """Copies files there."""
        for _, target in pairs:
            self._make_folder(f"{self.url}/{target}")
            if self._systems.exists(f"{self.url}/{target}"):
                self._systems.delete([f"{self.url}/{target}"])
        self._systems.copy([f"{self.url}/{a}" for a, _ in pairs], [f"{self.url}/{b}" for _, b in pairs])

    def point(self, name: str) -> None:
        """Makes a folder the one that readers see; written beside and renamed, for where writing is not atomic."""
        waiting, path = f"{self.url}/{POINTER}.tmp", f"{self.url}/{POINTER}"
        with self._create(waiting) as file:
            file.write(json.dumps({"folder": name}).encode())
        self._systems.rename([waiting], [path])

    def remove_all_but(self, *names: str | None) -> None:
        """Removes folders of older results."""
        found = [m.path for match in self._systems.match([f"{self.url}/*/{MANIFEST}"]) for m in match.metadata_list]
        folders = {path.removesuffix(f"/{MANIFEST}") for path in found}
        kept = {name for name in names if name is not None}
        old = [folder for folder in sorted(folders) if os.path.basename(folder) not in kept]
        if old:
            self._systems.delete(old)

    def _open(self, path: str) -> Any:
        from apache_beam.io.filesystem import CompressionTypes

        return self._systems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

    def _create(self, path: str) -> Any:
        from apache_beam.io.filesystem import CompressionTypes

        self._make_folder(path)
        return self._systems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)

    def _make_folder(self, path: str) -> None:
        """Makes the folder of a file, on a file system that has folders."""
        if "://" not in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
