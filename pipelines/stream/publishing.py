"""Publishing what a stream has committed: one commit of the result that readers see, beside the cycles that go on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.growth import ROWS_FOLDER, State
from pipelines.options import package_version
from pipelines.settings import settings_record
from pipelines.stream.live_tables import CHANGES
from pipelines.stream.state import StreamState
from pipelines.stream.store import LiveStore
from sinks.duckdb import build_warehouse
from sinks.growing import Restatement, WarehouseCopy, grow_result, same_key
from sinks.links import link_or_copy
from sinks.output_folder import STATE
from sinks.publish import Snapshot, open_snapshot
from sinks.revisions import UNREVISED
from transforms.kpis import WINDOW_KEY
from transforms.settings import Settings
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_STATISTICS,
    LATE_EVENTS,
    RUNS,
    TURNS,
    Table,
)

KEYS_FILE = "keys.npy"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Published:
    """What was published.

    Attributes:
      cycle: the last cycle that is in it.
      commit_id: its number.
      seconds: how long it took.
    """

    cycle: int
    commit_id: int
    seconds: float


class Publisher:
    """Publishes one result at a time in a thread; a context manager."""

    def __init__(self, output: Path, settings: Settings) -> None:
        """Takes the output folder, whose lock the caller holds."""
        self._output, self._settings = output, settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._running: Future[Published] | None = None

    def __enter__(self) -> Publisher:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is under way."""
        self._thread.shutdown()

    @property
    def is_running(self) -> bool:
        """Whether a result is in the making."""
        return self._running is not None

    def begin(self, store: LiveStore) -> None:
        """Begins to publish what is committed at this moment."""
        assert self._running is None and store.state is not None
        live = store.cursor()
        live.execute("SET TimeZone = 'UTC'")
        live.begin()
        # From the first query on it sees the store as it is now.
        live.execute("SELECT said FROM state").fetchall()
        self._running = self._thread.submit(self._publish, live, store.state, store.row_paths())

    def finish(self, store: LiveStore, wait: bool = False) -> Published | None:
        """Tells the store what has been published; None where nothing is ready.

        Raises:
          UserError: the disk is full; nothing has changed for readers, and the store keeps what is pending.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        running, self._running = self._running, None
        published = running.result()
        store.forget_pending(published.cycle)
        store.checkpoint()
        return published

    def _publish(self, live: duckdb.DuckDBPyConnection, state: StreamState, rows: tuple[Path, ...]) -> Published:
        started = time.monotonic()
        with open_snapshot(self._output, is_locked=True) as snapshot, WarehouseCopy(snapshot) as warehouse:
            with live:
                change = _restatement(live, snapshot, state, self._settings, started)
                _keep_state(live, snapshot, state, rows)
            warehouse.finish()
            grow_result(snapshot, change)
            snapshot.publish()
        return Published(state.cycle, snapshot.commit_id, time.monotonic() - started)


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


def _restatement(
    live: duckdb.DuckDBPyConnection, snapshot: Snapshot, state: StreamState, settings: Settings, started: float
) -> Restatement:
    """All that is pending, as one change of the result."""
    windows = live.sql(f"SELECT DISTINCT {', '.join(WINDOW_KEY.names)} FROM touched_windows").to_arrow_table()
    live.register("touched", windows)
    same_window = same_key(KPI_STATISTICS)
    kpis, statistics = (
        live.sql(f"SELECT t.* FROM {name} AS t JOIN touched AS r ON {same_window}").to_arrow_table().cast(schema)
        for name, schema in (("kpis", UNREVISED.schema), ("kpi_statistics", KPI_STATISTICS.schema))
    )
    facts = {spec: _net_change(live, spec, CHANGES[spec], "key_hash") for spec in (CONVERSATIONS, TURNS)}
    letters = _net_change(live, DEAD_LETTERS, "letter_changes")
    late = live.sql(f"SELECT {', '.join(LATE_EVENTS.schema.names)} FROM late_events").to_arrow_table()
    cycles = [json.loads(counts) for (counts,) in live.execute("SELECT counts FROM cycles ORDER BY cycle").fetchall()]
    reasons = Counter(letters[1]["reason"].to_pylist())
    reasons.subtract(letters[0]["reason"].to_pylist())
    return Restatement(
        facts=facts,
        kpis=kpis,
        kpi_statistics=statistics,
        windows=windows.cast(WINDOW_KEY),
        letters_removed=letters[0],
        letters_added=letters[1],
        run=_run(snapshot, state, settings, cycles, reasons, started),
        late_added=late.cast(LATE_EVENTS.schema),
    )


def _net_change(live: duckdb.DuckDBPyConnection, spec: Table, name: str, *more: str) -> tuple[pa.Table, pa.Table]:
    """The rows of a table that go and that come, all cycles taken together."""
    columns, key = ", ".join([*spec.schema.names, *more]), ", ".join(spec.key)
    schema = pa.schema([*spec.schema, *(pa.field(column, pa.uint64(), False) for column in more)])
    sides = []
    for order, wanted in (("cycle, is_added", "NOT is_added"), ("cycle DESC, is_added DESC", "is_added")):
        # What a row was before all of them, or is after all of them.
        ranked = f"SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY {order}) AS place FROM {name}"
        rows = live.sql(f"SELECT {columns} FROM ({ranked}) WHERE place = 1 AND {wanted}").to_arrow_table()
        sides.append(rows.cast(schema))
    return sides[0], sides[1]


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


def _keep_state(
    live: duckdb.DuckDBPyConnection, snapshot: Snapshot, state: StreamState, rows: tuple[Path, ...]
) -> None:
    """Leaves all that the stream remembers with the result: were the live store lost, it would go on from there."""
    folder = snapshot.path / STATE
    for path in rows:
        link_or_copy(path, folder / ROWS_FOLDER / path.name)
    keys = live.sql("SELECT key_hash, coalesce(wake_at, -1) AS wake_at, ends_at FROM keys").to_arrow_table()
    folder.mkdir(exist_ok=True)
    np.save(folder / KEYS_FILE, np.stack([keys[name].to_numpy().view(np.int64) for name in keys.column_names]))
    _save_state(snapshot, state)


def _save_state(snapshot: Snapshot, state: StreamState) -> None:
    rows, said = sum(state.row_files.values()), json.loads(state.to_json())
    State(state.settings, state.watermark, state.latest, rows, state.taken, said).save(snapshot.path)
