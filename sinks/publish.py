"""How a result becomes visible: whole or not at all, Parquet and DuckDB in one step.

A run writes into a hidden folder of its own and then moves one symbolic link:

    OUTPUT/.snapshots/000002/{conversations,turns,kpis,…}/….parquet, care.duckdb, manifest.json
    OUTPUT/.current -> .snapshots/000002        the commit is the replacement of this link
    OUTPUT/conversations -> .current/conversations, OUTPUT/care.duckdb -> .current/care.duckdb, …

A snapshot has the number of its commit; 000002.1 is the first one that was rebuilt of the same commit. Files may be
hard links to those of the snapshot before: nobody writes into a file that was published.

Whatever stops a run, a reader sees the result before it or after it, and the next run clears away what is left. The
snapshot before the current one is kept for those who are still reading it. Who reads several tables while runs go on
resolves `.current` once (`current_snapshot`) and reads below it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from sinks.links import inode_and_time, link_or_copy
from sinks.manifest import REPAIR, FileEntry, Manifest, find_damage, read_manifest, seal, sync
from sinks.output_folder import (
    CURRENT,
    LINKS,
    SNAPSHOTS,
    WAREHOUSE,
    check_place,
    current_snapshot,
    finished_snapshots,
    number_of,
    remove_others,
    take_lock,
)
from sinks.parquet import fill_missing, writing
from transforms.errors import UserError


class Snapshot:
    """A result in the making; a context manager that clears up unless `publish` was reached.

    Attributes:
      path: the folder to write into: `<table>/….parquet` for every table, and care.duckdb.
      previous: the folder of the result before, or None.
      commit_id: number of this commit, from 1.
    """

    def __init__(self, output: Path, path: Path, previous: Path | None, commit_id: int, lock: int | None) -> None:
        """Made by `open_snapshot`."""
        self.path = path
        self.previous = previous
        self.commit_id = commit_id
        self._output = output
        self._lock: int | None = lock
        self._before: Manifest | None = None
        self._copied: dict[str, tuple[int, int]] = {}

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
        self._copied.clear()

    def previous_files(self, under: str = "") -> list[str]:
        """Paths of the files of the result before this one, as `link` takes them.

        Args:
          under: only those below this folder, such as "turns" or "_state"; nothing for all.

        Returns:
          In ascending order.

        Raises:
          UserError: its manifest cannot be read.
        """
        folder = f"{under.rstrip('/')}/" if under else ""
        return sorted(path for path in self._manifest_before().files if path.startswith(folder))

    def previous_rows(self, table: str) -> int:
        """Rows of a table of the result before this one.

        Raises:
          UserError: its manifest cannot be read.
        """
        return sum(entry.rows or 0 for entry in self._manifest_before().of_table(table).values())

    def require_previous_files(self) -> None:
        """Raises UserError where a file of the result before this one is missing or has another size than it had."""
        for name in self.previous_files():
            self._source(name)

    def link(self, relative_path: str | Path) -> Path:
        """Takes over a file of the result before this one as it is: a hard link, or a copy where there are none.

        The file must not be written to, only removed.

        Args:
          relative_path: of the file below the snapshot, in both.

        Returns:
          The file in this result.

        Raises:
          UserError: the earlier result has no such file, or not as it was published, or the system refuses.
        """
        name = str(relative_path)
        source, target = self._source(name), self.path / name
        with writing(target):
            if not link_or_copy(source, target):
                self._copied[name] = inode_and_time(target.stat())
        return target

    def previous_file(self, relative_path: str | Path) -> Path:
        """A file of the result before this one to read from, once its checksum was found right.

        What is made from a damaged file would otherwise get a checksum of its own.

        Args:
          relative_path: of the file below the snapshot.

        Raises:
          UserError: the earlier result has no such file, or not as it was published.
        """
        name = str(relative_path)
        source = self._source(name)
        for words in find_damage(self.previous or self.path, {name: self._manifest_before().files[name]}).values():
            raise UserError(f"Expected {source} as it was published, but {words}: {REPAIR}.")
        return source

    def copy(self, relative_path: str | Path) -> Path:
        """Takes over a file of the result before this one as a copy that may be written to; it is verified meanwhile.

        Args:
          relative_path: of the file below the snapshot, in both.

        Returns:
          The file in this result.

        Raises:
          UserError: the earlier result has no such file, or not as it was published, or the disk is full.
        """
        source, target = self._source(str(relative_path)), self.path / relative_path
        with ThreadPoolExecutor(1) as reader, writing(target):
            verified = reader.submit(self.previous_file, relative_path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            verified.result()
        return target

    def publish(self, about: Mapping[str, object] | None = None) -> Path:
        """Makes this result the one that readers see.

        Tables without a file get an empty one, manifest.json is written, all is forced to disk, one link is replaced.

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
        final = self.path.with_name(self.path.name.split("-")[0])
        with writing(self._output):
            fill_missing(self.path)
            seal(self.path, self.commit_id, about or {}, self._sealed_before())
            os.rename(self.path, final)
            sync(final.parent)
            for name in LINKS:
                if not os.path.lexists(self._output / name):
                    os.symlink(f"{CURRENT}/{name}", self._output / name)
            # A write-ahead log that someone left beside the link belongs to the old file; with the new one DuckDB
            # would refuse to open.
            (self._output / f"{WAREHOUSE}.wal").unlink(missing_ok=True)
            link = self._output / f"{CURRENT}.tmp"
            link.unlink(missing_ok=True)
            os.symlink(f"{SNAPSHOTS}/{final.name}", link)
            os.replace(link, self._output / CURRENT)
            sync(self._output)
        keep = {final} if self.previous is None else {final, self.previous}
        remove_others(final.parent, keep)
        return final

    def _source(self, name: str) -> Path:
        """A file of the result before; refused where it is not there or has another size than it had."""
        entry = self._manifest_before().files.get(name)
        if self.previous is None or entry is None:
            raise UserError(f"Expected a file {name} in the result before this one ({self.previous}): {REPAIR}.")
        source = self.previous / name
        found = source.stat().st_size if source.is_file() else None
        if found != entry.bytes:
            raise UserError(
                f"Expected {source} with {entry.bytes:,} bytes as it was published, but "
                f"{'it is not there' if found is None else f'it has {found:,}'}: {REPAIR}."
            )
        return source

    def _manifest_before(self) -> Manifest:
        if self._before is None:
            self._before = Manifest(0, {}, {}) if self.previous is None else read_manifest(self.previous)
        return self._before

    def _sealed_before(self) -> dict[str, FileEntry]:
        """What the manifest before says of the files that are the same in this result, unread: damage stays visible."""
        if self.previous is None:
            return {}
        try:
            before = self._manifest_before().files
        except UserError:
            return {}
        known = {}
        for name, entry in before.items():
            with contextlib.suppress(FileNotFoundError):
                here = (self.path / name).stat()
                is_copy = self._copied.get(name) == inode_and_time(here)
                if is_copy or os.path.samestat(here, (self.previous / name).stat()):
                    known[name] = entry
        return known


def open_snapshot(
    output: Path | str, *, rebuild: bool = False, commit_id: int | None = None, is_locked: bool = False
) -> Snapshot:
    """Takes the output folder for one run; prepares a place to write into.

    Args:
      output: the output folder; made if it is not there. What dead runs left in it is removed.
      rebuild: make the current commit anew, instead of the next one.
      commit_id: number of a commit that is taken over from elsewhere, not below the current one.
      is_locked: the caller has the lock of the output folder, and keeps it.

    Returns:
      The snapshot to write, best in a `with`.

    Raises:
      UserError: the output is a URL, a file, in use, not writable, has something foreign under a name of ours, or no
        result to rebuild.
    """
    output = check_place(output)
    if rebuild and current_snapshot(output) is None:
        raise UserError(f"Expected a result in {output}, but there is none: make one with `care-kpis batch`.")
    with writing(output):
        (output / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        lock = None if is_locked else take_lock(output)
    try:
        with writing(output):
            return _prepare(output, lock, rebuild, commit_id)
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise


def _prepare(output: Path, lock: int | None, rebuild: bool, commit_id: int | None) -> Snapshot:
    """Clears away what dead runs left and makes the folder of this one."""
    snapshots = output / SNAPSHOTS
    current, previous = (0, 0), None
    if os.path.lexists(output / CURRENT):
        name = Path(os.readlink(output / CURRENT)).name
        current = number_of(name)
        previous = snapshots / name if (snapshots / name).is_dir() else None
    # What is above the current number was never published; of those below, the nearest may still be read.
    published = [path for path in finished_snapshots(output) if number_of(path.name) <= current]
    remove_others(snapshots, set(published[-2:]))
    commit_id = commit_id or current[0] + (not rebuild)
    name = f"{commit_id:06d}.{current[1] + 1}" if commit_id == current[0] else f"{commit_id:06d}"
    # A name of its own: a worker that outlived a killed run must not write into this one.
    path = snapshots / f"{name}-{secrets.token_hex(4)}.tmp"
    path.mkdir()
    return Snapshot(output, path, previous, commit_id, lock)
