"""The output folder: the names in it that are ours, the result that it shows, and who may write to it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from sinks.manifest import MANIFEST
from transforms.errors import UserError
from transforms.tables import TABLES

WAREHOUSE = "care.duckdb"
LINKS = (*(table.name for table in TABLES), WAREHOUSE, MANIFEST)
"""What a reader finds in OUTPUT; each is a link through `.current`."""

STATE = "_state"
"""Folder of a snapshot for what only the next run reads."""

SNAPSHOTS, CURRENT, LOCK = ".snapshots", ".current", ".lock"
_FINISHED = re.compile(r"(\d{6,})(?:\.(\d+))?")
_NAME = re.compile(_FINISHED.pattern + r"(-[0-9a-f]{8}\.tmp)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def current_snapshot(output: Path) -> Path | None:
    """The folder that OUTPUT shows at this moment, resolved once; None before the first commit."""
    try:
        snapshot = output.resolve() / os.readlink(output / CURRENT)
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def finished_snapshots(output: Path) -> list[Path]:
    """The snapshots in OUTPUT that a run finished, shown or not, in the order of their numbers."""
    found = [path for path in (output / SNAPSHOTS).iterdir() if _FINISHED.fullmatch(path.name)]
    return sorted(found, key=lambda path: number_of(path.name))


def number_of(name: str) -> tuple[int, int]:
    """Of a finished snapshot: the commit, and how many times it was rebuilt."""
    match = _FINISHED.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def check_place(output: Path | str) -> Path:
    """The absolute path of an output folder.

    Raises:
      UserError: it is a URL or a file, or something that no run made stands in it in the place of a name of ours.
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
    return output


def _refuse_foreign(output: Path) -> None:
    """Raises UserError where something that no run made stands in the place of a name of ours."""
    expected = {name: re.escape(f"{CURRENT}/{name}") for name in LINKS}
    expected[CURRENT] = re.escape(f"{SNAPSHOTS}/") + _FINISHED.pattern
    for name, target in expected.items():
        path = output / name
        if os.path.lexists(path) and not (path.is_symlink() and re.fullmatch(target, os.readlink(path))):
            raise UserError(
                f"Expected an output folder that is empty or holds an earlier result, but {path} was not made by a "
                "run: move it away or choose another output folder."
            )
    snapshots = output / SNAPSHOTS
    if os.path.lexists(snapshots) and not snapshots.is_dir():
        raise UserError(
            f"Expected a folder or nothing at {snapshots}, but it is a file: move it away or choose another output "
            "folder."
        )


def take_lock(output: Path) -> int:
    """Locks OUTPUT/.lock and writes our process id into it; the system unlocks it when we die."""
    lock = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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


def remove_others(snapshots: Path, keep: set[Path]) -> None:
    """Removes the snapshots, finished or not, that are not kept; names that are not ours are left alone."""
    for path in snapshots.iterdir():
        if path not in keep and _NAME.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
