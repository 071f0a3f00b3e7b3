"""The state of each conversation: open, resolved or dismissed, and when it moved.

The state machine of the contract is run over whole vectors. A conversation is a row of *periods* in which it is open:
the first from its start, the others from the event that opened it again. A period is ended by a *close*: the first
resolved or dismissed in it, or an inferred resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transforms.moves import INFERRED, Moves
from transforms.schema import DISMISSED, HELD, REOPENED, RESOLVED, RESUMED
from transforms.vectors import NEVER, Codes, EventVectors, Mask, Rows, add_by_runs

OPEN, STATE_RESOLVED, STATE_DISMISSED = range(3)
STATES = ("open", "resolved", "dismissed")


@dataclass(frozen=True)
class LifeCycles:
    """States of c conversations.

    Attributes:
      state: code in STATES, at the end.
      resolved_at: of those resolved now, else NEVER (microseconds).
      first_resolved_at: first move to resolved, else NEVER (microseconds).
      is_inferred: the resolution in force was inferred.
      reopen_count: confirmed reopenings.
      last_cycle_is_close: the latest of resolved, dismissed and reopened is not a reopened, and there is one.
      move_conversation: conversation of each move into or out of open.
      move_row: row of each move.
      move_change: +1 into open, -1 out of it.
      hold: time on hold, microseconds.
    """

    state: npt.NDArray[np.int8]
    resolved_at: Rows
    first_resolved_at: Rows
    is_inferred: Mask
    reopen_count: Rows
    last_cycle_is_close: Mask
    move_conversation: Rows
    move_row: Rows
    move_change: Rows
    hold: Rows


def follow_life_cycles(
    ev: EventVectors, conversation: Codes, begin: Rows, first_message: Rows, as_of: int
) -> LifeCycles:
    """Runs the state machine over whole conversations.

    Args:
      ev: their events, in order, none of them stray.
      conversation: number of the conversation of each event.
      begin: first row of each of the c conversations.
      first_message: first message of each, or -1.
      as_of: the moment up to which time has passed, microseconds.
    """
    count = len(begin)
    humans = ev.humans_so_far
    inferred = _infer_resolutions(ev, conversation, begin, humans, as_of)
    moves = Moves.of(ev, conversation, inferred)
    opened = np.flatnonzero(moves.opens)
    closed = np.flatnonzero(moves.closes)

    # Periods, in order: the initial one of each conversation, and one for each event that opened it again.
    period = moves.conversation + np.cumsum(moves.opens)
    openings = np.bincount(moves.conversation[opened], minlength=count)
    of_conversation = np.repeat(np.arange(count), openings + 1)
    opener = np.full(len(of_conversation), -1, np.int64)
    opener[period[opened]] = opened
    close = np.full(len(of_conversation), -1, np.int64)
    close[period[closed]] = closed
    has_close, is_initial = close >= 0, opener < 0

    # A period holds the rows after begin_row up to end_row: its close, else the end of the conversation.
    begin_row = begin[of_conversation] - 1
    begin_row[~is_initial] = moves.row[opener[~is_initial]]
    end_row = (np.append(begin[1:], len(ev)) - 1)[of_conversation]
    end_row[has_close] = moves.row[close[has_close]]

    # A message after resolved begins a pending reopening, unless it is the first message. A human reply or a
    # `reopened` confirms it.
    message_row = first_message[of_conversation]
    by_reopened = np.zeros(len(opener), bool)
    by_reopened[~is_initial] = moves.type[opener[~is_initial]] == REOPENED
    by_later_message = ~is_initial & ~by_reopened & (begin_row != message_row)
    human = humans[end_row + 1] > humans[begin_row + 1]
    reopens = np.append(0, np.cumsum(ev.type == REOPENED))
    touched = human | (reopens[end_row + 1] > reopens[begin_row + 1])
    after_message = np.maximum(begin_row, np.where(message_row < 0, end_row, message_row))
    answered = humans[end_row + 1] > humans[np.minimum(after_message, end_row) + 1]

    ends = _outcomes(ev, moves, np.flatnonzero(has_close), close, by_later_message & ~touched, answered)

    # The state before a period is the outcome of the one before it in the conversation.
    resolved_before = np.append(False, ends.is_resolved[:-1]) & ~is_initial
    reopened = resolved_before & (by_reopened | (by_later_message & touched))
    last = np.append(np.flatnonzero(is_initial)[1:] - 1, len(opener) - 1) if count else np.empty(0, np.int64)
    state = np.where(has_close[last], np.where(ends.is_resolved[last], STATE_RESOLVED, STATE_DISMISSED), OPEN)
    resolved_now = state == STATE_RESOLVED
    first_resolved_at = np.full(count, NEVER, np.int64)
    moved = np.flatnonzero(has_close & ends.is_resolved)
    first_resolved_at[of_conversation[moved][::-1]] = ends.moved_at[moved][::-1]

    cycle = np.flatnonzero((ev.type == RESOLVED) | (ev.type == DISMISSED) | (ev.type == REOPENED))
    last_cycle_is_close = np.zeros(count, bool)
    last_cycle_is_close[conversation[cycle]] = ev.type[cycle] != REOPENED
    return LifeCycles(
        state=state.astype(np.int8),
        resolved_at=np.where(resolved_now, ends.resolved_at[last], NEVER),
        first_resolved_at=first_resolved_at,
        is_inferred=resolved_now & ends.is_inferred[last],
        reopen_count=np.bincount(of_conversation[reopened], minlength=count),
        last_cycle_is_close=last_cycle_is_close,
        move_conversation=moves.conversation[np.append(opened, closed)].astype(np.int64),
        move_row=moves.row[np.append(opened, closed)],
        move_change=np.repeat([1, -1], [len(opened), len(closed)]),
        hold=_hold_times(ev, conversation, moves, count),
    )


@dataclass(frozen=True)
class _Outcomes:
    """What each period ended in; of use only where it has a close."""

    is_resolved: Mask
    resolved_at: Rows
    is_inferred: Mask
    moved_at: Rows


def _outcomes(ev: EventVectors, moves: Moves, ended: Rows, close: Rows, never_was: Mask, answered: Mask) -> _Outcomes:
    """Composes the outcomes of the periods of each conversation.

    The events between a close and the next opening form one run; an explicit `resolved` in it replaces an inferred
    resolution, and resolves what was dismissed. Most periods end in a state of their own. A reopening that never was
    leaves the state as it was before, but for what the run's `resolved` does.

    Args:
      ev: the events.
      moves: the moves.
      ended: the periods that have a close.
      close: the close of each period, a place in moves, or -1.
      never_was: a pending reopening that nothing confirmed, if the state before was resolved.
      answered: a human reply came after the first message and in the period.
    """
    count = len(close)
    at = ev.at[moves.row]
    run = np.cumsum(moves.closes) - 1
    explicit = np.flatnonzero(moves.type == RESOLVED)
    first_explicit = np.full(int(moves.closes.sum()), -1, np.int64)
    first_explicit[run[explicit][::-1]] = explicit[::-1]
    by = close[ended]
    kind = moves.type[by]
    resolve = first_explicit[run[by]]
    has_resolve = resolve >= 0
    resolve_at = np.where(has_resolve, at[np.maximum(resolve, 0)], NEVER)

    own = ~never_was[ended]
    by_dismissal = own & (kind == DISMISSED) & answered[ended]
    by_inference = own & (kind == INFERRED)
    # Own outcome: (resolved?, at, inferred?) with the run's explicit `resolved` applied where it changes it.
    own_resolved = by_dismissal | by_inference | has_resolve
    own_at = np.where(by_dismissal | (by_inference & ~has_resolve), at[by], resolve_at)
    own_inferred = by_inference & ~has_resolve

    # The last period with an outcome of its own, up to each period; the initial one always has one.
    places = np.arange(len(ended))
    source = np.maximum.accumulate(np.where(own, places, 0)) if len(ended) else places
    # The first reopening that never was, after that period, whose run has an explicit `resolved`.
    mending = np.flatnonzero(~own & has_resolve)
    following = np.searchsorted(mending, source, side="right")
    mend = np.append(mending, len(ended))[following]
    soft = ~own_resolved[source] | own_inferred[source]
    mended = soft & (mend <= places)
    mend = np.where(mended, mend, 0)

    is_resolved, is_inferred = np.zeros(count, bool), np.zeros(count, bool)
    resolved_at, moved_at = np.full(count, NEVER, np.int64), np.full(count, NEVER, np.int64)
    if len(ended):
        is_resolved[ended] = own_resolved[source] | mended
        is_inferred[ended] = own_inferred[source] & ~mended
        resolved_at[ended] = np.where(mended, resolve_at[mend], own_at[source])
        moved_at[ended] = np.where(by_inference | by_dismissal, at[by], resolve_at)
    return _Outcomes(is_resolved, resolved_at, is_inferred, moved_at)


def _infer_resolutions(ev: EventVectors, conversation: Codes, begin: Rows, humans: Codes, as_of: int) -> Rows:
    """Rows after which silence resolves the conversation.

    Where more than gap passes without an event, the state is open, no turn is waiting and there was a human reply since
    the first event or the last move to open.
    """
    if not ev.limits.infer_resolution.any():
        return np.empty(0, np.int64)
    last_row = np.append(begin[1:], len(ev)) - 1
    until = np.append(ev.at[1:], 0)
    until[last_row] = as_of
    silent = ev.limits.infer_resolution[ev.channel] & (until - ev.at > ev.limits.gap[ev.channel])
    turns = np.flatnonzero(ev.ends_or_holds_turn)
    rows = np.flatnonzero(silent)
    if len(turns) and len(rows):
        place = np.searchsorted(turns, rows, side="right") - 1
        last = turns[np.maximum(place, 0)]
        waiting = (place >= 0) & (conversation[last] == conversation[rows]) & ev.is_message[last]
        rows = rows[~waiting]
    inferred = np.empty(0, np.int64)
    # A silence looks back only, so that each pass settles at least the earliest open one of every conversation; all
    # but chains of `reopened` are settled by the second.
    while True:
        moves = Moves.of(ev, conversation, inferred)
        found = rows[_open_and_answered(moves, rows, conversation, begin, humans)]
        if np.array_equal(found, inferred):
            return inferred
        inferred = found


def _open_and_answered(moves: Moves, rows: Rows, conversation: Codes, begin: Rows, humans: Codes) -> Mask:
    """Whether, after each of rows, the state is open and a human replied since it last became so."""
    begins = begin[conversation[rows]]
    if not len(moves.place):
        return humans[rows + 1] > humans[begins]
    place = np.searchsorted(moves.place, 2 * rows, side="right") - 1
    last = np.maximum(place, 0)
    known = (place >= 0) & (moves.conversation[last] == conversation[rows])
    is_open = ~known | ~moves.is_close[last]
    opens = np.maximum.accumulate(np.where(moves.opens, np.arange(len(moves.place)), -1))[last]
    moved = known & (opens >= 0) & (moves.conversation[np.maximum(opens, 0)] == conversation[rows])
    since = np.where(moved, moves.row[np.maximum(opens, 0)], begins)
    return is_open & (humans[rows + 1] > humans[since])


def _hold_times(ev: EventVectors, conversation: Codes, moves: Moves, count: int) -> Rows:
    """Time on hold: from `held` in state open to the next `resumed` or move out of open, microseconds."""
    held = np.flatnonzero(ev.type == HELD)
    hold = np.zeros(count, np.int64)
    if not len(held):
        return hold
    if len(moves.place):
        place = np.searchsorted(moves.place, 2 * held) - 1
        last = np.maximum(place, 0)
        closed = (place >= 0) & (moves.conversation[last] == conversation[held]) & moves.is_close[last]
        held = held[~closed]
    resumed = np.flatnonzero(ev.type == RESUMED)
    stops = np.concatenate([2 * resumed, moves.place[moves.closes]])
    place = np.concatenate([2 * held, stops])
    is_held = np.repeat([True, False], [len(held), len(stops)])
    order = np.argsort(place, kind="stable")
    row, is_held = place[order] >> 1, is_held[order]
    own = conversation[row]
    running = np.append(False, is_held[:-1] & (own[1:] == own[:-1])) if len(row) else is_held
    begins = is_held & ~running
    start = np.maximum.accumulate(np.where(begins, row, 0)) if len(row) else row
    ends = np.flatnonzero(~is_held & running)
    add_by_runs(hold, own[ends], ev.at[row[ends]] - ev.at[start[ends]])
    return hold
