"""The commit: checks what a run came to, builds the warehouse and makes everything visible at once."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipelines.options import BatchOptions, package_version
from pipelines.settings import settings_record
from pipelines.sources.files import InputFile
from pipelines.stages import Stages
from pipelines.summary import RunSummary
from pipelines.work_folder import read_counts, read_letters, read_tables
from sinks.duckdb import WarehouseLoader, build_warehouse
from sinks.publish import Snapshot
from transforms.errors import UserError
from transforms.tables import RUNS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def commit_run(
    snapshot: Snapshot,
    work: Path,
    files: Sequence[InputFile],
    options: BatchOptions,
    stages: Stages,
    loader: WarehouseLoader,
    started: float,
) -> RunSummary:
    """Checks and publishes what the pipeline left.

    Args:
      snapshot: the result in the making; conversations and turns are there.
      work: the work folder.
      files: what was read.
      options: of the run.
      stages: is told how far the run is.
      loader: of the warehouse, with the files that it has taken already.
      started: when the run began, seconds of the monotonic clock.

    Returns:
      What was read, what came of it and where it is.

    Raises:
      UserError: too many dead letters, or as_of lies before an event; then nothing was published.
    """
    counted = read_counts(work)
    counts, latest = counted.rows, counted.latest_kept
    as_of = options.settings.as_of if options.settings.as_of is not None else latest
    _check_as_of(as_of, latest)
    by_reason = _check_dead_letters(work, counts, options.max_dead_letter_rate)
    letters = read_letters(work)
    kept, copies = counts["events_kept"], counts["exact_duplicates"]
    if counts["rows_read"] != kept + copies + letters.num_rows or by_reason.total() != letters.num_rows:
        raise AssertionError(f"rows were lost: {counts}, {letters.num_rows} dead letters")
    committed_at = datetime.now(UTC)
    inputs = [{"name": f.path, "bytes": f.size, "rows": counts[f"rows of {f.path}"]} for f in files]
    run: dict[str, object] = {
        "commit_id": snapshot.commit_id,
        "committed_at": committed_at,
        "kind": "batch",
        "as_of": None if as_of is None else _EPOCH + timedelta(microseconds=as_of),
        "timezone": options.settings.timezone,
        "rows_read_count": counts["rows_read"],
        "events_kept_count": kept,
        "dead_letter_count": letters.num_rows,
        "exact_duplicate_count": copies,
        "late_event_count": 0,
        "stray_event_count": counts["stray_events"],
        "conversation_count": counts["conversations"],
        "turn_count": counts["turns"],
        "dead_letters_by_reason": dict(sorted(by_reason.items())),
        "inputs": inputs,
        "settings": settings_record(options.settings),
        "duration_seconds": time.monotonic() - started,
        "version": package_version(),
    }
    kpis, statistics, totals = read_tables(work)
    build_warehouse(
        snapshot.path,
        kpis=kpis,
        kpi_statistics=statistics,
        dead_letters=letters,
        runs=_runs_table(run),
        previous=snapshot.previous,
        loader=loader,
    )
    stages.begin("Publishing")
    shutil.rmtree(work)
    snapshot.publish()
    stages.end()
    run["duration_seconds"] = time.monotonic() - started
    return RunSummary(
        **run,  # type: ignore[arg-type]
        kpis=_totals(totals),
        parquet_path=options.output,
        duckdb_path=options.output / "care.duckdb",
        unknown_columns=sorted(n.removeprefix("unknown column ") for n in counts if n.startswith("unknown column ")),
        stage_seconds=stages.seconds,
    )


def _check_as_of(as_of: int | None, latest: int | None) -> None:
    if as_of is not None and latest is not None and as_of < latest:
        given, last = (_EPOCH + timedelta(microseconds=moment) for moment in (as_of, latest))
        raise UserError(
            f"as_of: expected a moment not before the latest event, which is of {last.isoformat()}, got "
            f"{given.isoformat()}: leave as_of out, or read only the events before it."
        )


def _check_dead_letters(work: Path, counts: Counter[str], most: float) -> Counter[str]:
    """The numbers of dead letters by reason; refuses a run that has too many."""
    prefix = "dead letter "
    by_reason = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
    rows, dead = counts["rows_read"], by_reason.total()
    if not dead <= most * rows:
        commonest = ", ".join(f"{reason} {count:,}" for reason, count in by_reason.most_common(3))
        first = read_letters(work, one=True).to_pylist()[0]
        column = f", column {first['column_name']}" if first["column_name"] else ""
        hint = " NDJSON is one JSON object a line." if by_reason["unreadable"] == dead else ""
        raise UserError(
            f"Expected at most {most:.1%} of the rows to be dead letters (--max-dead-letter-rate), got {dead:,} of "
            f"{rows:,} ({dead / rows:.1%}): {commonest}; one is row {first['source_row']:,} of {first['source']} "
            f"({first['reason']}{column}). Nothing was published: mend the input, say its --format or --source, or "
            f"allow a higher rate.{hint}"
        )
    return by_reason


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
