"""Restating a bucket of a stream: what a firing makes of new rows and of time that has passed.

A bucket is restated like a result that grows: the keys that new rows or time touch are paired as they were and as they
are. What leaves it says of whole keys how they are now, with a version; applied in any order, also twice, the highest
version stays. A version is (rows that came, effects of time): it does not depend on how rows were bundled, so that what
a worker wrote before it died and what it writes again after a restart fit together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.buckets import FORGOTTEN, Bucket, hashes_of, join_rows, rows_forgotten, times_of
from transforms.hashing import Hashes
from transforms.key_facts import KeyRows, mark_cells, silent_at
from transforms.ordering import one_chunk, order_events
from transforms.paired_rows import PairedRows, pair_rows
from transforms.settings import HOUR, Settings
from transforms.statistics import Integers, Statistics, add_statistics
from transforms.stream_settings import StreamSettings
from transforms.wakes import update_wakes

LOOK_AHEAD = 60_000_000
"""Rows this much (and out_of_orderness) ahead of the watermark count already; the others wait. Microseconds."""

VERSION = pa.schema([("key_hash", pa.uint64()), ("row_count", pa.int64()), ("effect_count", pa.int64())])

KEYS = pa.schema(
    [
        *VERSION,
        *((name, pa.int64()) for name in ("begins_at", "ends_at")),
        *((name, pa.int64()) for name in ("kept_count", "exact_duplicate_count", "stray_count")),
    ]
)
"""One row per key and version: it tells of everything of the key that begins in [begins_at, ends_at] (microseconds)."""


@dataclass(frozen=True)
class Restated:
    """What a firing makes of a bucket.

    Attributes:
      bucket: as it is now.
      came: the rows that are new in it.
      dropped: rows were dropped.
      keys: schema KEYS; the keys that were looked at.
      conversations: rows of `conversations` of these keys, and VERSION.
      turns: rows of `turns` of these keys, and VERSION.
      letters: rows of `dead_letters` of these keys (conflicting duplicates), VERSION and occurred_at.
      statistics: what has to be added to the statistics so far.
      marks: the same of the marks of the cells (see mark_cells).
      wake_at: when the bucket has to be looked at again even if nothing comes, microseconds; None: never.
    """

    bucket: Bucket
    came: pa.Table
    dropped: bool
    keys: pa.Table
    conversations: pa.Table
    turns: pa.Table
    letters: pa.Table
    statistics: Statistics
    marks: Statistics
    wake_at: int | None


def restate(
    bucket: Bucket, new: pa.Table, watermark: int, passed: int, settings: Settings, stream: StreamSettings
) -> Restated | None:
    """Takes new rows into a bucket, and lets time pass.

    Args:
      bucket: as it was.
      new: schema PLAIN_EVENTS; none of them late.
      watermark: up to where time has come at the source, microseconds; it never goes back.
      passed: the same here: everything that is not late by it is in the bucket or in new. Rows are dropped by it.
      settings: of the run.
      stream: of the stream.

    Returns:
      What came of it; None: there was nothing to do but to wait on.
    """
    passed = max(passed, bucket.passed)
    watermark = max(watermark, bucket.watermark, passed)
    ahead = stream.out_of_orderness + LOOK_AHEAD
    arrived = join_rows([bucket.pending, new])
    due = times_of(arrived) <= watermark + ahead
    came, pending = arrived.filter(pa.array(due)).combine_chunks(), arrived.filter(pa.array(~due)).combine_chunks()
    before = replace(bucket, watermark=watermark, passed=passed, pending=pending)
    as_of = max(bucket.as_of, watermark, int(times_of(came).max(initial=0)))
    woken = before.wakes["key_hash"][before.wakes["at"] < as_of]
    keys = np.unique(np.concatenate([hashes_of(came), woken]))
    if not len(keys) and not new.num_rows and (watermark, passed) == (bucket.watermark, bucket.passed):
        return None
    old = before.rows.filter(pa.array(np.isin(hashes_of(before.rows), keys))).combine_chunks()
    was, now = _Side.of(old, before, settings, bucket.as_of), _Side.of(join_rows([old, came]), before, settings, as_of)
    growth = now.paired.paired.growth
    assert growth is not None
    after = replace(
        before,
        rows=join_rows([before.rows, came]),
        as_of=as_of,
        wakes=update_wakes(before.wakes, keys, [growth.wakes]),
    )
    # Only now: what came may join rows that are silent by the new watermark.
    after, dropped = _forget(after, settings, stream)
    versions = now.versions()
    return Restated(
        bucket=after,
        came=came,
        dropped=dropped,
        keys=now.key_table(versions),
        conversations=_with_versions(now.paired.paired.conversations, growth.conversation_hash, versions),
        turns=_with_versions(now.paired.paired.turns, growth.turn_hash, versions),
        letters=_with_versions(now.letters, now.letter_hash, versions),
        statistics=add_statistics([now.paired.paired.statistics, -was.paired.paired.statistics]),
        marks=add_statistics([now.marks(settings), -was.marks(settings)]),
        wake_at=_next_wake(after, settings, stream, ahead),
    )


def _forget(bucket: Bucket, settings: Settings, stream: StreamSettings) -> tuple[Bucket, bool]:
    """Drops the rows of keys that are silent for longer than anything to come could join them."""
    keys, until = silent_at(bucket.rows, settings)
    forgotten = bucket.forgotten[bucket.forgotten["until"] + stream.allowed_lateness >= bucket.passed]
    gone = until + stream.allowed_lateness < bucket.passed
    if not gone.any():
        return replace(bucket, forgotten=forgotten), False
    hashes = hashes_of(bucket.rows)
    leaves = np.isin(hashes, keys[gone])
    sorted_rows = KeyRows.of(bucket.rows.filter(pa.array(leaves)).combine_chunks())
    new = np.empty(int(gone.sum()), FORGOTTEN)
    new["key_hash"] = keys[gone]
    new["rows"] = sorted_rows.counts + rows_forgotten(forgotten, keys[gone])
    # Long after: a worker that begins anew may have the rows still, and its versions must not be lower than ours.
    new["until"] = sorted_rows.last_at + 2 * settings.longest_silence
    rest = forgotten[~np.isin(forgotten["key_hash"], keys[gone])]
    new = new[new["until"] + stream.allowed_lateness >= bucket.passed]
    forgotten = np.sort(np.concatenate([rest, new]), order="key_hash")
    wakes = bucket.wakes[~np.isin(bucket.wakes["key_hash"], keys[gone])]
    rows = bucket.rows.filter(pa.array(~leaves)).combine_chunks()
    return replace(bucket, rows=rows, wakes=wakes, forgotten=forgotten), True


def _next_wake(bucket: Bucket, settings: Settings, stream: StreamSettings, ahead: int) -> int | None:
    """The first moment at which something in a bucket changes without new rows; microseconds."""
    found = [
        bucket.wakes["at"] + 1,
        # (In time is soon enough: buckets with something to drop are looked at together.)
        -(-(silent_at(bucket.rows, settings)[1] + stream.allowed_lateness + 1) // HOUR) * HOUR,
        times_of(bucket.pending) - ahead,
    ]
    return min((int(moments.min()) for moments in found if len(moments)), default=None)


@dataclass(frozen=True)
class _Side:
    """The keys that a firing looks at, as they were or as they are."""

    rows: pa.Table
    keys: KeyRows
    paired: PairedRows
    row_count: Integers
    effect_count: Integers
    letters: pa.Table
    letter_hash: Hashes

    @staticmethod
    def of(rows: pa.Table, bucket: Bucket, settings: Settings, as_of: int) -> _Side:
        keys, paired = KeyRows.of(rows), pair_rows(rows, settings, as_of, grows=True)
        letters, letter_hash = _letters_of_keys(paired.letters, rows)
        growth = paired.paired.growth
        assert growth is not None
        # Each open conversation that time may still change has a wake; the others have been changed or closed.
        conversations = paired.paired.conversations
        is_open = np.asarray(pc.equal(one_chunk(conversations["state"]).cast(pa.string()), "open"))
        changed = is_open | np.asarray(one_chunk(conversations["is_resolution_inferred"]))
        effects = _per_key(keys, growth.conversation_hash[changed]) - _per_key(keys, growth.wakes["key_hash"])
        row_count = keys.counts + rows_forgotten(bucket.forgotten, keys.key_hash)
        return _Side(rows, keys, paired, row_count, effects, letters, letter_hash)

    def versions(self) -> pa.Table:
        return pa.table([self.keys.key_hash, self.row_count, self.effect_count], schema=VERSION)

    def key_table(self, versions: pa.Table) -> pa.Table:
        keys, growth = self.keys, self.paired.paired.growth
        assert growth is not None
        pairs = np.stack([hashes_of(self.rows), np.asarray(one_chunk(self.rows["event_hash"]))])
        kept = _per_key(keys, np.unique(pairs, axis=1)[0])
        events = np.asarray(one_chunk(self.paired.paired.conversations["event_count"]))
        in_conversations = np.zeros(len(keys.key_hash), np.int64)
        np.add.at(in_conversations, np.searchsorted(keys.key_hash, growth.conversation_hash), events)
        copies = keys.counts - kept - _per_key(keys, self.letter_hash)
        columns = [keys.first_at, keys.last_at, kept, copies, kept - in_conversations]
        for name, values in zip(KEYS.names[len(VERSION) :], columns, strict=True):
            versions = versions.append_column(name, pa.array(values))
        return versions.cast(KEYS)

    def marks(self, settings: Settings) -> Statistics:
        return mark_cells(self.rows, settings, self.row_count, self.effect_count)


def _per_key(keys: KeyRows, hashes: Hashes) -> Integers:
    """How many of the hashes are those of each key."""
    return np.bincount(np.searchsorted(keys.key_hash, hashes), minlength=len(keys.key_hash))


def _with_versions(table: pa.Table, hashes: Hashes, versions: pa.Table) -> pa.Table:
    """The rows with the versions of their keys."""
    place = pa.array(np.searchsorted(np.asarray(one_chunk(versions["key_hash"])), hashes))
    for name in VERSION.names:
        table = table.append_column(name, one_chunk(versions[name]).take(place))
    return table


def _letters_of_keys(letters: pa.Table, rows: pa.Table) -> tuple[pa.Table, Hashes]:
    """Dead letters with the occurred_at of their rows, and the hashes of their keys."""
    conflicts = np.empty(0, np.int64)
    if letters.num_rows:
        # Their places do not tell: a message of a topic may hold several rows.
        events = rows.drop_columns(["source", "source_partition", "source_row"]).combine_chunks()
        hashes = (np.asarray(one_chunk(events[name])) for name in ("key_hash", "event_hash"))
        conflicts = order_events(events, *hashes).conflicts
    if len(conflicts) != letters.num_rows:
        raise AssertionError(f"expected {letters.num_rows} conflicting rows, got {len(conflicts)}")
    return letters.append_column("occurred_at", pa.array(times_of(rows)[conflicts])), hashes_of(rows)[conflicts]
