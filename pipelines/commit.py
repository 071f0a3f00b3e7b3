"""The commit: checks what a run came to, builds the warehouse and makes everything visible at once."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipelines.cycle import Cycle, latest_of
from pipelines.keeping import keep_state
from pipelines.letters import Letters
from pipelines.options import BatchOptions, package_version
from pipelines.settings import settings_record
from pipelines.sources.files import InputFile
from pipelines.stages import Stages
from pipelines.summary import RunSummary
from pipelines.work_folder import read_change, read_counts, read_tables
from sinks.duckdb import WarehouseLoader, build_warehouse
from sinks.growing import Restatement, WarehouseCopy, grow_result
from sinks.publish import WAREHOUSE, Snapshot
from transforms.errors import UserError
from transforms.kpis import compute_totals
from transforms.stored_statistics import read_statistics
from transforms.tables import CONVERSATIONS, RUNS, TURNS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


Warehouse = WarehouseLoader | WarehouseCopy
"""The DuckDB file of a result in the making: loaded anew, or a copy of the one before."""


def begin_warehouse(snapshot: Snapshot, cycle: Cycle) -> Warehouse:
    """Begins the DuckDB file of a cycle, beside what else goes on."""
    return WarehouseLoader(snapshot.path / WAREHOUSE) if cycle.before is None else WarehouseCopy(snapshot)


def commit_run(
    snapshot: Snapshot, work: Path, cycle: Cycle, stages: Stages, warehouse: Warehouse, started: float
) -> RunSummary:
    """Checks and publishes what the pipeline left.

    Args:
      snapshot: the result in the making; conversations and turns are there, or in the work folder what changes in them.
      work: the work folder.
      cycle: what was read, and what it is added to.
      stages: is told how far the run is.
      warehouse: the DuckDB file.
      started: when the run began, seconds of the monotonic clock.

    Returns:
      What was read, what came of it and where it is.

    Raises:
      UserError: too many dead letters, as_of lies before an event, or the audit failed; then nothing was published.
    """
    options, counted = cycle.options, read_counts(work)
    counts, latest = counted.rows, cycle.latest(counted)
    as_of = options.settings.as_of if options.settings.as_of is not None else latest_of([latest, cycle.passed])
    _check_as_of(as_of, latest)
    letters = Letters.of(snapshot, work, cycle)
    by_reason = letters.by_reason(counts)
    _check_dead_letters(letters, by_reason, counts, options.max_dead_letter_rate)
    replaced = () if cycle.growth is None else cycle.growth.plan.replaced
    rows_read = counts["rows_read"] - sum(taken.rows for taken in replaced)
    kept, copies = counts["events_kept"], counts["exact_duplicates"]
    if rows_read != kept + copies + letters.change or by_reason.total() != letters.change:
        raise AssertionError(f"rows were lost: {counts}, {rows_read} rows read, {letters.change} dead letters")
    was = _rows_before(snapshot, cycle)
    run: dict[str, object] = {
        "commit_id": snapshot.commit_id,
        "committed_at": datetime.now(UTC),
        "kind": "batch" if cycle.before is None else "append",
        "as_of": None if as_of is None else _EPOCH + timedelta(microseconds=as_of),
        "timezone": options.settings.timezone,
        "rows_read_count": rows_read,
        "events_kept_count": kept,
        "dead_letter_count": letters.change,
        "exact_duplicate_count": copies,
        "late_event_count": 0,
        "stray_event_count": counts["stray_events"],
        "conversation_count": was[CONVERSATIONS.name] + counts["conversations"],
        "turn_count": was[TURNS.name] + counts["turns"],
        "dead_letters_by_reason": {reason: n for reason, n in sorted(by_reason.items()) if n},
        "inputs": [_input(file, cycle, counts) for file in cycle.files],
        "settings": settings_record(options.settings),
        "duration_seconds": time.monotonic() - started,
        "version": package_version(),
    }
    kpis, statistics, totals, windows = read_tables(work)
    if isinstance(warehouse, WarehouseLoader):
        build_warehouse(
            snapshot.path,
            kpis=kpis,
            kpi_statistics=statistics,
            dead_letters=letters.added,
            runs=_runs_table(run),
            previous=snapshot.previous,
            loader=warehouse,
        )
    else:
        warehouse.finish()
        facts = {spec: read_change(work, spec) for spec in (CONVERSATIONS, TURNS)}
        run_table = _runs_table(run)
        by_month = grow_result(
            snapshot, Restatement(facts, kpis, statistics, windows, letters.removed, letters.added, run_table)
        )
        totals = compute_totals(read_statistics(by_month))
    if cycle.growth is not None:
        keep_state(snapshot, work, cycle, counted, as_of)
    shutil.rmtree(work)
    about, audit_notes = _audited(snapshot, options, stages)
    stages.begin("Publishing")
    snapshot.publish(about)
    stages.end()
    run["duration_seconds"] = time.monotonic() - started
    return RunSummary(
        **run,  # type: ignore[arg-type]
        kpis=_totals(totals),
        parquet_path=options.output,
        duckdb_path=options.output / "care.duckdb",
        unknown_columns=sorted(n.removeprefix("unknown column ") for n in counts if n.startswith("unknown column ")),
        stage_seconds=stages.seconds,
        notes=(*(() if cycle.growth is None else cycle.growth.notes), *audit_notes),
    )


def _audited(snapshot: Snapshot, options: BatchOptions, stages: Stages) -> tuple[dict[str, object], tuple[str, ...]]:
    """What an audit adds to the manifest, and its sentences; nothing where none was asked for."""
    if not options.audit:
        return {}, ()
    stages.begin("Auditing")
    # It takes long to import.
    from pipelines.audit.run import audit_commit

    return audit_commit(snapshot, options.output)


def _rows_before(snapshot: Snapshot, cycle: Cycle) -> Counter[str]:
    """Rows of each table of the result that this one is added to."""
    if cycle.before is None:
        return Counter()
    return Counter({spec.name: snapshot.previous_rows(spec.name) for spec in (CONVERSATIONS, TURNS)})


def _input(file: InputFile, cycle: Cycle, counts: Counter[str]) -> dict[str, object]:
    """What `runs` tells of a file; its SHA-256 where it is known, and its source where that is not its name."""
    told: dict[str, object] = {"name": file.path, "bytes": file.size, "rows": counts[f"rows of {file.path}"]}
    if cycle.growth is not None:
        plan = cycle.growth.plan
        told["sha256"] = plan.sha256[file.path]
        if file.path in plan.sources:
            told["source"] = plan.sources[file.path]
    return told


def _check_as_of(as_of: int | None, latest: int | None) -> None:
    if as_of is not None and latest is not None and as_of < latest:
        given, last = (_EPOCH + timedelta(microseconds=moment) for moment in (as_of, latest))
        raise UserError(
            f"as_of: expected a moment not before the latest event, which is of {last.isoformat()}, got "
            f"{given.isoformat()}: leave as_of out, or read only the events before it."
        )


def _check_dead_letters(letters: Letters, by_reason: Counter[str], counts: Counter[str], most: float) -> None:
    """Refuses a run that has too many dead letters."""
    rows, dead = counts["rows_read"], letters.added.num_rows
    if not dead <= most * rows:
        commonest = ", ".join(f"{reason} {count:,}" for reason, count in by_reason.most_common(3))
        first = letters.added.slice(0, 1).to_pylist()[0]
        column = f", column {first['column_name']}" if first["column_name"] else ""
        hint = " NDJSON is one JSON object a line." if by_reason["unreadable"] == dead else ""
        raise UserError(
            f"Expected at most {most:.1%} of the rows to be dead letters (--max-dead-letter-rate), got {dead:,} of "
            f"{rows:,} ({dead / max(rows, 1):.1%}): {commonest}; one is row {first['source_row']:,} of "
            f"{first['source']} ({first['reason']}{column}). Nothing was published: mend the input, say its --format "
            f"or --source, or allow a higher rate.{hint}"
        )


def _runs_table(run: dict[str, object]) -> pa.Table:
    """The row of `runs`; what is a mapping or a list goes in as JSON."""
    row = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in run.items()
    }
    return pa.Table.from_pylist([row], schema=RUNS.schema)


def _totals(totals: pa.Table) -> list[dict[str, object]]:
    """One mapping per channel; the changes over all time are what is left at the end."""
    rows = totals.to_pylist()
    for row in rows:
        row["backlog_count"], row["waiting_count"] = row["backlog_change"], row["waiting_change"]
    return rows
