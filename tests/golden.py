"""Golden cases: known inputs with known tables, and the rules by which a run is compared with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from transforms.settings import ChannelSettings, Settings

Row = dict[str, Any]

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "golden"
"""Where the cases lie, beside the project; a checkout without them has none."""

KEYS = {
    "conversations": ("conversation_key", "started_at"),
    "turns": ("conversation_key", "started_at", "turn_number"),
    "kpis": ("basis", "grain", "window_start", "account_id", "channel"),
    "statistics": ("basis", "grain", "window_start", "account_id", "channel"),
}
EITHER = (("backlog_count", "backlog_change"), ("waiting_count", "waiting_change"))
"""Columns of kpis of which one will do: the one can be made from the other."""

KPI_COLUMNS = tuple(
    """
    basis grain window_start window_end account_id channel is_complete message_count reply_count bot_reply_count
    conversation_count proactive_count avg_first_response_seconds p50_first_response_seconds p90_first_response_seconds
    p95_first_response_seconds avg_first_reply_seconds p50_first_reply_seconds avg_reply_seconds p50_reply_seconds
    p90_reply_seconds p95_reply_seconds avg_answer_seconds avg_handle_seconds p50_handle_seconds p90_handle_seconds
    avg_engaged_seconds avg_hold_seconds avg_resolution_seconds p50_resolution_seconds p90_resolution_seconds
    first_contact_resolution_rate one_touch_rate response_rate human_response_rate resolution_rate reopen_rate
    transfer_rate escalation_rate backlog_count waiting_count avg_csat csat_rate rating_count backlog_change
    waiting_change
    """.split()
)
"""Columns of kpis that the cases know; a row of a case leaves out those that are null."""

TIME = re.compile(r".*_at|window_start|window_end|as_of")
PERCENTILE = re.compile(r"p\d+_.*")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cases() -> list[Path]:
    """Folders of the golden cases, sorted; empty where there are none."""
    return sorted(path.parent for path in FOLDER.glob("*/*/events.ndjson"))


def lines_of(case: Path) -> list[bytes]:
    """The raw lines of a case, byte for byte, without their line ends."""
    return (case / "events.ndjson").read_bytes().split(b"\n")


def settings_of(case: Path) -> Settings:
    """The settings of a case; what it does not name has the contract's default."""
    named = json.loads((case / "settings.json").read_text("utf-8"))

    def channel_settings(values: Mapping[str, Any], base: ChannelSettings) -> ChannelSettings:
        durations = {
            name: round(values[f"{name}_seconds"] * 1_000_000) if f"{name}_seconds" in values else getattr(base, name)
            for name in ("gap", "max_idle", "max_open")
        }
        flags = {
            name: values.get(name, getattr(base, name))
            for name in ("split_threads", "infer_resolution", "has_life_cycle")
        }
        return ChannelSettings(**durations, **flags)

    default = channel_settings(named, ChannelSettings())
    repeat_contact = named.get("repeat_contact_seconds")
    return Settings(
        default=default,
        channels={name: channel_settings(values, default) for name, values in named.get("channels", {}).items()},
        repeat_contact=None if repeat_contact is None else round(repeat_contact * 1_000_000),
        timezone=named.get("timezone", "UTC"),
        as_of=None if named.get("as_of") is None else micros(named["as_of"]),
    )


def expected(case: Path) -> dict[str, Any]:
    """The tables (lists of rows, times in microseconds, absent columns None) and the counts of a case."""
    tables: dict[str, Any] = {}
    for name in ("conversations", "turns", "kpis"):
        with open(case / f"{name}.ndjson", encoding="utf-8") as source:
            rows = [json.loads(line) for line in source]
        if name == "kpis":
            rows = [dict.fromkeys(KPI_COLUMNS) | row for row in rows]
        tables[name] = [plain_row(row) for row in rows]
    tables["counts"] = plain_row(json.loads((case / "counts.json").read_text("utf-8")))
    return tables


def micros(value: Any) -> int:
    """A moment (datetime, or ISO text) in microseconds since the epoch."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1)


def plain_row(row: Mapping[str, Any]) -> Row:
    """A row whose times are microseconds, whatever they were before."""
    return {
        column: micros(value) if TIME.fullmatch(column) and isinstance(value, str | datetime) else value
        for column, value in row.items()
    }


def same(column: str, ours: Any, want: Any, percentile_error: float = 0.01) -> bool:
    """Whether two values count as equal.

    Texts, booleans, times and counts are exact; null equals only null; percentiles are within `percentile_error`
    + 1e-6; other numbers within 1e-6 relative + 1e-9.
    """
    if ours is None or want is None:
        return ours is None and want is None
    if isinstance(want, bool | str | list) or isinstance(ours, bool | str | list):
        return type(ours) is type(want) and bool(ours == want)
    if math.isnan(ours):
        return False
    if TIME.fullmatch(column) or column.endswith(("_count", "_number", "_change")):
        return bool(ours == want)
    if PERCENTILE.fullmatch(column):
        return bool(abs(ours - want) <= percentile_error * abs(want) + 1e-6)
    return bool(abs(ours - want) <= 1e-6 * max(abs(ours), abs(want)) + 1e-9)


def compare(ours: Mapping[str, Any], case: Path, percentile_error: float = 0.01) -> list[str]:
    """Differences between a run's tables (and counts, where it has them) and a golden case; empty where there is none.

    Args:
      ours: table name -> rows; "counts" -> counts as of counts.json.
      case: folder of the case.
      percentile_error: relative error that percentiles may have.

    Returns:
      A sentence for each difference.
    """
    return compare_tables(ours, expected(case), percentile_error)


def compare_tables(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    percentile_error: float = 0.01,
    tables: Iterable[str] = ("conversations", "turns", "kpis"),
) -> list[str]:
    """Differences between two runs; `theirs` says which columns there must be, more columns in `ours` are ignored.

    Args:
      ours: table name -> rows (column -> value; times as microseconds, aware datetimes or ISO text).
      theirs: the same, of the run that is right (such as `Result.tables` of the reference).
      percentile_error: relative error that percentiles may have.
      tables: tables to compare.

    Returns:
      A sentence for each difference.
    """
    found: list[str] = []
    for name in tables:
        found += [f"{name}: {line}" for line in compare_rows(ours[name], theirs[name], name, percentile_error)]
    if "counts" in ours and "counts" in theirs:
        counts = plain_row(ours["counts"])
        for column, want in theirs["counts"].items():
            if counts.get(column) != want:
                found.append(f"counts: {column} is {counts.get(column)!r}, expected {want!r}")
    return found


def compare_rows(
    ours: Iterable[Mapping[str, Any]], theirs: Iterable[Mapping[str, Any]], name: str, percentile_error: float
) -> list[str]:
    """Differences between the rows of one table."""
    key, found = KEYS[name], []

    def label(place: tuple[Any, ...]) -> str:
        return ", ".join(f"{column}={shown(column, value)}" for column, value in zip(key, place, strict=True))

    def index(rows: Iterable[Mapping[str, Any]], side: str) -> dict[tuple[Any, ...], Row]:
        by_key: dict[tuple[Any, ...], Row] = {}
        for row in map(plain_row, rows):
            place = tuple(row[column] for column in key)
            if place in by_key:
                found.append(f"twice in {side}: {label(place)}")
            by_key[place] = row
        return by_key

    have, want = index(ours, "the output"), index(theirs, "what is expected")
    found += [f"row missing: {label(place)}" for place in want if place not in have]
    found += [f"row too many: {label(place)}" for place in have if place not in want]
    shared = [place for place in want if place in have]
    columns = list(dict.fromkeys(column for place in shared for column in want[place]))
    absent = {column for column in columns if any(column not in have[place] for place in shared)}
    excused = {c for pair in EITHER if name == "kpis" and not set(pair) <= absent for c in pair}
    found += [f"column {column} is missing" for column in columns if column in absent - excused]
    columns = [column for column in columns if column not in absent]
    for place in shared:
        for column in columns:
            if column in want[place] and not same(column, have[place][column], want[place][column], percentile_error):
                ours_shown, want_shown = shown(column, have[place][column]), shown(column, want[place][column])
                found.append(f"{column}: {ours_shown}, expected {want_shown} ({label(place)})")
    return found


def shown(column: str, value: Any) -> str:
    """A value for a reader: times as ISO text."""
    if TIME.fullmatch(column) and isinstance(value, int) and not isinstance(value, bool):
        return (EPOCH + timedelta(microseconds=value)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return repr(value)
