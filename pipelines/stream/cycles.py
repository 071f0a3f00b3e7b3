"""One cycle of a stream: a bounded pipeline over what came in, and what it commits."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.cycle import latest_of
from pipelines.stream.feed import upserts
from pipelines.stream.graph import CycleGraph, CycleInput, Piece
from pipelines.stream.live_tables import CycleResult
from pipelines.stream.row_files import RowFiles
from pipelines.stream.sources import Taking
from pipelines.stream.state import Partition, StreamState
from pipelines.stream.store import LiveStore
from pipelines.stream.watermark import find_watermark
from pipelines.work_folder import (
    LATE_FOLDER,
    NOW_LETTERS_FOLDER,
    WAS_LETTERS_FOLDER,
    Counts,
    read_change,
    read_counts,
    read_letters,
    read_tables,
    read_wakes,
)
from transforms.before import Before
from transforms.changes import changed_rows
from transforms.late_events import split_late
from transforms.pair_steps import Growing
from transforms.settings import Settings
from transforms.stream_settings import StreamSettings
from transforms.tables import CONVERSATIONS, DEAD_LETTERS, LATE_EVENTS, TURNS
from transforms.wakes import WAKE

MANY_ROWS = 40_000
"""From so many rows on a cycle has two shards: for less, a second one costs more than it saves."""

Split = Callable[[pa.Table], tuple[pa.Table, pa.Table]]
"""Tells events (schema PARSED_EVENTS) from late ones (rows of LATE_EVENTS)."""

_WORK = "work"


class Cycles:
    """Runs cycles over a live store; a context manager."""

    def __init__(self, store: LiveStore, settings: Settings, stream: StreamSettings, has_feed: bool = False) -> None:
        """Takes the store, the settings, and whether each cycle leaves messages for the change feed."""
        self._store, self._settings, self._stream, self._has_feed = store, settings, stream, has_feed
        self._work = store.folder / _WORK
        self._graphs = {shards: CycleGraph(settings, shards, self._work) for shards in (1, 2)}
        self._row_files = RowFiles(store, stream.allowed_lateness)
        self._exit = ExitStack()

    def __enter__(self) -> Cycles:
        """Returns itself."""
        for graph in self._graphs.values():
            self._exit.enter_context(graph)
        self._exit.enter_context(self._row_files)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what is under way, and removes the work folder."""
        self._exit.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def run(self, taking: Taking, idle: Collection[str], now: int, split: Split | None = None) -> CycleResult:
        """Runs one cycle and commits it.

        Args:
          taking: what it takes.
          idle: the partitions that do not hold the watermark up.
          now: the time of day, microseconds.
          split: tells events from late ones by another rule; time does not go on then, and no partition either.

        Raises:
          UserError: the disk is full; nothing has changed.
          BrokerAway, LostOffsets: the input could not be read; nothing has changed.
        """
        started = time.monotonic()
        state = self._store.state
        assert state is not None
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        cycle = state.cycle + 1
        shards = 2 if taking.rows >= MANY_ROWS else 1
        moments = _Moments(state, taking, frozenset(idle), self._stream, now, goes_on=split is None)
        keep = self._work / "rows"
        growing = Growing(keep, shards, self._before(state), f"{cycle:012}", tells_ends=True)
        pieces = _Watched(taking)
        lateness = self._stream.allowed_lateness
        split = split or partial(split_late, watermark=state.watermark, allowed_lateness=lateness)
        not_after = now + self._stream.max_future
        given = CycleInput(pieces, taking.read, split, not_after, moments.watermark, growing)
        try:
            self._graphs[shards].run(given)
        except Exception as error:
            # Beam says it in words of its own.
            raise pieces.failure or error from None
        counted = read_counts(self._work)
        files = self._row_files.take(keep, cycle)
        after = replace(
            state,
            cycle=cycle,
            watermark=moments.found,
            latest=latest_of([state.latest, counted.latest_kept]),
            partitions={**state.partitions, **moments.partitions()},
            taken=(*state.taken, *taking.taken(counted.rows, cycle)),
            row_files=files,
        )
        result = self._result(after, taking, counted, time.monotonic() - started)
        self._store.commit(result)
        return result

    def _before(self, state: StreamState) -> Before:
        store = self._store
        return Before(store.row_paths(), store.woken, state.watermark, store.statistics, store.keys_of_customers)

    def _result(self, after: StreamState, taking: Taking, counted: Counts, seconds: float) -> CycleResult:
        """What the pipeline left, checked."""
        work = self._work
        facts = {spec: read_change(work, spec) for spec in (CONVERSATIONS, TURNS)}
        kpis, statistics, _, windows = read_tables(work)
        parsed, now, was = (read_letters(work, folder) for folder in (None, NOW_LETTERS_FOLDER, WAS_LETTERS_FOLDER))
        gone, came = changed_rows(was, now, DEAD_LETTERS.key)
        letters = was.take(pa.array(gone)), pa.concat_tables([parsed, now.take(pa.array(came))])
        late = read_letters(work, LATE_FOLDER, LATE_EVENTS)
        rows = counted.rows
        change = letters[1].num_rows - letters[0].num_rows
        if rows["rows_read"] != rows["events_kept"] + rows["exact_duplicates"] + change + late.num_rows:
            raise AssertionError(f"rows were lost: {rows}, {change} dead letters, {late.num_rows} late events")
        looked_at, wakes, ends = read_wakes(work)
        return CycleResult(
            state=after,
            facts=facts,
            kpis=kpis,
            kpi_statistics=statistics,
            windows=windows,
            letters=letters,
            late_events=late,
            counts=json.dumps(_counts(rows, taking, seconds)),
            looked_at=looked_at,
            wakes=np.concatenate([np.empty(0, WAKE), *wakes]),
            ends=ends,
            contacts=_contacts(facts[CONVERSATIONS][1], self._settings),
            messages=upserts(windows, kpis) if self._has_feed else (),
        )


class _Moments:
    """The watermark that a cycle comes to, by what it finds of each partition."""

    def __init__(
        self,
        state: StreamState,
        taking: Taking,
        idle: frozenset[str],
        stream: StreamSettings,
        now: int,
        goes_on: bool,
    ) -> None:
        self._state, self._taking, self._idle, self._stream, self._now = state, taking, idle, stream, now
        self._latest = {name: self._known(name) for name in taking.ranges}
        self._goes_on = goes_on
        self.found = state.watermark

    def watermark(self, latest: Mapping[str, int]) -> int | None:
        """Is told the latest occurred_at of the partitions that have new rows; gives the new watermark."""
        if not self._goes_on:
            return self.found
        found: dict[str, list[int | None]] = {name: [self._known(name)] for name in self._taking.ranges}
        for source, moment in latest.items():
            found[self._taking.partition_of(source)].append(moment)
        self._latest = {name: latest_of(moments) for name, moments in found.items()}
        self.found = find_watermark(self._state.watermark, self._latest, self._idle, self._stream, self._now)
        return self.found

    def partitions(self) -> dict[str, Partition]:
        """What is remembered of each partition."""
        if not self._goes_on:
            return {}
        return {name: self._taking.after(name, latest) for name, latest in self._latest.items()}

    def _known(self, name: str) -> int | None:
        partition = self._state.partitions.get(name)
        return None if partition is None else partition.latest


class _Watched:
    """Reads what a cycle takes, and keeps what went wrong as it was."""

    def __init__(self, taking: Taking) -> None:
        self._taking = taking
        self.failure: Exception | None = None

    def __call__(self) -> Iterable[Piece]:
        try:
            yield from self._taking.pieces()
        except Exception as error:
            self.failure = error
            raise


def _counts(rows: Counter[str], taking: Taking, seconds: float) -> dict[str, Any]:
    named = {name: count for name, count in rows.items() if not name.startswith("rows of ") and count}
    return {"rows": named, "inputs": taking.inputs(rows), "seconds": seconds}


def _contacts(conversations: pa.Table, settings: Settings) -> pa.Table:
    """Customers of conversations, for repeat contacts; a null customer is nobody."""
    names = ["account_id", "customer_id", "key_hash"]
    some = conversations.select(names)
    if settings.repeat_contact is None:
        return some.slice(0, 0)
    return some.filter(pa.compute.is_valid(some["customer_id"])).group_by(names).aggregate([]).combine_chunks()
