"""What a stream begins with: its live store, or where that is gone or damaged, the published result."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.growth import (
    ROWS_FOLDER,
    WAKES_FILE,
    State,
    check_settings,
    load_state,
    settings_of_state,
)
from pipelines.stream.restating import KEYS_FILE, publish_nothing
from pipelines.stream.state import StreamState
from pipelines.stream.store import LIVE, LiveStore
from sinks.links import link_or_copy
from sinks.output_folder import LOCK, STATE, current_snapshot, take_lock
from transforms.errors import UserError
from transforms.hashing import hash_conversation_keys
from transforms.open_rows import count_rows
from transforms.settings import Settings
from transforms.tables import CONVERSATIONS, KPI_STATISTICS
from transforms.wakes import WAKE, load_wakes

_SECONDS_TO_NOTICE = 10.0


def take_over(output: Path) -> int:
    """Locks an output folder; gives the descriptor of the lock.

    A stream that was killed leaves the process that publishes for it, which ends as soon as it notices: so long is
    waited.

    Raises:
      UserError: somebody else writes to it.
    """
    deadline = time.monotonic() + _SECONDS_TO_NOTICE
    while True:
        try:
            return take_lock(output)
        except UserError:
            if time.monotonic() > deadline or not _is_of_the_dead(output / LOCK):
                raise
            time.sleep(0.05)


def _is_of_the_dead(lock: Path) -> bool:
    """Whether the process that a lock names is gone."""
    try:
        os.kill(int(lock.read_text(encoding="ascii")), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def begin_stream(output: Path, settings: Settings, tell: Callable[[str], None]) -> LiveStore:
    """Opens the live store of an output folder, whose lock the caller holds.

    Args:
      output: the output folder.
      settings: of the stream.
      tell: gets a sentence where something is worth one.

    Raises:
      UserError: the result there cannot be added to, or was made with other settings.
    """
    if current_snapshot(output) is None:
        # What is live without a result is what a stream left that died before its first one.
        shutil.rmtree(output / LIVE, ignore_errors=True)
        publish_nothing(output, settings, StreamState(settings_of_state(settings)))
    published = current_snapshot(output)
    state = load_state(published, output)
    assert published is not None and state is not None
    check_settings(state, settings)
    store = _opened(output, tell)
    cycle = 0 if state.stream is None else StreamState.from_json(json.dumps(state.stream)).cycle
    is_ours = store.is_whole() and state.stream is not None
    if is_ours and store.state is not None and store.state.cycle >= cycle:
        store.forget_pending(cycle)
        return store
    try:
        _begin_anew(store, published, state, settings)
    except BaseException:
        store.__exit__()
        raise
    return store


def _opened(output: Path, tell: Callable[[str], None]) -> LiveStore:
    """The live store; an empty one where it is damaged."""
    try:
        return LiveStore(output)
    except duckdb.Error as error:
        tell(f"{output / LIVE} is damaged ({error}); it is made anew from the published result")
        shutil.rmtree(output / LIVE)
        return LiveStore(output)


def _begin_anew(store: LiveStore, published: Path, state: State, settings: Settings) -> None:
    """Fills the live store from a published result."""
    folder = published / STATE
    files = {}
    for path in sorted((folder / ROWS_FOLDER).glob("*.arrow")):
        target = store.row_path(path.name)
        target.unlink(missing_ok=True)
        link_or_copy(path, target)
        files[path.name] = count_rows(target)
    if state.stream is not None:
        begun = StreamState.from_json(json.dumps(state.stream))
    else:
        begun = StreamState(state.settings, 0, state.as_of, state.latest, {}, state.taken)
    # (care-kpis compact may have put them together since.)
    begun = replace(begun, row_files=files, pending=())
    tables = {"kpi_statistics": _statistics(published), "keys": _keys(folder, files, settings)}
    if settings.repeat_contact is not None:
        tables["contacts"] = _contacts(published)
    store.begin(begun, tables)


def _statistics(published: Path) -> pa.Table:
    table = pq.read_table(published / KPI_STATISTICS.name, partitioning=None)
    return table.select(KPI_STATISTICS.schema.names).cast(KPI_STATISTICS.schema)


def _keys(folder: Path, files: dict[str, int], settings: Settings) -> pa.Table:
    """When each key wakes and ends, as it was left; of a result of files, ends are not known exactly, but not later."""
    if (folder / KEYS_FILE).is_file():
        return pq.read_table(folder / KEYS_FILE, partitioning=None)
    hashes, last = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for name in files:
        with pa.memory_map(str(folder / ROWS_FOLDER / name)) as source:
            rows = pa.ipc.open_file(source).read_all()
        hashes.append(rows["key_hash"].to_numpy().copy())
        last.append(rows["occurred_at"].cast(pa.int64()).to_numpy().copy())
    keys, place = np.unique(np.concatenate(hashes), return_inverse=True)
    latest = np.zeros(len(keys), np.int64)
    np.maximum.at(latest, place, np.concatenate(last))
    has_wakes = (folder / WAKES_FILE).is_file()
    wakes = load_wakes(folder / WAKES_FILE) if has_wakes else np.empty(0, WAKE)
    at = np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(at, np.searchsorted(keys, wakes["key_hash"]), wakes["at"])
    wake_at = pa.array(at, mask=at == np.iinfo(np.int64).max)
    ends_at = latest + max(settings.longest_silence, settings.repeat_contact or 0)
    return pa.table({"key_hash": keys, "wake_at": wake_at, "ends_at": ends_at})


def _contacts(published: Path) -> pa.Table:
    names = ["conversation_key", "account_id", "customer_id"]
    rows = pq.read_table(published / CONVERSATIONS.name, partitioning=None, columns=names)
    rows = rows.cast(pa.schema([(name, pa.string()) for name in names]))
    rows = rows.filter(pc.is_valid(rows["customer_id"])).group_by(names).aggregate([])
    hashes = hash_conversation_keys(rows["conversation_key"].to_pylist())
    return rows.select(names[1:]).append_column("key_hash", pa.array(hashes))
