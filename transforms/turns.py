"""Customer turns: runs of messages with no human reply between them, how each ended, and when each was due."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transforms.schema import DISMISSED, EVENT_TYPES, HANDOFF, RESOLVED
from transforms.vectors import Codes, EventVectors, Mask, Rows, begins_of_runs, chosen

ANSWERED, TURN_RESOLVED, TURN_DISMISSED, WAITING = range(4)
OUTCOMES = ("answered", "resolved", "dismissed", "waiting")

_OUTCOME_OF_TYPE = np.full(len(EVENT_TYPES), ANSWERED)
_OUTCOME_OF_TYPE[[RESOLVED, DISMISSED]] = TURN_RESOLVED, TURN_DISMISSED
"""The outcome of a turn by the type of the event that ends it."""


@dataclass(frozen=True)
class Turns:
    """m turns in order; rows are places in the event vectors, -1 where there is none.

    Attributes:
      conversation: number of the conversation.
      number: place in the conversation, from 1.
      first: first message.
      end: the event that ended it, or -1.
      bot: first bot reply while it waited, or -1.
      outcome: code in OUTCOMES.
      message_count: messages.
      of_message: turn of each message, in the order of the messages.
      due_turn: turn of each change of being due.
      due_at: row of each change of being due.
      due_change: +1 where the turn becomes due, -1 where it is due no more.
      is_due: due at the end, and not ended.
    """

    conversation: Codes
    number: Rows
    first: Rows
    end: Rows
    bot: Rows
    outcome: Rows
    message_count: Rows
    of_message: Rows
    due_turn: Rows
    due_at: Rows
    due_change: Rows
    is_due: Mask

    @property
    def is_responded(self) -> Mask:
        """Answered, or a bot replied."""
        return (self.outcome == ANSWERED) | (self.bot >= 0)

    @property
    def needs_reply(self) -> Mask:
        """Responded, or neither dismissed nor resolved in a turn after the first (a closing thank-you)."""
        closing = (self.outcome == TURN_DISMISSED) | ((self.outcome == TURN_RESOLVED) & (self.number > 1))
        return self.is_responded | ~closing


def find_turns(ev: EventVectors, conversation: Codes) -> Turns:
    """Finds the turns.

    Args:
      ev: the events of whole conversations, in order, none of them stray.
      conversation: number of the conversation of each event.

    Returns:
      The turns, in the order of their first messages.
    """
    rows = np.flatnonzero(ev.ends_or_holds_turn)
    message = ev.is_message.take(rows)
    own = conversation.take(rows)
    after_message = np.append(False, message[:-1] & (own[1:] == own[:-1])) if len(rows) else message
    begins = message & ~after_message
    turn = np.cumsum(begins) - 1
    first = chosen(rows, begins)
    count = len(first)
    # The event after the run, in the same conversation, ends the turn.
    ends = np.flatnonzero(~message & after_message)
    ended, end_rows = turn.take(ends), rows.take(ends)
    end = np.full(count, -1, np.int64)
    end[ended] = end_rows
    outcome = np.full(count, WAITING, np.int64)
    outcome[ended] = _OUTCOME_OF_TYPE.take(ev.type.take(end_rows))
    message_places = np.flatnonzero(message)
    of_message = turn.take(message_places)
    turn_conversation = conversation.take(first)
    begin_of = begins_of_runs(np.append(True, np.diff(turn_conversation) != 0)) if count else np.empty(0, np.int64)

    def while_waiting(marked: Mask) -> tuple[Rows, Rows]:
        """Marked events during a waiting turn, and the turn."""
        some = np.flatnonzero(marked)
        if not len(rows):
            return rows, rows
        place = ev.turning_so_far.take(some) - 1
        last = np.maximum(place, 0)
        inside = np.flatnonzero((place >= 0) & message.take(last) & (own.take(last) == conversation.take(some)))
        return some.take(inside), turn.take(last.take(inside))

    bots, bot_turn = while_waiting(ev.is_bot_reply)
    bot = np.full(count, -1, np.int64)
    bot[bot_turn[::-1]] = bots[::-1]
    handoffs, handoff_turn = while_waiting(ev.type == HANDOFF)
    due_turn, due_at, due_change, is_due = _due_changes(
        first, end, rows.take(message_places), of_message, bots, bot_turn, handoffs, handoff_turn
    )
    return Turns(
        conversation=turn_conversation,
        number=np.arange(count) - begin_of + 1,
        first=first,
        end=end,
        bot=bot,
        outcome=outcome,
        message_count=np.bincount(of_message, minlength=count),
        of_message=of_message,
        due_turn=due_turn,
        due_at=due_at,
        due_change=due_change,
        is_due=is_due,
    )


def _due_changes(
    first: Rows,
    end: Rows,
    messages: Rows,
    of_message: Rows,
    bots: Rows,
    bot_turn: Rows,
    handoffs: Rows,
    handoff_turn: Rows,
) -> tuple[Rows, Rows, Rows, Mask]:
    """When turns become due and are due no more.

    A turn is due from a message until a bot reply (a further message makes it due again), and from a handoff until it
    ends, whatever a bot says.
    """
    count = len(first)
    ended = end >= 0
    if not len(bots):
        # Without bots a turn is due from its first message to its end.
        turns = np.arange(count)
        closed = np.flatnonzero(ended)
        due_turn = np.append(turns, closed)
        due_at = np.append(first, end.take(closed))
        return due_turn, due_at, np.repeat([1, -1], [count, len(closed)]), ~ended
    # What happens in turns, in order; marking rows is faster than sorting them.
    turn_of = np.full(1 + max(int(rows[-1]) for rows in (messages, bots, handoffs) if len(rows)), -1, np.int64)
    kind_of = np.zeros(len(turn_of), np.int8)
    for code, (rows, turns) in enumerate(((messages, of_message), (bots, bot_turn), (handoffs, handoff_turn))):
        turn_of[rows], kind_of[rows] = turns, code
    at = np.flatnonzero(turn_of >= 0)
    turn, kind = turn_of.take(at), kind_of.take(at)
    begins = np.append(True, np.diff(turn) != 0)
    is_handoff = kind == 2
    handoffs_so_far = np.cumsum(is_handoff)
    before_turn = (handoffs_so_far - is_handoff).take(begins_of_runs(begins))
    due = (kind == 0) | (handoffs_so_far > before_turn)
    was_due = np.append(False, due[:-1]) & ~begins
    becomes, stops = np.flatnonzero(due & ~was_due), np.flatnonzero(~due & was_due)
    last = np.append(np.flatnonzero(begins)[1:] - 1, len(at) - 1)
    due_at_last = np.zeros(count, bool)
    due_at_last[turn.take(last)] = due.take(last)
    closes = np.flatnonzero(ended & due_at_last)
    due_turn = np.concatenate([turn.take(becomes), turn.take(stops), closes])
    due_at = np.concatenate([at.take(becomes), at.take(stops), end.take(closes)])
    change = np.repeat([1, -1], [len(becomes), len(stops) + len(closes)])
    return due_turn, due_at, change, due_at_last & ~ended
