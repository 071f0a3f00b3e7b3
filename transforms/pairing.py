"""Pairing: from the events of a shard to its conversations, turns and statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.assembly import conversation_table, turn_table
from transforms.calendars import make_grid
from transforms.facts import gather_facts
from transforms.hashing import Hashes
from transforms.life_cycle import follow_life_cycles
from transforms.moments import count_statistics
from transforms.ordering import OrderedEvents, one_chunk
from transforms.schema import RATING, WRAP_UP
from transforms.segments import conversation_starts
from transforms.settings import Settings
from transforms.statistics import Statistics
from transforms.tables import CONVERSATIONS, TURNS
from transforms.turns import find_turns
from transforms.vectors import Codes, EventVectors, Rows, chosen
from transforms.wakes import WAKE, Wakes, find_wakes


@dataclass(frozen=True)
class Growth:
    """What is kept of a shard for the events to come.

    Attributes:
      conversation_hash: hash of the conversation key of each row of `conversations`.
      turn_hash: the same of each row of `turns`.
      wakes: when its conversations have to be looked at again.
      last_event_at: of each conversation, in the order of their keys and beginnings, microseconds.
      ends_at: of each of them, last_event_at + its silence limit.
      key_hash: of each of them, hash of the conversation key.
    """

    conversation_hash: Hashes
    turn_hash: Hashes
    wakes: Wakes
    last_event_at: Rows
    ends_at: Rows
    key_hash: Hashes

    @staticmethod
    def nothing() -> Growth:
        """Of a shard without any conversation."""
        hashes, moments = np.empty(0, np.uint64), np.empty(0, np.int64)
        return Growth(hashes, hashes, np.empty(0, WAKE), moments, moments, hashes)


@dataclass(frozen=True)
class PairedShard:
    """What a shard's events come to.

    Attributes:
      conversations: rows of `conversations`, sorted by started_at.
      turns: rows of `turns`, in the order of their conversations.
      statistics: the additive statistics, by slice.
      stray_event_count: events that belong to no conversation.
      growth: what a result that grows needs besides; None unless asked for.
    """

    conversations: pa.Table
    turns: pa.Table
    statistics: Statistics
    stray_event_count: int
    growth: Growth | None = None


def pair_messages(
    events: pa.Table, ordered: OrderedEvents, settings: Settings, as_of: int, grows: bool = False
) -> PairedShard:
    """Pairs messages and replies into conversations and turns.

    Args:
      events: columns of PARSED_EVENTS; all events of every key that occurs.
      ordered: their order, without copies.
      settings: of the run.
      as_of: the moment up to which time has passed, microseconds since the epoch; not before any event.
      grows: more events may come; `events` has key_hash then.

    Returns:
      The shard's part of every table.
    """
    ev = EventVectors.of(events, ordered, settings)
    starts = conversation_starts(ev)
    group = np.cumsum(starts, dtype=np.int32) - np.int32(1)
    stray = _stray_events(ev, group)
    stray_count = int(np.count_nonzero(stray))
    if stray_count:
        ev, group = ev.only(~stray), chosen(group, ~stray)
    if not len(ev):
        nothing = (CONVERSATIONS.schema.empty_table(), TURNS.schema.empty_table(), Statistics.zero())
        return PairedShard(*nothing, stray_count, Growth.nothing() if grows else None)
    begin = np.flatnonzero(np.diff(group, prepend=np.int32(-1)))
    conversation: Codes = np.cumsum(np.diff(group, prepend=group[:1]) != 0, dtype=np.int32)
    first_message = _first_messages(ev, conversation, len(begin))
    turns = find_turns(ev, conversation)
    cycles = follow_life_cycles(ev, conversation, begin, first_message, as_of)
    score, duration = (_doubles(events, name, ev) for name in ("score", "duration_seconds"))
    facts = gather_facts(ev, conversation, begin, first_message, turns, cycles, score, duration, as_of)
    conversations, row_of = conversation_table(events, ev, conversation, cycles, facts)
    grid = make_grid(settings.timezone, int(ev.at.min()), max(as_of, int(ev.at.max())))
    statistics = count_statistics(
        ev,
        conversation,
        turns,
        cycles,
        facts,
        grid,
        [None, *_dictionary(events, "account_id")],
        _dictionary(events, "channel"),
    )
    turn_rows = turn_table(events, ev, conversations, row_of, turns)
    growth = None
    if grows:
        key_hash = np.asarray(one_chunk(events["key_hash"]))[ev.row[begin]]
        by_row = np.empty_like(key_hash)
        by_row[row_of] = key_hash
        turn_hash = np.repeat(by_row, np.asarray(conversations["turn_count"]))
        wakes, last = find_wakes(ev, key_hash, cycles, facts, as_of), facts.last_event_at
        growth = Growth(by_row, turn_hash, wakes, last, last + facts.silence_limit, key_hash)
    return PairedShard(conversations, turn_rows, statistics, stray_count, growth)


def _stray_events(ev: EventVectors, group: Codes) -> npt.NDArray[np.bool_]:
    """Events of groups without any message or reply; ratings and wrap-ups before the first one of their group.

    Those belong to an older conversation that is gone.
    """
    count = int(group[-1]) + 1 if len(group) else 0
    first_spoken = np.full(count, len(ev), np.int64)
    spoken = np.flatnonzero(ev.is_message | ev.is_reply)[::-1]
    first_spoken[group[spoken]] = spoken
    first = first_spoken[group]
    leading = ((ev.type == RATING) | (ev.type == WRAP_UP)) & (np.arange(len(ev)) < first)
    return (first == len(ev)) | leading


def _first_messages(ev: EventVectors, conversation: Codes, count: int) -> Rows:
    """The first message of each conversation, or -1."""
    first = np.full(count, -1, np.int64)
    messages = np.flatnonzero(ev.is_message)[::-1]
    first[conversation[messages]] = messages
    return first


def _doubles(events: pa.Table, name: str, ev: EventVectors) -> Callable[[Rows], npt.NDArray[np.float64]]:
    """What gives the doubles of some places in the vectors; null is NaN."""
    return lambda places: np.asarray(one_chunk(events[name].take(pa.array(ev.row[places])).fill_null(np.nan)))


def _dictionary(events: pa.Table, name: str) -> list[str]:
    words: list[str] = one_chunk(events[name]).dictionary.to_pylist()
    return words
