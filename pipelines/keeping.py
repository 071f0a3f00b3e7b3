"""Keeps what the next cycle begins with: open rows, wakes, and what was taken."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from pipelines.cycle import Cycle
from pipelines.growth import ROWS_FOLDER, STATE, WAKES_FILE, State, settings_of_state
from pipelines.work_folder import Counts, read_wakes
from sinks.publish import Snapshot
from transforms.open_rows import count_rows, merge_rows
from transforms.wakes import WAKE, load_wakes, save_wakes, update_wakes

SMALL_ROWS = 1_000_000
"""Files of open rows with fewer rows are put together once there are MANY_FILES of about the same size."""

MANY_FILES = 8


def keep_state(snapshot: Snapshot, work: Path, cycle: Cycle, counts: Counts, as_of: int | None) -> State:
    """Writes the state of a result in the making; its new open rows are there already.

    Args:
      snapshot: the result in the making.
      work: the work folder.
      cycle: what was read.
      counts: what was counted.
      as_of: the moment up to which time has passed, microseconds.
    """
    assert cycle.growth is not None
    plan, folder = cycle.growth.plan, snapshot.path / STATE / ROWS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    replaced = {taken.source for taken in plan.replaced}
    for name in snapshot.previous_files(f"{STATE}/{ROWS_FOLDER}") if cycle.before is not None else ():
        if replaced:
            merge_rows([snapshot.previous_file(name)], _new_file(folder), dropped=replaced)
        else:
            snapshot.link(name)
    sizes = _put_small_files_together(folder)
    looked_at, found, _ = read_wakes(work)
    known = None if cycle.before is None else snapshot.previous
    before = np.empty(0, WAKE) if known is None else load_wakes(known / STATE / WAKES_FILE)
    save_wakes(update_wakes(before, looked_at, found), snapshot.path / STATE / WAKES_FILE)
    base = cycle.state or State({})
    rows = {file.path: counts.rows[f"rows of {file.path}"] for file in cycle.files}
    state = State(
        settings=settings_of_state(cycle.options.settings),
        as_of=as_of,
        latest=cycle.latest(counts),
        row_count=sum(sizes),
        taken=plan.taken(base, rows, snapshot.commit_id),
    )
    state.save(snapshot.path)
    return state


def _new_file(folder: Path) -> Path:
    return folder / f"{uuid.uuid4().hex}.arrow"


def _put_small_files_together(folder: Path) -> list[int]:
    """Merges files of about the same size, so that their number grows with the logarithm of what was appended.

    Returns:
      The rows of each file there is then.
    """
    sizes = {file: count_rows(file) for file in sorted(folder.glob("*.arrow"))}
    for size in range(1, SMALL_ROWS.bit_length() // 3 + 1):
        alike = [file for file, rows in sizes.items() if rows < SMALL_ROWS and rows.bit_length() // 3 <= size]
        if len(alike) >= MANY_FILES:
            merged = _new_file(folder)
            sizes[merged] = merge_rows(alike, merged)
            for file in alike:
                file.unlink()
                del sizes[file]
    return list(sizes.values())
