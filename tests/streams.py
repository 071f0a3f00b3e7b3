"""Runs the stateful DoFns under TestStream and puts the changes that they make together, as the loader does."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.utils.timestamp import Timestamp
from drivers import as_rows

from pipelines.sources.blocks import Block
from pipelines.sources.formats import read_block
from transforms.batches import ArrowTableCoder
from transforms.events import parse_events
from transforms.key_changes import decode_changes
from transforms.settings import Settings
from transforms.stateful_steps import (
    DIFFERENCES,
    AddUpKpis,
    PairStreams,
    SplitByBucket,
)
from transforms.stream_settings import SECOND, StreamSettings

Row = dict[str, Any]

FOR_EVER = 1 << 52
"""An allowed lateness within which nothing is late, microseconds."""

WINDOW = ("basis", "grain", "window_start", "account_id", "channel")
VERSION = ("row_count", "effect_count")


class Kept:
    """Changes of pipelines of this process, by a token."""

    changes: ClassVar[dict[str, list[bytes]]] = {}

    @classmethod
    def keep(cls, change: tuple[int, bytes], token: str) -> None:
        """Keeps one."""
        cls.changes[token].append(change[1])


def late_clock() -> float:
    """A processing time at which every timer of the graph is due at once."""
    return 0.0


def run_stream(
    arrivals: Sequence[tuple[int, pa.Table]], settings: Settings, stream: StreamSettings, buckets: int = 3
) -> list[bytes]:
    """Runs the graph from events to changes.

    Args:
      arrivals: watermark (microseconds) and the events that come while it stands there, schema PARSED_EVENTS.
      settings: of the run.
      stream: of the stream.
      buckets: number of buckets.

    Returns:
      The changes, as they came.
    """
    coder = beam.coders.TupleCoder([beam.coders.VarIntCoder(), ArrowTableCoder()])
    source, reached = TestStream(coder=coder), 0
    for watermark, events in arrivals:
        if watermark > reached:
            source.advance_watermark_to(Timestamp(micros=watermark))
            reached = watermark
        source.add_elements([beam.window.TimestampedValue((watermark, events), Timestamp(micros=reached))])
        source.advance_processing_time(10)
    for _ in range(4):
        source.advance_processing_time(10)
    source.advance_watermark_to_infinity()
    token = uuid.uuid4().hex
    Kept.changes[token] = []
    options = PipelineOptions(["--runner=BundleBasedDirectRunner", "--no_save_main_session"])
    options.view_as(StandardOptions).streaming = True
    with beam.Pipeline(options=options) as pipeline:
        events = pipeline | source
        rows = events | "SplitByBucket" >> SplitByBucket(buckets)
        paired = rows | "PairMessages" >> PairStreams(settings, stream, late_clock)
        windows = paired[DIFFERENCES] | "ComputeKpis" >> AddUpKpis(settings.timezone, late_clock)
        (paired.changes, windows) | beam.Flatten() | "Keep" >> beam.Map(Kept.keep, token)
    return Kept.changes.pop(token)


def arrivals_of(lines: Sequence[bytes], rng: random.Random, last: int) -> list[tuple[int, pa.Table]]:
    """Events in parts, in the order of the lines; the watermark goes on at random, to `last` at the end."""
    parts: list[tuple[int, pa.Table]] = []
    watermark, place = 0, 0
    while place < len(lines):
        size = rng.randint(1, 1 + len(lines) // 3)
        block = Block("part-0.ndjson", "ndjson", place + 1, b"\n".join(lines[place : place + size]))
        place += size
        events = parse_events(read_block(block)).events
        if not events.num_rows:
            continue
        parts.append((watermark, events))
        if rng.random() < 0.7:
            watermark = max(watermark, rng.choice(np.asarray(events["occurred_at"].cast(pa.int64())).tolist()))
            watermark -= watermark % SECOND
    return [*parts, (last, parts[0][1].slice(0, 0))] if parts else []


def tables_of(changes: Sequence[bytes]) -> dict[str, list[Row]]:
    """The tables that changes add up to: of every key, and of every window, the highest version."""
    by_kind = {kind: as_rows(table) for kind, table in decode_changes(changes).items()}
    heads: dict[int, list[Row]] = {}
    for head in by_kind.get("keys", []):
        heads.setdefault(head["key_hash"], []).append(head)
    found = {
        kind: _standing(by_kind.get(kind, []), heads, at)
        for kind, at in (("conversations", "started_at"), ("turns", "started_at"), ("pair_letters", "occurred_at"))
    }
    for row in found["pair_letters"]:
        del row["occurred_at"]
    windows: dict[tuple[Any, ...], Row] = {}
    for row in by_kind.get("windows", []):
        name = tuple(row[column] for column in WINDOW)
        if name not in windows or version_of(windows[name]) <= version_of(row):
            windows[name] = row
    filled = [row for row in windows.values() if any(row[n] for n in row if n not in (*WINDOW, *VERSION, "window_end"))]
    found["kpi_statistics"] = [{n: v for n, v in row.items() if n not in VERSION} for row in filled]
    found["keys"] = [max(some, key=version_of) for some in heads.values()]
    return found


def version_of(row: Row) -> tuple[int, int]:
    """How far a row had come."""
    return row["row_count"], row["effect_count"]


def _standing(rows: list[Row], heads: dict[int, list[Row]], at: str) -> list[Row]:
    """The rows that no higher version of their key takes away; each once."""
    found: dict[str, Row] = {}
    for row in rows:
        higher = [head for head in heads[row["key_hash"]] if version_of(head) > version_of(row)]
        if not any(head["begins_at"] <= row[at] <= head["ends_at"] for head in higher):
            plain = {name: value for name, value in row.items() if name not in (*VERSION, "key_hash")}
            found[json.dumps(plain, sort_keys=True, default=str)] = plain
    return list(found.values())
