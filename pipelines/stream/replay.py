"""Feeds mended dead letters and late events back into a stream's result.

A late event can join its conversation as long as all of that key is still there as open rows: what they come to must be
what the result says of the key. Of the others, only a batch run over everything can tell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.failures import said_clearly
from pipelines.memory import keep_freed_memory
from pipelines.stream.beginning import begin_stream, take_over
from pipelines.stream.cycles import Cycles
from pipelines.stream.folder_source import FolderSource
from pipelines.stream.publishing import Publisher
from pipelines.stream.run import Watcher
from pipelines.stream.store import LiveStore
from pipelines.stream.watermark import clock
from sinks.output_folder import WAREHOUSE, check_place, current_snapshot
from transforms.errors import UserError
from transforms.hashing import Hashes
from transforms.late_events import late_rows, split_late
from transforms.open_rows import rows_of_keys
from transforms.paired_rows import pair_rows
from transforms.settings import Settings
from transforms.shuffle import split_by_key
from transforms.stream_settings import StreamSettings
from transforms.tables import CONVERSATIONS

_NAMES = ("conversation_key", "started_at", "last_event_at", "event_count", "message_count")


@dataclass(frozen=True)
class Replayed:
    """What became of the rows of some files: `read` = `kept` + `dead` + `duplicates` + `late`."""

    read: int
    kept: int
    dead: int
    duplicates: int
    late: int


def replay(output: Path, settings: Settings, files: Sequence[str], format: str | None, watcher: Watcher) -> Replayed:
    """Takes files into the result of a stream that is not running, without moving its time on.

    Args:
      output: the output folder.
      settings: those of the stream.
      files: files, folders or patterns.
      format: of the files; None: told by content and name.
      watcher: is told what happens.

    Raises:
      UserError: there is no stream's result, the stream is running, or a file is not what it has to be.
    """
    keep_freed_memory()
    output = check_place(output)
    if current_snapshot(output) is None:
        raise UserError(f"Expected the result of a stream in {output}, but there is none: run care-kpis stream first.")
    lock = take_over(output)
    rules, totals = StreamSettings(), np.zeros(5, np.int64)
    try:
        with (
            said_clearly(output),
            begin_stream(output, settings, watcher.said) as store,
            Cycles(store, settings, rules) as cycles,
            Publisher(output, settings, lock, watcher.said) as publisher,
        ):
            # What the result says of a key has to be all that is committed.
            _publish(store, publisher, watcher)
            source = FolderSource(files, format, 1_000_000, watcher.said, waits=False)
            while True:
                assert store.state is not None
                taking = source.look(store.state)
                if not taking.rows:
                    break
                rule = _Rule(store, settings, output, rules)
                result = cycles.run(taking, (), clock(), rule)
                totals += _totals(json.loads(result.counts)["rows"])
                watcher.committed(result, taking, store)
                _publish(store, publisher, watcher)
    finally:
        os.close(lock)
    read, kept, dead, duplicates, late = totals.tolist()
    return Replayed(read, kept, dead, duplicates, late)


def _totals(rows: dict[str, int]) -> list[int]:
    late, kept, copies = (rows.get(name, 0) for name in ("late_events", "events_kept", "exact_duplicates"))
    read = rows.get("rows_read", 0)
    return [read, kept, read - kept - copies - late, copies, late]


def _publish(store: LiveStore, publisher: Publisher, watcher: Watcher) -> None:
    if store.has_pending():
        publisher.begin(store)
        published = publisher.finish(store, wait=True)
        assert published is not None
        watcher.published(published)


@dataclass(frozen=True)
class _Rule:
    """Tells which events are late: old ones of a key of which not everything is there any more."""

    store: LiveStore
    settings: Settings
    output: Path
    rules: StreamSettings

    def __call__(self, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        state = self.store.state
        assert state is not None
        _, late = split_late(events, state.watermark, self.rules.allowed_lateness)
        if not late.num_rows:
            return events, late
        shuffled = split_by_key(events, 1)[0][1]
        moment = (state.watermark or 0) - self.rules.allowed_lateness
        is_old = pc.less(events["occurred_at"].cast(pa.int64()), moment).to_numpy()
        hashes = shuffled["key_hash"].to_numpy()
        whole = self._whole_keys(shuffled.filter(pa.array(is_old)), np.unique(hashes[is_old]))
        stays = ~is_old | np.isin(hashes, whole)
        return events.filter(pa.array(stays)), late_rows(events.filter(pa.array(~stays)))

    def _whole_keys(self, shuffled: pa.Table, hashes: Hashes) -> Hashes:
        """Those of some keys whose open rows come to what the result says of them."""
        as_of = (self.store.state.watermark if self.store.state is not None else None) or 0
        # (A repeat contact changes none of what is compared.)
        settings = replace(self.settings, repeat_contact=None)
        known, found = (
            _conversations(rows, settings, as_of) for rows in (rows_of_keys(self.store.row_paths(), hashes), shuffled)
        )
        keys = pa.concat_tables([table.select(["conversation_key", "key_hash"]) for table in (known, found)])
        with duckdb.connect(str(self.output / WAREHOUSE), read_only=True) as warehouse:
            warehouse.execute("SET TimeZone = 'UTC'")
            warehouse.register("keys", keys)
            warehouse.register("known", known)
            stored = (
                f"SELECT {', '.join(_NAMES)} FROM conversations "
                "WHERE conversation_key IN (SELECT conversation_key FROM keys)"
            )
            open_ = f"SELECT {', '.join(_NAMES)} FROM known"
            differ = f"(({stored}) EXCEPT ({open_})) UNION (({open_}) EXCEPT ({stored}))"
            rows = warehouse.execute(
                "SELECT DISTINCT key_hash FROM keys "
                f"WHERE conversation_key NOT IN (SELECT conversation_key FROM ({differ}))"
            ).fetchnumpy()
        return np.unique(rows["key_hash"])


def _conversations(rows: pa.Table, settings: Settings, as_of: int) -> pa.Table:
    """The conversations that rows come to, with the hash of their key."""
    paired = pair_rows(rows, settings, as_of, grows=True).paired
    assert paired.growth is not None
    table = paired.conversations.select(list(_NAMES))
    schema = pa.schema([CONVERSATIONS.schema.field(name) for name in _NAMES])
    return table.cast(schema).append_column("key_hash", pa.array(paired.growth.conversation_hash))


def export_letters(output: Path, path: Path, reasons: Sequence[str] = ()) -> int:
    """Writes the raw rows of dead letters, one a line, to be mended; gives their number.

    Args:
      output: the output folder.
      path: the file to write.
      reasons: only those; none: all.
    """
    condition = "WHERE list_contains(?, reason)" if reasons else "WHERE len(?) = 0"
    order = "ORDER BY source, source_partition NULLS FIRST, source_row"
    rows = _rows(output, f"SELECT raw FROM dead_letters {condition} {order}", [list(reasons)])
    lines = [" ".join(str(row["raw"] or "").splitlines()) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def export_late(output: Path, path: Path) -> int:
    """Writes the late events as NDJSON; gives their number."""
    rows = _rows(output, "SELECT * EXCLUDE (source, source_partition, source_row) FROM late_events", [])
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            row["occurred_at"] = row["occurred_at"].isoformat()
            file.write(json.dumps({name: v for name, v in row.items() if v is not None}, ensure_ascii=False) + "\n")
    return len(rows)


def _rows(output: Path, query: str, values: list[object]) -> list[dict[str, object]]:
    if current_snapshot(output) is None:
        raise UserError(f"Expected a result in {output}, but there is none: check the path.")
    with duckdb.connect(str(output / WAREHOUSE), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        rows: list[dict[str, object]] = warehouse.sql(query, params=values).to_arrow_table().to_pylist()
    return rows
