"""Pairing as a Beam transform: of a whole result, and of what new rows change in one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsSingleton, TaggedOutput

from transforms import metrics
from transforms.batches import ThreadedFn, keep_table, kept_table
from transforms.before import Before
from transforms.changes import changed_rows
from transforms.hashing import Hashes
from transforms.open_rows import rows_of_keys, without_sources, write_rows
from transforms.paired_rows import NO_ENDS, Ends, PairedRows, key_ends, pair_rows
from transforms.repeat_steps import FindRepeatContacts
from transforms.settings import Settings
from transforms.shards import shard_of
from transforms.shuffle import SHUFFLED_EVENTS, ShardFile, read_shard, with_plain_ids
from transforms.statistics import Statistics, add_statistics
from transforms.steps import COUNTS, DEAD_LETTERS, LATEST, Gather
from transforms.tables import CONVERSATIONS
from transforms.tables import TURNS as TURNS_TABLE

TURNS, STATISTICS, WAKES, CHANGES = "turns", "statistics", "wakes", "changes"
WAS_CONVERSATIONS, WAS_TURNS, WAS_LETTERS, WAS_LATEST = "was_conversations", "was_turns", "was_letters", "was_latest"
_OUTPUTS = (
    *(TURNS, STATISTICS, COUNTS, DEAD_LETTERS, LATEST, WAKES, CHANGES),
    *(WAS_CONVERSATIONS, WAS_TURNS, WAS_LETTERS, WAS_LATEST),
)


@dataclass(frozen=True)
class Growing:
    """How a result is made that later rows are to be added to.

    Attributes:
      keep: folder for the open rows of this cycle.
      shards: number of shards.
      before: the result that it begins with; None: it is the first.
      name: of this cycle's files: no other cycle's, and the same when a worker makes one anew.
      tells_ends: WAKES tell too when no event in time can join a key any more.
    """

    keep: Path
    shards: int
    before: Before | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    tells_ends: bool = False

    def itself(self) -> Growing:
        """The answer to how a result grows that is made in one cycle."""
        return self


@dataclass(frozen=True)
class TableChange:
    """What a shard changes in a table; key_hash, of the conversation key, stands beside its columns.

    Attributes:
      table: name of the table.
      removed: rows that go, as they were.
      added: rows that come.
    """

    table: str
    removed: pa.Table
    added: pa.Table


class PairMessages(beam.PTransform):
    """(shard, files) -> (shard, conversations) (main), TURNS, STATISTICS, COUNTS, DEAD_LETTERS and LATEST.

    Exists to decide which message is answered by which reply, once, for every number that is made of it. Orders the
    events of each shard and drops the copies first. LATEST is the latest occurred_at of the events kept; STATISTICS are
    names of files of them, or statistics.

    With a result before, only the keys in which something may have changed are paired, as they were and as they are:
    COUNTS and STATISTICS are differences, and instead of conversations and turns there are CHANGES (TableChange).
    WAS_LETTERS and WAS_LATEST tell of the same keys as they were. WAKES (while growing) are the keys looked at, their
    wakes and their ends.
    """

    def __init__(
        self, settings: Settings, as_of: beam.PCollection, folder: Path, growing: Callable[[], Growing] | None = None
    ) -> None:
        """Takes the settings, as_of (a PCollection of one value or None), a folder for files, and how it grows.

        It asks how it grows once more wherever it works, so that a pipeline can run again for the next cycle.
        """
        super().__init__()
        self._settings, self._as_of, self._folder, self._growing = settings, as_of, str(folder), growing

    def expand(self, shards: beam.PCollection) -> Any:
        """Applies the step."""
        settings, growing = self._settings, self._growing
        before = growing().before if growing else None
        side = self._as_of | "Alone" >> beam.Map(lambda as_of: (as_of, _NO_KEYS))
        if before is not None and settings.repeat_contact is not None:
            # A customer's other conversations decide too: their keys are looked at beside those of the new rows.
            assert growing is not None
            customers = shards | "Customers" >> beam.Map(_customers, growing, AsSingleton(self._as_of))
            others = customers | "OfAll" >> Gather(_distinct) | "Keys" >> beam.Map(_keys_of_customers, growing)
            side = self._as_of | "Together" >> beam.Map(lambda as_of, keys: (as_of, keys), AsSingleton(others))
        pair = beam.ParDo(_PairFn(settings, self._folder, growing), AsSingleton(side))
        paired = shards | "Pair" >> pair.with_outputs(*_OUTPUTS, main="conversations")
        out = {name: paired[name] for name in ("conversations", *_OUTPUTS)}
        if settings.repeat_contact is not None:
            find = FindRepeatContacts(settings, f"{self._folder}/taken")
            out["conversations"], taken = paired.conversations | "RepeatContacts" >> find
            statistics = [paired[STATISTICS], taken]
            if before is not None:
                find = FindRepeatContacts(settings, f"{self._folder}/given_back", gives_back=True)
                out[WAS_CONVERSATIONS], given = paired[WAS_CONVERSATIONS] | "WasRepeatContacts" >> find
                statistics.append(given)
            out[STATISTICS] = tuple(statistics) | "TakeBack" >> beam.Flatten()
        if before is not None and settings.repeat_contact is not None:
            both = [
                {
                    "was": out[was] | f"KeepWas{spec.name}" >> beam.Map(_keep, f"{self._folder}/was-{spec.name}"),
                    "now": out[now] | f"KeepNow{spec.name}" >> beam.Map(_keep, f"{self._folder}/now-{spec.name}"),
                }
                | f"Beside{spec.name}" >> beam.CoGroupByKey()
                | f"Compare{spec.name}" >> beam.Map(_compare, spec.name, spec.key)
                for spec, was, now in (
                    (CONVERSATIONS, WAS_CONVERSATIONS, "conversations"),
                    (TURNS_TABLE, WAS_TURNS, TURNS),
                )
            ]
            out[CHANGES] = tuple(both) | "Changes" >> beam.Flatten()
        return out


_NO_KEYS: Hashes = np.empty(0, np.uint64)


@dataclass(frozen=True)
class _Paired:
    """What became of a shard (its statistics in a file), and what the keys looked at were before."""

    shard: int
    now: PairedRows
    was: PairedRows | None
    looked_at: Hashes
    ends: Ends
    statistics: str
    seconds: float


class _PairFn(ThreadedFn):
    def __init__(self, settings: Settings, folder: str, growing: Callable[[], Growing] | None) -> None:
        super().__init__()
        self._settings, self._folder, self._growing = settings, folder, growing

    def work(self, element: tuple[int, Iterable[ShardFile]], side: tuple[int | None, Hashes]) -> _Paired:
        started = time.monotonic()
        shard, parts = element
        as_of, also = side[0] or 0, side[1]
        rows = read_shard(sorted(parts, key=lambda part: part.path), SHUFFLED_EVENTS.names)
        was, looked_at = None, _NO_KEYS
        growing = self._growing() if self._growing is not None else None
        if growing is not None:
            if rows.num_rows:
                write_rows(rows, growing.keep / f"{shard:05}-{growing.name}.arrow")
            if growing.before is not None:
                before = growing.before
                old, looked_at = _old_rows(growing, shard, rows, as_of, also)
                was = pair_rows(old, self._settings, before.as_of or 0, grows=True)
                rows = _together([without_sources(old, before.replaced), with_plain_ids(rows)])
        now = pair_rows(rows, self._settings, as_of, growing is not None)
        statistics = now.paired.statistics
        if was is not None:
            statistics = add_statistics([statistics, -was.paired.statistics])
            was = _without_statistics(was)
        path = f"{self._folder}/statistics-{shard:05}"
        statistics.save(path)
        ends = key_ends(rows, now, self._settings) if growing is not None and growing.tells_ends else NO_ENDS
        return _Paired(shard, _without_statistics(now), was, looked_at, ends, path, time.monotonic() - started)

    def emit(self, result: _Paired) -> Iterator[Any]:
        now, was, shard = result.now, result.was, result.shard
        metrics.count(
            "PairMessages",
            rows_in=now.kept,
            rows_out=now.paired.conversations.num_rows,
            dead_letters=now.letters.num_rows,
        )
        metrics.observe_millis("PairMessages", result.seconds)
        counts = now.counts()
        if was is not None:
            counts.subtract(was.counts())
        yield TaggedOutput(COUNTS, counts)
        if now.letters.num_rows:
            yield TaggedOutput(DEAD_LETTERS, now.letters)
        if now.latest is not None:
            yield TaggedOutput(LATEST, now.latest)
        yield TaggedOutput(STATISTICS, result.statistics)
        if self._growing is not None:
            assert now.paired.growth is not None
            yield TaggedOutput(WAKES, (result.looked_at, now.paired.growth.wakes, result.ends))
        if was is None:
            yield TaggedOutput(TURNS, (shard, now.paired.turns))
            yield shard, now.paired.conversations
            return
        if was.letters.num_rows:
            yield TaggedOutput(WAS_LETTERS, was.letters)
        if was.latest is not None:
            yield TaggedOutput(WAS_LATEST, was.latest)
        before, after = _facts_by_key(was), _facts_by_key(now)
        if self._settings.repeat_contact is None:
            for spec, old, new in zip((CONVERSATIONS, TURNS_TABLE), before, after, strict=True):
                yield TaggedOutput(CHANGES, _change(old, new, spec.name, spec.key))
            return
        yield TaggedOutput(WAS_CONVERSATIONS, (shard, before[0]))
        yield TaggedOutput(WAS_TURNS, (shard, before[1]))
        yield TaggedOutput(TURNS, (shard, after[1]))
        yield shard, after[0]


def _facts_by_key(rows: PairedRows) -> tuple[pa.Table, pa.Table]:
    """Conversations and turns, with the hash of their conversation key."""
    growth = rows.paired.growth
    assert growth is not None
    conversations = rows.paired.conversations.append_column("key_hash", pa.array(growth.conversation_hash))
    return conversations, rows.paired.turns.append_column("key_hash", pa.array(growth.turn_hash))


def _old_rows(growing: Growing, shard: int, new: pa.Table, as_of: int, also: Hashes) -> tuple[pa.Table, Hashes]:
    """The rows before of the keys of a shard in which anything may change, and the hashes of those keys."""
    before = growing.before
    assert before is not None
    own = new["key_hash"].to_numpy()
    keys = before.keys_to_look_at(own, shard, growing.shards, as_of)
    if len(also):
        keys = np.unique(np.concatenate([keys, also[shard_of(also, growing.shards) == shard]]))
    return rows_of_keys(before.rows, keys), keys


def _together(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def _without_statistics(rows: PairedRows) -> PairedRows:
    return replace(rows, paired=replace(rows.paired, statistics=Statistics.zero()))


def _customers(element: tuple[int, Iterable[ShardFile]], growing: Callable[[], Growing], as_of: int | None) -> pa.Table:
    """The customers (account_id, customer_id) of the keys of a shard in which anything may change."""
    shard, parts = element
    rows = read_shard(list(parts), SHUFFLED_EVENTS.names)
    old, _ = _old_rows(growing(), shard, rows, as_of or 0, _NO_KEYS)
    return _distinct([_together([old, with_plain_ids(rows)])])


def _keys_of_customers(customers: pa.Table, growing: Callable[[], Growing]) -> Hashes:
    before = growing().before
    assert before is not None
    return before.keys_of_customers(customers)


def _distinct(tables: Iterable[pa.Table]) -> pa.Table:
    """The distinct customers of some tables with account_id and customer_id."""
    names = ["account_id", "customer_id"]
    schema = pa.schema([(name, pa.string()) for name in names])
    parts = [table.select(names).cast(schema) for table in tables]
    return pa.concat_tables([schema.empty_table(), *parts]).group_by(names).aggregate([]).combine_chunks()


def _keep(element: tuple[int, pa.Table], files: str) -> tuple[int, str]:
    shard, table = element
    return shard, keep_table(table, f"{files}-{shard:05}")


def _compare(element: tuple[int, dict[str, Iterable[str]]], name: str, key: tuple[str, ...]) -> TableChange:
    """What changed in the rows of a shard."""
    was, now = (kept_table(*element[1][side]) for side in ("was", "now"))
    return _change(was, now, name, key)


def _change(was: pa.Table, now: pa.Table, name: str, key: tuple[str, ...]) -> TableChange:
    removed, added = changed_rows(was, now, key)
    return TableChange(name, was.take(pa.array(removed)), now.take(pa.array(added)))
