"""What is said of each conversation: times, counts and durations, as vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transforms.life_cycle import STATE_RESOLVED, LifeCycles
from transforms.schema import (
    ASSIGNED,
    ESCALATED,
    HANDOFF,
    NOTE,
    RATING,
    WRAP_UP,
)
from transforms.turns import Turns
from transforms.vectors import NEVER, Codes, EventVectors, Mask, Rows, add_by_runs, chosen

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """c conversations; times in microseconds since the epoch, NEVER where it did not happen; rows are -1 for none.

    Durations are in microseconds, but wrap_up and csat_score, which are as they came. Attributes carry the names of the
    columns of `conversations`.
    """

    begin: Rows
    first_message: Rows
    channel: Codes
    account: Codes
    agent: Codes
    team: Codes
    opened_at: Rows
    first_response_at: Rows
    first_reply_at: Rows
    handled_at: Rows
    rated_at: Rows
    last_event_at: Rows
    leaves_at: Rows
    silence_limit: Rows
    is_proactive: Mask
    is_followed: Mask
    is_first_contact_resolution: Mask
    is_one_touch: Mask
    event_count: Rows
    message_count: Rows
    reply_count: Rows
    bot_reply_count: Rows
    automated_reply_count: Rows
    turn_count: Rows
    transfer_count: Rows
    escalation_count: Rows
    handoff_count: Rows
    note_count: Rows
    agent_count: Rows
    channel_count: Rows
    assigned_at: Rows
    engaged: Rows
    wrap_up_seconds: Doubles
    csat_score: Doubles

    @property
    def has_message(self) -> Mask:
        """Conversations with a customer message; the others are outreach."""
        return self.first_message >= 0

    @property
    def is_handled(self) -> Mask:
        """handled_at is known."""
        return self.handled_at != NEVER


def gather_facts(
    ev: EventVectors,
    conversation: Codes,
    begin: Rows,
    first_message: Rows,
    turns: Turns,
    cycles: LifeCycles,
    score: Callable[[Rows], Doubles],
    duration: Callable[[Rows], Doubles],
    as_of: int,
) -> Facts:
    """Gathers the facts of whole conversations.

    Args:
      ev: their n events, in order, none of them stray.
      conversation: number of the conversation of each event.
      begin: first row of each of the c conversations.
      first_message: first message of each, or -1.
      turns: their turns.
      cycles: their states.
      score: the scores of some of their events (NaN for none).
      duration: the durations of after-contact work of some of them, seconds (NaN for none).
      as_of: the moment up to which time has passed, microseconds.
    """
    count = len(begin)
    last_row = np.append(begin[1:], len(ev)) - 1

    def counted(marked: Mask) -> Rows:
        return np.bincount(chosen(conversation, marked), minlength=count)

    def last_of(marked: Rows) -> Rows:
        """The last of the marked rows in each conversation, or -1."""
        out = np.full(count, -1, np.int64)
        out[conversation.take(marked)] = marked
        return out

    def first_after_message(marked: Rows, place: Rows | Codes) -> Rows:
        """The first of the marked rows after the first message, or -1; given how many of them come up to it."""
        row = np.append(marked, -1).take(place)
        return np.where((first_message >= 0) & (row <= last_row), row, -1)

    def time_of(rows: Rows) -> Rows:
        return ev.at_or_never.take(rows)

    humans = np.flatnonzero(ev.is_human_reply)
    bots = np.flatnonzero(ev.is_bot_reply)
    replies = np.flatnonzero(ev.is_reply)
    assigned = np.flatnonzero(ev.type == ASSIGNED)
    response = first_after_message(humans, ev.humans_so_far.take(first_message + 1))
    first_bot = first_after_message(bots, np.searchsorted(bots, first_message, side="right"))
    first_reply = np.where((first_bot >= 0) & ((response < 0) | (first_bot < response)), first_bot, response)
    head = np.where(first_message >= 0, first_message, begin)
    channel = ev.channel[head]
    opened_at = ev.at[head]
    first_reply_of_any_kind = np.full(count, -1, np.int64)
    first_reply_of_any_kind[conversation.take(replies)[::-1]] = replies[::-1]
    has_message = first_message >= 0
    is_proactive = ~has_message | ((first_reply_of_any_kind >= 0) & (first_reply_of_any_kind < first_message))

    # Where the platform has no `resolved` and none is inferred, nothing is said of handling.
    is_followed = ev.limits.has_life_cycle[channel] | ev.limits.infer_resolution[channel]
    is_resolved = cycles.state == STATE_RESOLVED
    last_human = last_of(humans)
    last_human = np.where(last_human > first_message, last_human, -1)
    handled_at = np.where(is_resolved, cycles.resolved_at, time_of(last_human))
    handled_at = np.where(has_message & is_followed, handled_at, NEVER)
    transfer_count = _transfers(ev, conversation, assigned, count)
    escalation_count = counted(ev.type == ESCALATED)
    so_far = ev.humans_so_far
    humans_after = (so_far.take(last_row + 1) - so_far.take(np.maximum(first_message, 0))) * has_message
    first_contact = (cycles.reopen_count == 0) & (transfer_count == 0) & (escalation_count == 0)

    wrap_ups = np.flatnonzero(ev.type == WRAP_UP)
    # (numpy counts in integers where there is nothing to weigh.)
    wrap_up = np.bincount(conversation[wrap_ups], weights=duration(wrap_ups), minlength=count).astype(np.float64)
    rating = last_of(np.flatnonzero(ev.type == RATING))
    rated = np.flatnonzero(rating >= 0)
    csat_score = np.full(count, np.nan)
    csat_score[rated] = score(rating[rated])
    to_agent = np.flatnonzero(ev.is_assigned_to_agent)
    place = np.searchsorted(to_agent, response) - 1
    last_assigned = np.where(place >= 0, np.append(to_agent, -1)[place], -1)
    last_assigned = np.where((response >= 0) & (last_assigned >= begin), last_assigned, -1)

    limit = _silence_limits(ev, cycles, last_row)
    return Facts(
        begin=begin,
        first_message=first_message,
        channel=channel,
        account=ev.account[head],
        agent=_last_name(ev.agent, conversation, humans, assigned, count),
        team=_last_name(ev.team, conversation, humans, assigned, count),
        opened_at=opened_at,
        first_response_at=time_of(response),
        first_reply_at=time_of(first_reply),
        handled_at=handled_at,
        rated_at=time_of(rating),
        last_event_at=ev.at[last_row],
        leaves_at=_leaving_times(ev, begin, last_row, limit, as_of),
        silence_limit=limit,
        is_proactive=is_proactive,
        is_followed=is_followed,
        is_first_contact_resolution=is_resolved & first_contact,
        is_one_touch=is_resolved & (humans_after == 1),
        event_count=last_row - begin + 1,
        message_count=counted(ev.is_message),
        reply_count=counted(ev.is_human_reply),
        bot_reply_count=counted(ev.is_bot_reply),
        automated_reply_count=counted(ev.is_automated_reply),
        turn_count=np.bincount(turns.conversation, minlength=count),
        transfer_count=transfer_count,
        escalation_count=escalation_count,
        handoff_count=counted(ev.type == HANDOFF),
        note_count=counted(ev.type == NOTE),
        agent_count=_distinct(ev.agent, conversation, chosen(humans, ev.agent.take(humans) >= 0), count),
        channel_count=_channel_counts(ev, conversation, begin),
        assigned_at=time_of(last_assigned),
        engaged=_engaged_times(ev, turns, cycles, count),
        wrap_up_seconds=wrap_up,
        csat_score=csat_score,
    )


def _last_name(codes: Codes, conversation: Codes, humans: Rows, assigned: Rows, count: int) -> Codes:
    """The last non-null code of the human replies, else of `assigned`; -1 where there is none."""
    out = np.full(count, -1, np.int32)
    for rows in (assigned, humans):
        named = chosen(rows, codes.take(rows) >= 0)
        out[conversation.take(named)] = codes.take(named)
    return out


def _transfers(ev: EventVectors, conversation: Codes, assigned: Rows, count: int) -> Rows:
    """`assigned` events that change the last known agent or the last known team; null tells nothing."""
    is_transfer = np.zeros(len(ev), bool)
    for codes in (ev.agent, ev.team):
        rows = chosen(assigned, codes.take(assigned) >= 0)
        own, code = conversation[rows], codes[rows]
        is_transfer[rows[1:][(own[1:] == own[:-1]) & (code[1:] != code[:-1])]] = True
    return np.bincount(conversation[is_transfer], minlength=count)


def _distinct(codes: Codes, conversation: Codes, rows: Rows, count: int) -> Rows:
    """Number of distinct codes among the rows of each conversation."""
    pairs = (conversation.take(rows).astype(np.int64) << 32) | codes.take(rows)
    # Most are the same as the one before.
    pairs = np.sort(chosen(pairs, np.append(True, pairs[1:] != pairs[:-1])) if len(pairs) else pairs)
    new = np.append(True, pairs[1:] != pairs[:-1]) if len(pairs) else np.empty(0, bool)
    return np.bincount(chosen(pairs, new) >> 32, minlength=count)


def _channel_counts(ev: EventVectors, conversation: Codes, begin: Rows) -> Rows:
    """Number of distinct channels of the events; nearly every conversation has one."""
    counts = np.ones(len(begin), np.int64)
    differs = np.append(False, (ev.channel[1:] != ev.channel[:-1]) & (conversation[1:] == conversation[:-1]))
    if differs.any():
        mixed = np.zeros(len(begin), bool)
        mixed[conversation[differs]] = True
        rows = np.flatnonzero(mixed[conversation])
        counts[mixed] = _distinct(ev.channel, conversation, rows, len(begin))[mixed]
    return counts


def _engaged_times(ev: EventVectors, turns: Turns, cycles: LifeCycles, count: int) -> Rows:
    """Waits of the ended turns that began before resolved_at or at it, microseconds."""
    ended = np.flatnonzero(turns.end >= 0)
    own = turns.conversation.take(ended)
    start = ev.at.take(turns.first.take(ended))
    wait = (ev.at.take(turns.end.take(ended)) - start) * (start <= cycles.resolved_at.take(own))
    out = np.zeros(count, np.int64)
    add_by_runs(out, own, wait)
    return out


def _silence_limits(ev: EventVectors, cycles: LifeCycles, last_row: Rows) -> Rows:
    """The silence limit after the last event: max_open for an unsolved ticket with a life cycle, else max_idle."""
    channel = ev.channel[last_row]
    limits = ev.limits
    may_stay_open = (
        ev.is_keyed[last_row]
        & ~(limits.split_threads | limits.infer_resolution)[channel]
        & limits.has_life_cycle[channel]
        & ~cycles.last_cycle_is_close
    )
    return np.where(may_stay_open, limits.max_open[channel], limits.max_idle[channel])


def _leaving_times(ev: EventVectors, begin: Rows, last_row: Rows, limit: Rows, as_of: int) -> Rows:
    """When a conversation that nobody ends leaves backlog and waiting; NEVER where it has not yet.

    It leaves when the next conversation of its key begins, or at last_event_at + its silence limit once as_of is past
    that.
    """
    silent_at = ev.at[last_row] + limit
    leaves = np.where(as_of > silent_at, silent_at, NEVER)
    if len(begin) > 1:
        followed = np.append(ev.key[begin[1:]] == ev.key[begin[:-1]], False)
        next_at = np.append(ev.at[begin[1:]], 0)
        earlier = followed & ((leaves == NEVER) | (next_at < leaves))
        leaves = np.where(earlier, next_at, leaves)
    return leaves
