"""Where a conversation begins: the two rules of the contract, over all events of a shard at once."""

from __future__ import annotations

import numpy as np

from transforms.schema import DISMISSED, HANDOFF, RATING, REOPENED, RESOLVED, WRAP_UP
from transforms.vectors import Codes, EventVectors, Mask, Rows, chosen


def conversation_starts(ev: EventVectors) -> Mask:
    """Marks the first event of each group: of a conversation, or of events that belong to none.

    Args:
      ev: the events of whole keys, in order.

    Returns:
      One flag an event.
    """
    if not len(ev):
        return np.empty(0, bool)
    begins, limits = ev.key_begins, ev.limits
    # Only silences over the shortest limit of any channel can end a conversation.
    long = np.flatnonzero((np.diff(ev.at, prepend=ev.at[:1]) > limits.max_idle.min()) & ~begins)
    silence, before = ev.at[long] - ev.at[long - 1], ev.channel[long - 1]
    # An unsolved ticket is not given up after a month: max_open may hold where the key has a conversation_id and the
    # earlier event's channel neither splits threads nor infers resolutions and has a life cycle.
    may_stay_open = (
        ev.is_keyed[long] & (~limits.split_threads & ~limits.infer_resolution & limits.has_life_cycle)[before]
    )
    over = silence > np.where(may_stay_open, limits.max_open[before], limits.max_idle[before])
    surely = _with(begins, long[over])
    undecided = long[~over & may_stay_open & (silence > limits.max_idle[before])]
    undecided, solved_by = _after_a_close(ev, undecided)
    late = _after_a_gap(ev)
    idle = np.empty(0, np.int64)
    # Both rules look back into the conversation only, so deciding again with what is known settles at least the
    # earliest open question each time; almost always the first pass is the last.
    while True:
        starts = _with(surely, _gap_starts(ev, late, _with(surely, idle)))
        found = _first_after_close(starts, undecided, solved_by)
        starts[found] = True
        if np.array_equal(found, idle):
            return starts
        idle = found


def _with(mask: Mask, rows: Rows) -> Mask:
    """The mask with some more rows set."""
    out = mask.copy()
    out[rows] = True
    return out


def _after_a_close(ev: EventVectors, undecided: Rows) -> tuple[Rows, Rows]:
    """Of the silences between max_idle and max_open, those whose key was last resolved or dismissed, and by which row.

    Where the latest of resolved, dismissed and reopened is a reopened, or there is none, max_open holds.
    """
    cycle = np.flatnonzero((ev.type == RESOLVED) | (ev.type == DISMISSED) | (ev.type == REOPENED))
    if not len(cycle) or not len(undecided):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    place = np.searchsorted(cycle, undecided) - 1
    last = cycle[np.maximum(place, 0)]
    closed = (place >= 0) & (ev.key[last] == ev.key[undecided]) & (ev.type[last] != REOPENED)
    return undecided[closed], last[closed]


def _first_after_close(starts: Mask, undecided: Rows, solved_by: Rows) -> Rows:
    """Silences over max_idle in a conversation that was solved: the first one after each close begins a new one."""
    if not len(undecided):
        return undecided
    known = np.flatnonzero(starts)
    begin = known[np.searchsorted(known, undecided) - 1]
    own = solved_by >= begin
    undecided, solved_by = undecided[own], solved_by[own]
    return undecided[np.append(True, np.diff(solved_by) != 0)] if len(undecided) else undecided


def _after_a_gap(ev: EventVectors) -> Rows:
    """Messages and replies that rule 2 may split off: not automated, and long enough after the last such event.

    Gaps split keys without a conversation_id, and channels that split threads. The first such event of a key may be
    one too: then its first event counts.
    """
    spoken = np.flatnonzero(ev.is_spoken)
    at, key = ev.at.take(spoken), ev.key.take(spoken)
    far = np.ones(len(spoken), bool)
    far[1:] = (np.diff(at) > ev.limits.gap.min()) | (key[1:] != key[:-1])
    rows = chosen(spoken, far)
    rows = chosen(rows, ~ev.key_begins.take(rows))
    return chosen(rows, ~ev.is_keyed.take(rows) | ev.limits.split_threads[ev.channel.take(rows - 1)])


def _gap_starts(ev: EventVectors, late: Rows, silent: Mask) -> Rows:
    """Rule 2: messages while no turn is due, and replies while none waits, more than gap after the last spoken event.

    Args:
      ev: the events.
      late: the rows that _after_a_gap found.
      silent: starts by rule 1; rule 2 needs no others, for it never breaks a turn that is due.

    Returns:
      The rows that begin a conversation.
    """
    late = chosen(late, ~silent[late])
    if not len(late):
        return late
    segment = np.flatnonzero(silent)
    number = np.cumsum(silent, dtype=np.int32)
    begin = segment.take(number.take(late) - 1)
    last = np.flatnonzero(ev.is_spoken).take(np.maximum(ev.spoken_so_far.take(late) - 1, 0))
    base = last
    # Where nobody spoke yet: after the first event, leading ratings and wrap-ups apart (they are stray).
    first = np.flatnonzero((last < begin) | (last >= late))
    if len(first):
        counted = np.flatnonzero((ev.type != RATING) & (ev.type != WRAP_UP))
        base = last.copy()
        base[first] = counted[np.searchsorted(counted, begin[first])]
    over = np.flatnonzero(ev.at[late] - ev.at[base] > ev.limits.gap[ev.channel[late - 1]])
    late, begin = late.take(over), begin.take(over)
    if not len(late):
        return late
    turns = np.flatnonzero(ev.ends_or_holds_turn)
    if not len(turns):
        return late
    place = ev.turning_so_far.take(late) - 1
    last_message = turns[np.maximum(place, 0)]
    waiting = (place >= 0) & (last_message >= begin) & ev.is_message[last_message]
    # A reply begins one while no turn waits, a message while none is due.
    is_message = ev.is_message[late]
    joins = waiting & ~is_message
    asks = np.flatnonzero(waiting & is_message)
    if len(asks):
        row, message = late[asks], last_message[asks]
        begun = turns[_run_begins(ev, turns, number, place[asks])]
        joins[asks] = (_last_before(ev.is_bot_reply, row) < message) | (_last_before(ev.type == HANDOFF, row) > begun)
    return chosen(late, ~joins)


def _last_before(mask: Mask, rows: Rows) -> Rows:
    """The last marked row before each of rows; -1 where there is none."""
    marked = np.append(np.int64(-1), np.flatnonzero(mask))
    return marked[np.searchsorted(marked, rows) - 1]


def _run_begins(ev: EventVectors, turns: Rows, number: Codes, places: Codes) -> Rows:
    """The place in turns of the first message of the run of messages that each of some places in them lies in.

    Args:
      ev: the events.
      turns: the rows that hold or end turns.
      number: number of the segment of each event.
      places: of messages.
    """
    message = ev.is_message.take(turns)
    segment = number.take(turns)
    first = message & ~np.append(False, message[:-1] & (segment[1:] == segment[:-1]))
    return np.flatnonzero(first).take(np.cumsum(first, dtype=np.int32).take(places) - 1)
