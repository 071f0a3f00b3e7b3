"""One publish: what some cycles committed, as one commit of the result that readers see."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.growth import ROWS_FOLDER, State, load_state
from pipelines.options import package_version
from pipelines.settings import settings_record
from pipelines.stream.pending import NetChange, net_change
from pipelines.stream.state import StreamState
from sinks.duckdb import build_warehouse
from sinks.growing import Restatement, WarehouseCopy, grow_result
from sinks.links import link_or_copy
from sinks.output_folder import STATE, current_snapshot, number_of
from sinks.publish import Snapshot, open_snapshot
from sinks.revisions import UNREVISED
from transforms.settings import Settings
from transforms.tables import CONVERSATIONS, DEAD_LETTERS, KPI_STATISTICS, RUNS, TURNS

KEYS_FILE = "keys.parquet"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """What is to be published; its files stay as they are until it is.

    Attributes:
      output: the output folder, whose lock the stream holds.
      settings: of the stream.
      state: as of the last cycle that is in it.
      pending: files of its cycles, in their order.
      rows: files of open rows.
      keys: file of when each key wakes and ends.
    """

    output: Path
    settings: Settings
    state: StreamState
    pending: tuple[Path, ...]
    rows: tuple[Path, ...]
    keys: Path


def publish(request: Request) -> int:
    """Publishes; gives the number of the commit. What was published already is not published again.

    Raises:
      UserError: the disk is full, or the result before is damaged; nothing has changed for readers.
    """
    started = time.monotonic()
    published = current_snapshot(request.output)
    known = load_state(published, request.output)
    if published is not None and known is not None and known.stream is not None:
        # Who published it may have died before it could say so.
        if StreamState.from_json(json.dumps(known.stream)).cycle == request.state.cycle:
            return number_of(published.name)[0]
    with open_snapshot(request.output, is_locked=True) as snapshot, WarehouseCopy(snapshot) as warehouse:
        change = net_change(request.pending)
        _keep_state(snapshot, request)
        warehouse.finish()
        grow_result(snapshot, _restatement(change, snapshot, request, started))
        snapshot.publish()
    return snapshot.commit_id


def publish_nothing(output: Path, settings: Settings, state: StreamState) -> None:
    """Publishes a result without any event, so that readers find every table from the first moment on."""
    with open_snapshot(output, is_locked=True) as snapshot:
        build_warehouse(
            snapshot.path,
            kpis=UNREVISED.schema.empty_table(),
            kpi_statistics=KPI_STATISTICS.schema.empty_table(),
            dead_letters=DEAD_LETTERS.schema.empty_table(),
            runs=_run(snapshot, state, settings, [], Counter(), time.monotonic()),
        )
        _save_state(snapshot, state)
        snapshot.publish()


def _restatement(change: NetChange, snapshot: Snapshot, request: Request, started: float) -> Restatement:
    """All that is pending, as one change of the result."""
    removed, added = change.letters
    reasons = Counter(added["reason"].to_pylist())
    reasons.subtract(removed["reason"].to_pylist())
    cycles = [json.loads(counts) for counts in change.counts]
    return Restatement(
        facts=change.facts,
        kpis=change.kpis,
        kpi_statistics=change.kpi_statistics,
        windows=change.windows,
        letters_removed=removed,
        letters_added=added,
        run=_run(snapshot, request.state, request.settings, cycles, reasons, started),
        late_added=change.late_events,
    )


def _run(
    snapshot: Snapshot,
    state: StreamState,
    settings: Settings,
    cycles: list[dict[str, Any]],
    reasons: Mapping[str, int],
    started: float,
) -> pa.Table:
    """The row of `runs`: the sum of some cycles."""
    counts: Counter[str] = Counter()
    inputs: dict[str, dict[str, Any]] = {}
    for cycle in cycles:
        counts.update(cycle["rows"])
        for name, said in cycle["inputs"].items():
            known = inputs.get(name)
            if known is None:
                inputs[name] = {"name": name, **said}
            else:
                # Of a partition: files come once.
                known |= {"to": said["to"], **{sum_: known[sum_] + said[sum_] for sum_ in ("rows", "lost")}}
    as_of = None if state.watermark is None else _EPOCH + timedelta(microseconds=state.watermark)
    totals = {spec.name: counts[spec.name] for spec in (CONVERSATIONS, TURNS)}
    if snapshot.previous is not None:
        totals = {name: change + snapshot.previous_rows(name) for name, change in totals.items()}
    row: dict[str, object] = {
        "commit_id": snapshot.commit_id,
        "committed_at": datetime.now(UTC),
        "kind": "stream",
        "as_of": as_of,
        "timezone": settings.timezone,
        "rows_read_count": counts["rows_read"],
        "events_kept_count": counts["events_kept"],
        "dead_letter_count": sum(reasons.values()),
        "exact_duplicate_count": counts["exact_duplicates"],
        "late_event_count": counts["late_events"],
        "stray_event_count": counts["stray_events"],
        "conversation_count": totals[CONVERSATIONS.name],
        "turn_count": totals[TURNS.name],
        "dead_letters_by_reason": json.dumps({reason: n for reason, n in sorted(reasons.items()) if n}),
        "inputs": json.dumps(list(inputs.values()), ensure_ascii=False),
        "settings": json.dumps(settings_record(settings), ensure_ascii=False),
        "duration_seconds": sum(cycle["seconds"] for cycle in cycles) + time.monotonic() - started,
        "version": package_version(),
    }
    return pa.Table.from_pylist([row], schema=RUNS.schema)


def _keep_state(snapshot: Snapshot, request: Request) -> None:
    """Leaves all that the stream remembers with the result: were the live store lost, it would go on from there."""
    folder = snapshot.path / STATE
    for path in request.rows:
        link_or_copy(path, folder / ROWS_FOLDER / path.name)
    link_or_copy(request.keys, folder / KEYS_FILE)
    _save_state(snapshot, request.state)


def _save_state(snapshot: Snapshot, state: StreamState) -> None:
    state = replace(state, pending=())
    rows, said = sum(state.row_files.values()), json.loads(state.to_json())
    State(state.settings, state.watermark, state.latest, rows, state.taken, said).save(snapshot.path)
