"""How a result becomes visible: whole or not at all, Parquet and DuckDB in one step.

A run writes into a hidden folder of its own and then moves one symbolic link:

    OUTPUT/.snapshots/000002/{conversations,turns,kpis,…}/….parquet, care.duckdb, manifest.json
    OUTPUT/.current -> .snapshots/000002        the commit is the replacement of this link
    OUTPUT/conversations -> .current/conversations, OUTPUT/care.duckdb -> .current/care.duckdb, …

Whatever stops a run, a reader sees the result before it or the result after it, and the next run clears away what is
left. The snapshot before the current one is kept for those who are still reading it. Someone who reads several tables
while runs go on resolves `.current` once (`current_snapshot`) and reads below it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pyarrow.parquet as pq

from sinks.parquet import fill_missing, writing
from transforms.errors import UserError
from transforms.tables import TABLES

WAREHOUSE = "care.duckdb"
MANIFEST = "manifest.json"
LINKS = (*(table.name for table in TABLES), WAREHOUSE, MANIFEST)
"""What a reader finds in OUTPUT; each is a link through `.current`."""

_SNAPSHOTS, _CURRENT, _LOCK = ".snapshots", ".current", ".lock"
_NAME = re.compile(r"\d{6,}(-[0-9a-f]{8}\.tmp)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def current_snapshot(output: Path) -> Path | None:
    """The folder that OUTPUT shows at this moment, resolved once; None before the first commit."""
    try:
        snapshot = output.resolve() / os.readlink(output / _CURRENT)
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


class Snapshot:
    """A result in the making; a context manager that clears up unless `publish` was reached.

    Attributes:
      path: the folder to write into: `<table>/….parquet` for every table, and care.duckdb.
      previous: the folder of the result before this one, or None.
      commit_id: number of this commit, from 1.
    """

    def __init__(self, output: Path, path: Path, previous: Path | None, commit_id: int, lock: int) -> None:
        """Made by `open_snapshot`."""
        self.path = path
        self.previous = previous
        self.commit_id = commit_id
        self._output = output
        self._lock: int | None = lock

    def __enter__(self) -> Snapshot:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not published and gives the output folder free."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            # Unlocked by name: closing alone would leave the lock with any process forked meanwhile.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Empties the folder, for another try."""
        shutil.rmtree(self.path)
        self.path.mkdir()

    def publish(self, about: Mapping[str, object] | None = None) -> Path:
        """Makes this result the one that readers see.

        Tables without a file get an empty one, manifest.json is written (commit_id, the files of each table with their
        rows and bytes, and `about`), everything is forced to disk, and one link is replaced.

        Args:
          about: what else the manifest says; JSON values.

        Returns:
          The folder of the published result.

        Raises:
          ValueError: care.duckdb is not there.
          UserError: the disk is full or not writable; nothing has changed for readers.
        """
        if not (self.path / WAREHOUSE).is_file():
            raise ValueError(f"expected {self.path / WAREHOUSE} to be built before publishing")
        final = self.path.with_name(f"{self.commit_id:06d}")
        with writing(self._output):
            fill_missing(self.path)
            manifest = {"commit_id": self.commit_id, "tables": _table_files(self.path), **(about or {})}
            (self.path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            _sync_tree(self.path)
            os.rename(self.path, final)
            _sync(final.parent)
            for name in LINKS:
                if not os.path.lexists(self._output / name):
                    os.symlink(f"{_CURRENT}/{name}", self._output / name)
            # A write-ahead log that someone left beside the link belongs to the old file; with the new one DuckDB
            # would refuse to open.
            (self._output / f"{WAREHOUSE}.wal").unlink(missing_ok=True)
            link = self._output / f"{_CURRENT}.tmp"
            link.unlink(missing_ok=True)
            os.symlink(f"{_SNAPSHOTS}/{final.name}", link)
            os.replace(link, self._output / _CURRENT)
            _sync(self._output)
        keep = {final} if self.previous is None else {final, self.previous}
        _remove_others(final.parent, keep)
        return final


def open_snapshot(output: Path | str) -> Snapshot:
    """Takes the output folder for one run and prepares a place to write into.

    Args:
      output: the output folder; made if it is not there. What dead runs left in it is removed.

    Returns:
      The snapshot to write, best in a `with`.

    Raises:
      UserError: the output is a URL, a file, in use by another run, not writable, or holds something of somebody else
        under a name that the result needs.
    """
    if _URL.match(str(output)):
        raise UserError(
            f"Expected a folder on this machine for the output, got the URL {output}: results cannot be written there "
            "directly; write to a local folder and copy it."
        )
    output = Path(output).absolute()
    if output.exists() and not output.is_dir():
        raise UserError(f"Expected a folder for the output, but {output} is a file: choose another name.")
    _refuse_foreign(output)
    with writing(output):
        (output / _SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        lock = _take_lock(output)
    try:
        with writing(output):
            return _prepare(output, lock)
    except BaseException:
        os.close(lock)
        raise


def _prepare(output: Path, lock: int) -> Snapshot:
    """Clears away what dead runs left and makes the folder of this one."""
    snapshots = output / _SNAPSHOTS
    number, previous = 0, None
    if os.path.lexists(output / _CURRENT):
        name = Path(os.readlink(output / _CURRENT)).name
        number = int(name)
        previous = snapshots / name if (snapshots / name / MANIFEST).is_file() else None
    # What is above the current number was never published; of those below, the nearest may still be read.
    older = [path for path in snapshots.iterdir() if path.name.isdigit() and int(path.name) < number]
    keep = {snapshots / f"{number:06d}", *sorted(older, key=lambda path: int(path.name))[-1:]}
    _remove_others(snapshots, keep)
    # A name of its own: a worker that outlived a killed run must not write into this one.
    path = snapshots / f"{number + 1:06d}-{secrets.token_hex(4)}.tmp"
    path.mkdir()
    return Snapshot(output, path, previous, number + 1, lock)


def _refuse_foreign(output: Path) -> None:
    """Raises UserError where something that no run made stands in the place of a name of ours."""
    expected = {name: re.escape(f"{_CURRENT}/{name}") for name in LINKS}
    expected[_CURRENT] = re.escape(_SNAPSHOTS) + r"/\d{6,}"
    for name, target in expected.items():
        path = output / name
        if os.path.lexists(path) and not (path.is_symlink() and re.fullmatch(target, os.readlink(path))):
            raise UserError(
                f"Expected an output folder that is empty or holds an earlier result, but {path} was not made by a "
                "run: move it away or choose another output folder."
            )
    snapshots = output / _SNAPSHOTS
    if os.path.lexists(snapshots) and not snapshots.is_dir():
        raise UserError(
            f"Expected a folder or nothing at {snapshots}, but it is a file: move it away or choose another output "
            "folder."
        )


def _take_lock(output: Path) -> int:
    """Locks OUTPUT/.lock and writes our process id into it; the system unlocks it when we die."""
    lock = os.open(output / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise UserError(
            f"Expected to be the only run that writes to {output}, but process {holder} is writing to it: wait until "
            "it has ended (or end it), or choose another output folder."
        ) from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    return lock


def _table_files(path: Path) -> dict[str, object]:
    """The Parquet files of every table as they lie on disk, with rows and bytes."""
    tables: dict[str, object] = {}
    for table in TABLES:
        files = [
            {
                "path": str(file.relative_to(path)),
                "rows": pq.read_metadata(file).num_rows,
                "bytes": file.stat().st_size,
            }
            for file in sorted((path / table.name).rglob("*.parquet"))
        ]
        tables[table.name] = {"rows": sum(file["rows"] for file in files), "files": files}
    return tables


def _remove_others(snapshots: Path, keep: set[Path]) -> None:
    """Removes the snapshots, finished or not, that are not kept; names that are not ours are left alone."""
    for path in snapshots.iterdir():
        if path not in keep and _NAME.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _sync_tree(path: Path) -> None:
    """Forces every file and folder below `path`, and itself, to disk; contents before the folders that name them."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    """Forces one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
