"""`care-kpis load` of change files: merges what is new of them into a result, as one commit."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.options import package_version
from pipelines.unbounded.merging import Known, Merged, merge_changes
from sinks.change_files import about_changes, list_changes, may_come_again, read_changes, remove_changes
from sinks.duckdb import build_warehouse
from sinks.facts import part_name
from sinks.filling import load, said_clearly
from sinks.growing import Restatement, WarehouseCopy, grow_result
from sinks.output_folder import STATE
from sinks.parquet import MONTHS, write_partitioned, write_table
from sinks.publish import WAREHOUSE, Snapshot, open_snapshot
from transforms.calendars import GRAINS
from transforms.errors import UserError
from transforms.kpis import WINDOW_KEY, tables_of_grain
from transforms.statistics import SUM_NAMES
from transforms.stored_statistics import read_statistics
from transforms.tables import (
    CONVERSATIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    MILLIONTHS,
    RUNS,
    TURNS,
)
from transforms.window_groups import window_ends

_FOLDER = f"{STATE}/changes"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN = ("keys", "letters", "windows", "progress")


@dataclass(frozen=True)
class Loaded:
    """What was loaded.

    Attributes:
      commit_id: number of the commit; of the one that is there where nothing was new.
      changes: changes that were new.
      rows: input rows that they bring.
      as_of: the watermark.
    """

    commit_id: int
    changes: int
    rows: int
    as_of: datetime | None


def load_changes(url: str, output: Path, remove: bool = False) -> Loaded:
    """Merges the changes of a stream that are not in a result yet into it.

    Args:
      url: where `python -m pipelines.streaming` writes.
      output: the output folder; nothing else may write to it.
      remove: remove the changes that are in the published result; for the one result that is made of them.

    Raises:
      UserError: there is no stream at the URL, a file is damaged, or the output folder has another result.
    """
    started = time.monotonic()
    about = about_changes(url)
    with open_snapshot(output) as snapshot:
        taken, known = _remembered(snapshot, url)
        listed = list_changes(url)
        new = sorted(set(listed) - set(taken))
        if not new:
            _remove(url, listed, remove)
            return Loaded(snapshot.commit_id - 1, 0, 0, None)
        warehouse = None if snapshot.previous is None else snapshot.previous_file(WAREHOUSE)
        merged = merge_changes(known, read_changes(url, new), warehouse)
        run = _run(snapshot, merged, about, started)
        _write(snapshot, merged, run, about["settings"]["timezone"])
        now, there = datetime.now(UTC), set(listed)
        kept = (name for name in taken if name in there or may_come_again(name, now))
        _remember(snapshot, url, [*kept, *new], merged.known)
        snapshot.publish()
        # Not before: should this process die, all that is listed is either there still or in the result.
        _remove(url, listed, remove)
    return Loaded(snapshot.commit_id, len(new), int(run["rows_read_count"]), run["as_of"])


def _remove(url: str, listed: Sequence[str], remove: bool) -> None:
    if remove:
        remove_changes(url, listed)


def _remembered(snapshot: Snapshot, url: str) -> tuple[list[str], Known]:
    """The changes that were merged already, and what is remembered of them."""
    if snapshot.previous is None:
        return [], Known.nothing()
    if f"{_FOLDER}/taken.json" not in snapshot.previous_files(STATE):
        raise UserError(
            "Expected an output folder that nothing but `load` of change files writes to, but the result in it was "
            "made otherwise: choose another folder."
        )
    said = json.loads(snapshot.previous_file(f"{_FOLDER}/taken.json").read_text(encoding="utf-8"))
    if said["url"] != url.rstrip("/"):
        raise UserError(
            f"Expected the change files of {said['url']}, which the result was made of, got those of {url}: choose "
            "another output folder."
        )
    tables = {}
    for name in _KNOWN:
        schema = getattr(Known.nothing(), name).schema
        file = snapshot.previous_file(f"{_FOLDER}/{name}.parquet")
        tables[name] = pq.read_table(file, partitioning=None).cast(schema)
    return said["changes"], Known(**tables)


def _remember(snapshot: Snapshot, url: str, taken: list[str], known: Known) -> None:
    folder = snapshot.path / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    said = json.dumps({"url": url.rstrip("/"), "changes": taken})
    (folder / "taken.json").write_text(said, encoding="utf-8")
    for name in _KNOWN:
        pq.write_table(getattr(known, name), folder / f"{name}.parquet", compression="zstd")


def _run(snapshot: Snapshot, merged: Merged, about: Mapping[str, Any], started: float) -> dict[str, Any]:
    """The row of `runs`; counts are what this commit adds."""
    removed, added = merged.letters
    reasons = Counter(added["reason"].to_pylist())
    reasons.subtract(removed["reason"].to_pylist())
    watermark = pc.max(merged.known.progress["watermark"]).as_py()
    growth = {spec: come.num_rows - gone.num_rows for spec, (gone, come) in merged.facts.items()}
    before = {spec: 0 if snapshot.previous is None else snapshot.previous_rows(spec.name) for spec in growth}
    kept, copies = merged.counts["kept_count"], merged.counts["exact_duplicate_count"]
    dead = added.num_rows - removed.num_rows
    inputs = [
        {"name": f"{row['topic']}/{row['partition']}", "rows": row["rows_read"], "next_offset": row["next_offset"]}
        for row in merged.known.progress.to_pylist()
    ]
    return {
        "commit_id": snapshot.commit_id,
        "committed_at": datetime.now(UTC),
        "kind": "batch" if snapshot.previous is None else "append",
        "as_of": None if not watermark else _EPOCH + timedelta(microseconds=watermark),
        "timezone": about["settings"]["timezone"],
        "rows_read_count": kept + copies + dead + merged.late.num_rows,
        "events_kept_count": kept,
        "dead_letter_count": dead,
        "exact_duplicate_count": copies,
        "late_event_count": merged.late.num_rows,
        "stray_event_count": merged.counts["stray_count"],
        "conversation_count": before[CONVERSATIONS] + growth[CONVERSATIONS],
        "turn_count": before[TURNS] + growth[TURNS],
        "dead_letters_by_reason": json.dumps({reason: n for reason, n in sorted(reasons.items()) if n}),
        "inputs": json.dumps(inputs),
        "settings": json.dumps(about["settings"], ensure_ascii=False),
        "duration_seconds": time.monotonic() - started,
        "version": package_version(),
    }


def _write(snapshot: Snapshot, merged: Merged, run: Mapping[str, Any], timezone: str) -> None:
    """Makes the tables of the result."""
    as_of = -1 if run["as_of"] is None else (run["as_of"] - _EPOCH) // timedelta(microseconds=1)
    kpis, statistics = _values(merged.windows, timezone, as_of)
    runs = pa.Table.from_pylist([dict(run)], schema=RUNS.schema)
    if snapshot.previous is None:
        for spec, (_, added) in merged.facts.items():
            rows = added.select(spec.schema.names)
            write_partitioned(rows, snapshot.path / spec.name, spec, MONTHS[spec.name], part_name(0, 1))
        build_warehouse(
            snapshot.path,
            kpis=kpis,
            kpi_statistics=statistics,
            dead_letters=merged.letters[1],
            late_events=merged.late,
            runs=runs,
        )
        return
    keys = merged.windows.select(WINDOW_KEY.names).cast(WINDOW_KEY)
    change = Restatement(merged.facts, kpis, statistics, keys, *merged.letters, runs)
    with WarehouseCopy(snapshot) as copy:
        path = copy.finish()
        grow_result(snapshot, change)
    if merged.late.num_rows:
        write_table(
            merged.late, snapshot.path / LATE_EVENTS.name / f"part-{snapshot.commit_id:06}.parquet", LATE_EVENTS
        )
        with said_clearly(path), duckdb.connect(str(path)) as warehouse:
            load(warehouse, LATE_EVENTS, merged.late)
            warehouse.execute("CHECKPOINT")


def _values(windows: pa.Table, timezone: str, as_of: int) -> tuple[pa.Table, pa.Table]:
    """The rows of `kpis` (as computed) and `kpi_statistics` of the windows in which anything fell."""
    # What is not zero is not all zeros: no sum of a window cancels another one.
    filled = pc.scalar(False)
    for name in SUM_NAMES:
        filled = filled | (pc.field(MILLIONTHS.get(name, name)) != 0)
    some = windows.filter(filled)
    parts = []
    for grain in GRAINS:
        statistics = read_statistics(some.filter(pc.field("grain") == grain))
        if len(statistics.cell):
            ends = window_ends(grain, statistics.unpack()[3], timezone)
            parts.append(tables_of_grain(grain, statistics, ends, as_of))
    if not parts:
        names = [column.name for column in KPI_TABLE.columns if column.name not in ("revision", "changed_at")]
        return KPI_TABLE.schema.empty_table().select(names), KPI_STATISTICS.schema.empty_table()
    kpis, rows = (pa.concat_tables(side) for side in zip(*parts, strict=True))
    order = [("window_start", "ascending"), ("grain", "ascending"), ("basis", "ascending"), ("channel", "ascending")]
    return kpis.sort_by(order), rows.sort_by(order)
