"""Runs the kernels one after another, as the pipeline does, without Beam."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.sources.blocks import Block
from pipelines.sources.formats import read_block
from transforms.dead_letters import conflict_letters
from transforms.events import parse_events
from transforms.histograms import Histogram
from transforms.kpis import compute_kpis
from transforms.ordering import order_events
from transforms.pairing import pair_messages
from transforms.repeat_contacts import find_repeat_contacts, split_contacts, undo_resolutions
from transforms.schema import PARSED_EVENTS
from transforms.settings import Settings
from transforms.shuffle import split_by_key
from transforms.statistics import HISTOGRAM_NAMES, Statistics, add_statistics

Row = dict[str, Any]


@dataclass
class Outcome:
    """Tables as lists of rows (times in microseconds), and counts in the words of the golden cases."""

    conversations: list[Row]
    turns: list[Row]
    kpis: list[Row]
    kpi_statistics: pa.Table
    statistics: Statistics
    counts: dict[str, Any] = field(default_factory=dict)
    dead_letters: list[Row] = field(default_factory=list)

    def tables(self) -> dict[str, list[Row]]:
        """What a golden case compares."""
        return {"conversations": self.conversations, "turns": self.turns, "kpis": self.kpis}


def run_kernels(parts: list[bytes], settings: Settings, shards: int = 1) -> Outcome:
    """Runs parse, shuffle, order, pair and KPIs.

    Args:
      parts: NDJSON files.
      settings: of the run.
      shards: number of shards.
    """
    parsed = [
        parse_events(read_block(Block(f"part-{place}.ndjson", "ndjson", 1, payload)))
        for place, payload in enumerate(parts)
    ]
    letters = [p.dead_letters for p in parsed]
    by_shard: dict[int, list[pa.Table]] = {}
    for p in parsed:
        for shard, rows in split_by_key(p.events, shards):
            by_shard.setdefault(shard, []).append(rows)
    whole = {s: pa.concat_tables(t).unify_dictionaries().combine_chunks() for s, t in by_shard.items()}
    ordered = {
        s: order_events(t.select(PARSED_EVENTS.names), t["key_hash"].to_numpy(), t["event_hash"].to_numpy())
        for s, t in whole.items()
    }
    letters += [conflict_letters(t.take(pa.array(ordered[s].conflicts))) for s, t in whole.items()]
    at = {s: t["occurred_at"].cast(pa.int64()).to_numpy()[ordered[s].rows] for s, t in whole.items()}
    latest = max((int(times.max()) for times in at.values()), default=None)
    as_of = settings.as_of if settings.as_of is not None else latest
    paired = {
        s: pair_messages(t, ordered[s], settings, max(v for v in (as_of, latest) if v is not None))
        for s, t in whole.items()
    }
    conversations = {s: p.conversations for s, p in paired.items()}
    statistics = [p.statistics for p in paired.values()]
    if settings.repeat_contact is not None:
        contacts = [t for s, c in conversations.items() for _, t in split_contacts(c, s, 1)]
        if contacts:
            found = find_repeat_contacts(pa.concat_tables(contacts), settings.repeat_contact, settings.timezone)
            conversations |= {s: undo_resolutions(conversations[s], rows) for s, rows in found.rows.items()}
            statistics.append(found.statistics)
    total = add_statistics(statistics)
    kpis, parts_of_kpis, *_ = compute_kpis(total, settings.timezone, as_of or 0)
    dead = [row for table in letters for row in table.to_pylist()]
    counts = {
        "rows_read": sum(p.rows_read for p in parsed),
        "events_kept": sum(len(o.rows) for o in ordered.values()),
        "exact_duplicates": sum(o.exact_duplicate_count for o in ordered.values()),
        "late_events": 0,
        "dead_letters": len(dead),
        "dead_letters_by_reason": dict(sorted(Counter(row["reason"] for row in dead).items())),
        "stray_events": sum(p.stray_event_count for p in paired.values()),
        "conversations": sum(c.num_rows for c in conversations.values()),
        "turns": sum(p.turns.num_rows for p in paired.values()),
        "as_of": as_of,
    }
    return Outcome(
        [row for table in conversations.values() for row in as_rows(table)],
        [row for p in paired.values() for row in as_rows(p.turns)],
        with_running_sums(as_rows(kpis)),
        parts_of_kpis,
        total,
        counts,
        dead,
    )


def as_rows(table: pa.Table) -> list[Row]:
    """Rows of a table; times as whole microseconds."""
    for place, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(pa.int64()))
    rows: list[Row] = table.to_pylist()
    return rows


def with_running_sums(kpis: list[Row]) -> list[Row]:
    """Adds backlog_count and waiting_count, the running sums of the changes."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for row in sorted(kpis, key=lambda row: row["window_start"]):
        for what in ("backlog", "waiting"):
            of = (what, row["grain"], row["account_id"], row["channel"])
            if row["basis"] == "activity":
                sums[of] += row[f"{what}_change"]
            row[f"{what}_count"] = sums[of] if row["basis"] == "activity" else None
    return kpis


def whole_numbers(statistics: Statistics) -> dict[tuple[Any, ...], Any]:
    """Statistics as a mapping from cell to sums and bins, to compare two of them whatever their codes."""
    basis, account, channel, seconds = statistics.unpack()
    bins: dict[int, dict[tuple[str, int], int]] = {}
    for name in HISTOGRAM_NAMES:
        for cell, bucket, count in zip(*map(np.ndarray.tolist, parts_of(statistics.histogram(name))), strict=True):
            bins.setdefault(cell, {})[name, bucket] = count
    return {
        (
            int(basis[i]),
            statistics.accounts[account[i]],
            statistics.channels[channel[i]],
            int(seconds[i]),
        ): (statistics.sums[:, i].tolist(), bins.get(i, {}))
        for i in np.arange(len(statistics.cell)).tolist()
    }


def parts_of(histogram: Histogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place, bucket and count of each bin."""
    return histogram.place, histogram.bucket, histogram.counts
