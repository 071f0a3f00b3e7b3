"""A result on another file system: its Parquet files and their manifest, for machines that make their own DuckDB file.

    URL/current.json            the folder of the result that readers see; replacing it is the commit
    URL/000012/manifest.json    what is in it
    URL/000012/<table>/…        the Parquet files as in OUTPUT

URL is whatever Apache Beam has a file system for (gs://, s3://, hdfs://, …), or a folder that is mounted.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sinks.duckdb import load_warehouse
from sinks.file_systems import RemoteFolder, reached
from sinks.manifest import MANIFEST, Manifest, read_manifest
from sinks.output_folder import WAREHOUSE, current_snapshot, number_of
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
    with reached(url):
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
    with reached(url):
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

    with reached(remote.url), ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fetch, new))
    return Moved(manifest.commit_id, len(new), sum(manifest.files[path].bytes for path in new), len(names) - len(new))


def _table_files(manifest: Manifest) -> list[str]:
    """The Parquet files of all tables."""
    return sorted(path for spec in TABLES for path in manifest.of_table(spec.name))


class _Remote(RemoteFolder):
    """Results at a URL."""

    def current(self) -> str | None:
        """Name of the folder that readers see; None where there is none."""
        return str(json.loads(self.read(POINTER))["folder"]) if self.exists(POINTER) else None

    def manifest(self, name: str) -> Manifest:
        """The manifest of a folder."""
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(f"{name}/{MANIFEST}", Path(folder) / MANIFEST)
            return read_manifest(Path(folder))

    def point(self, name: str) -> None:
        """Makes a folder the one that readers see; written beside and renamed, for where writing is not atomic."""
        waiting = f"{POINTER}.tmp"
        with self.create(waiting) as file:
            file.write(json.dumps({"folder": name}).encode())
        self.systems.rename([f"{self.url}/{waiting}"], [f"{self.url}/{POINTER}"])

    def remove_all_but(self, *names: str | None) -> None:
        """Removes folders of older results."""
        folders = {found.removesuffix(f"/{MANIFEST}") for found in self.names(f"*/{MANIFEST}")}
        old = sorted(folders - {name for name in names if name is not None})
        if old:
            self.systems.delete([f"{self.url}/{folder}" for folder in old])
