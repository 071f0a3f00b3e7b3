"""Where a conversation begins: the two rules of the contract, over all events of a shard at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transforms.schema import DISMISSED, HANDOFF, RATING, REOPENED, RESOLVED, WRAP_UP
from transforms.vectors import EventVectors, Mask, Rows


def conversation_starts(ev: EventVectors) -> Mask:
    """Marks the first event of each group: of a conversation, or of events that belong to none.

    Args:
      ev: the events of whole keys, in order.

    Returns:
      One flag an event.
    """
    begins = ev.key_begins
    silence = np.diff(ev.at, prepend=ev.at[:1])
    before = np.append(0, ev.channel[:-1]) if len(ev) else ev.channel
    # An unsolved ticket is not given up after a month: max_open may hold where the key has a conversation_id and the
    # earlier event's channel neither splits threads nor infers resolutions and has a life cycle.
    may_stay_open = (
        ev.is_keyed
        & (~ev.limits.split_threads & ~ev.limits.infer_resolution & ev.limits.has_life_cycle)[before]
    )
    max_idle, max_open = ev.limits.max_idle[before], ev.limits.max_open[before]
    surely = begins | (silence > np.where(may_stay_open, max_open, max_idle))
    undecided = np.flatnonzero(~surely & may_stay_open & (silence > max_idle))
    undecided, solved_by = _after_a_close(ev, undecided)
    is_split = ~begins & (~ev.is_keyed | ev.limits.split_threads[before])
    late = np.flatnonzero(is_split & ev.is_spoken)
    idle = np.empty(0, np.int64)
    # Both rules look back into the conversation only, so deciding again with what is known settles at least the
    # earliest open question each time; almost always the first pass is the last.
    while True:
        starts = _with(surely, _gap_starts(ev, late, before, _with(surely, idle)))
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


def _gap_starts(ev: EventVectors, late: Rows, before: npt.NDArray[np.int32], silent: Mask) -> Rows:
    """Rule 2: messages while no turn is due, and replies while none waits, more than gap after the last spoken event.

    Args:
      ev: the events.
      late: messages and replies that are not automated, in keys or channels that gaps split.
      before: channel of the event before each event.
      silent: starts by rule 1; rule 2 needs no others, for it never breaks a turn that is due.

    Returns:
      The rows that begin a conversation.
    """
    late = late[~silent[late]]
    if not len(late):
        return late
    segment = np.flatnonzero(silent)
    begin = segment[np.searchsorted(segment, late, side="right") - 1]
    spoken = np.flatnonzero(ev.is_spoken)
    last = spoken[np.maximum(np.searchsorted(spoken, late) - 1, 0)]
    # Where nobody spoke yet: after the first event, leading ratings and wrap-ups apart (they are stray).
    counted = np.flatnonzero((ev.type != RATING) & (ev.type != WRAP_UP))
    base = np.where((last >= begin) & (last < late), last, counted[np.searchsorted(counted, begin)])
    over = ev.at[late] - ev.at[base] > ev.limits.gap[before[late]]
    late, begin = late[over], begin[over]
    if not len(late):
        return late
    turns = np.flatnonzero(ev.ends_or_holds_turn)
    place = np.searchsorted(turns, late) - 1
    last_message = turns[np.maximum(place, 0)]
    waiting = (place >= 0) & (last_message >= begin) & ev.is_message[last_message]
    due = waiting & (
        (_last_before(ev.is_bot_reply, late) < last_message)
        | (_last_before(ev.type == HANDOFF, late) > _run_begin(ev, turns, place, silent))
    )
    return late[~np.where(ev.is_message[late], due, waiting)]


def _last_before(mask: Mask, rows: Rows) -> Rows:
    """The last marked row before each of rows; -1 where there is none."""
    marked = np.append(np.int64(-1), np.flatnonzero(mask))
    return marked[np.searchsorted(marked, rows) - 1]


def _run_begin(ev: EventVectors, turns: Rows, place: Rows, silent: Mask) -> Rows:
    """First message of the run of messages that each place of turns lies in."""
    message = ev.is_message[turns]
    segment = np.cumsum(silent)[turns]
    first = message & ~np.append(False, message[:-1] & (segment[1:] == segment[:-1]))
    begin = np.maximum.accumulate(np.where(first, np.arange(len(turns)), 0))
    return turns[begin[np.maximum(place, 0)]]
