"""From the rows of a shard, as they came, to what is paired of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from transforms.dead_letters import conflict_letters, letters_by_reason
from transforms.hashing import Hashes
from transforms.ordering import one_chunk, order_events
from transforms.pairing import PairedShard, pair_messages
from transforms.settings import Settings
from transforms.vectors import Rows

Ends = tuple[Hashes, Rows]
"""Hashes of conversation keys, ascending, and the moment after which no event can join each, microseconds."""

NO_ENDS: Ends = (np.empty(0, np.uint64), np.empty(0, np.int64))


@dataclass(frozen=True)
class PairedRows:
    """What became of the rows of a shard.

    Attributes:
      paired: conversations, turns and statistics.
      kept: number of events kept.
      exact_duplicate_count: rows that repeat an event.
      latest: latest occurred_at of the events kept, microseconds; None where there is none.
      letters: the conflicting duplicates.
    """

    paired: PairedShard
    kept: int
    exact_duplicate_count: int
    latest: int | None
    letters: pa.Table

    def counts(self) -> Counter[str]:
        """Numbers of rows by name."""
        counts = {
            "events_kept": self.kept,
            "exact_duplicates": self.exact_duplicate_count,
            "stray_events": self.paired.stray_event_count,
            "conversations": self.paired.conversations.num_rows,
            "turns": self.paired.turns.num_rows,
        }
        return Counter(counts | letters_by_reason(self.letters))


def pair_rows(shuffled: pa.Table, settings: Settings, as_of: int, grows: bool = False) -> PairedRows:
    """Orders the rows of a shard, drops the copies and pairs what is left.

    Args:
      shuffled: schema SHUFFLED_EVENTS; all rows of every key that occurs.
      settings: of the run.
      as_of: the moment up to which time has passed, microseconds.
      grows: more events may come.
    """
    # Dictionaries are needed in one piece each; other columns of which few rows are wanted may stay in many.
    ordered = order_events(shuffled, *(one_chunk(shuffled[name]).to_numpy() for name in ("key_hash", "event_hash")))
    letters = conflict_letters(shuffled.take(pa.array(ordered.conflicts)))
    paired = pair_messages(shuffled, ordered, settings, as_of, grows)
    latest = int(ordered.at.max()) if len(ordered.at) else None
    return PairedRows(paired, len(ordered.at), ordered.exact_duplicate_count, latest, letters)


def key_ends(shuffled: pa.Table, rows: PairedRows, settings: Settings) -> Ends:
    """When no event can join the conversations of a key any more, nor be a repeat contact of one.

    Args:
      shuffled: schema SHUFFLED_EVENTS; all rows of every key that occurs.
      rows: what became of them.
      settings: of the run.
    """
    growth = rows.paired.growth
    if growth is None or not shuffled.num_rows:
        return NO_ENDS
    keys, place = np.unique(shuffled["key_hash"].to_numpy(), return_inverse=True)
    last, ends, spoken = (np.full(len(keys), -1) for _ in range(3))
    np.maximum.at(last, place, shuffled["occurred_at"].cast(pa.int64()).to_numpy())
    own = np.searchsorted(keys, growth.key_hash)
    np.maximum.at(ends, own, growth.ends_at)
    np.maximum.at(spoken, own, growth.last_event_at)
    # Events that belong to no conversation stay as long as any channel lets one wait.
    ends = np.where(last > spoken, last + settings.longest_silence, ends)
    return keys, np.maximum(ends, last + (settings.repeat_contact or 0))
