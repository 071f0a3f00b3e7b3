"""Where each number falls: the statistics of whole conversations, on both bases."""

from __future__ import annotations

import numpy as np

from transforms.calendars import WindowGrid
from transforms.counting import StatisticsBuilder
from transforms.facts import Facts
from transforms.life_cycle import STATE_DISMISSED, STATE_RESOLVED, LifeCycles
from transforms.statistics import ACTIVITY, OPENED, Integers, Statistics
from transforms.turns import ANSWERED, Turns
from transforms.vectors import NEVER, Codes, EventVectors, Mask, chosen


def count_statistics(
    ev: EventVectors,
    conversation: Codes,
    turns: Turns,
    cycles: LifeCycles,
    facts: Facts,
    grid: WindowGrid,
    accounts: list[str | None],
    channels: list[str],
) -> Statistics:
    """Adds up the statistics of whole conversations.

    Args:
      ev: their events, in order, none of them stray.
      conversation: number of the conversation of each event.
      turns: their turns.
      cycles: their states.
      facts: their facts.
      grid: windows that cover their events and as_of.
      accounts: accounts by code + 1; the first is null.
      channels: channels by code.
    """
    to = StatisticsBuilder(grid.slice_starts, accounts, channels)
    opened = to.cells(OPENED, grid.slices_of(facts.opened_at), facts.account, facts.channel)
    _count_volume(to, ev, conversation, turns, facts, grid, opened)
    _count_conversations(to, cycles, facts, grid, opened)
    _count_turns(to, ev, turns, grid, opened)
    _count_backlog(to, ev, cycles, facts, grid)
    _count_waiting(to, ev, turns, facts, grid)
    return to.build()


def _count_volume(
    to: StatisticsBuilder,
    ev: EventVectors,
    conversation: Codes,
    turns: Turns,
    facts: Facts,
    grid: WindowGrid,
    opened: Integers,
) -> None:
    """Messages and replies, each at its own time and channel; and what became of the messages."""
    for name, marked in (
        ("message_count", ev.is_message),
        ("reply_count", ev.is_human_reply),
        ("bot_reply_count", ev.is_bot_reply),
    ):
        rows = np.flatnonzero(marked)
        cells = to.cells(ACTIVITY, grid.slices_of(ev.at.take(rows)), ev.account.take(rows), ev.channel.take(rows))
        to.count(name, cells)
        to.add(name, opened, getattr(facts, name))
        if name == "message_count":
            for what, of_turn in (
                ("needs_reply_message_count", turns.needs_reply),
                ("responded_message_count", turns.is_responded),
                ("answered_message_count", turns.outcome == ANSWERED),
            ):
                to.count(what, chosen(cells, of_turn.take(turns.of_message)))
                some = np.flatnonzero(of_turn)
                to.add(what, opened.take(turns.conversation.take(some)), turns.message_count.take(some))


def _count_conversations(
    to: StatisticsBuilder, cycles: LifeCycles, facts: Facts, grid: WindowGrid, opened: Integers
) -> None:
    """What is counted once a conversation: at its time on the activity basis, where it opened on the other."""
    spoken = facts.has_message

    def at(times: Integers, marked: Mask) -> tuple[tuple[Integers, Integers], Integers]:
        """Cells on both bases of the marked conversations, and their numbers."""
        which = np.flatnonzero(marked)
        slices = grid.slices_of(times.take(which))
        cells = to.cells(ACTIVITY, slices, facts.account.take(which), facts.channel.take(which))
        return (cells, opened.take(which)), which

    # Conversations without a message count in proactive_count and the reply counts only.
    resolvable = facts.is_followed & (cycles.state != STATE_DISMISSED)
    both, which = at(facts.opened_at, spoken | facts.is_proactive)
    for cells in both:
        to.count("conversation_count", chosen(cells, spoken[which]))
        to.count("proactive_count", chosen(cells, facts.is_proactive[which]))
        to.count("resolvable_count", chosen(cells, (spoken & resolvable)[which]))
        resolved = spoken & resolvable & (cycles.state == STATE_RESOLVED)
        to.count("resolvable_resolved_count", chosen(cells, resolved[which]))

    both, which = at(facts.first_response_at, facts.first_response_at != NEVER)
    wait = (facts.first_response_at - facts.opened_at)[which]
    assigned = np.flatnonzero((facts.assigned_at != NEVER)[which])
    answer = (facts.first_response_at - np.maximum(facts.opened_at, facts.assigned_at))[which[assigned]]
    for cells in both:
        to.count("first_response_count", cells)
        to.add_seconds("first_response", cells, wait)
        some = cells.take(assigned)
        to.count("answer_count", some)
        to.add_seconds("answer", some, answer, histogram=False)

    both, which = at(facts.first_reply_at, facts.first_reply_at != NEVER)
    for cells in both:
        to.count("first_reply_count", cells)
        to.add_seconds("first_reply", cells, (facts.first_reply_at - facts.opened_at)[which])

    # "Of resolved conversations" means: with a message, resolved now, with a life cycle known or inferred.
    both, which = at(cycles.resolved_at, spoken & facts.is_followed & (cycles.state == STATE_RESOLVED))
    resolution = (cycles.resolved_at - facts.opened_at)[which]
    wrap_up = whole_micros(facts.wrap_up_seconds[which])
    for cells in both:
        to.count("resolved_count", cells)
        to.add_seconds("resolution", cells, resolution)
        to.add_seconds("handle", cells, resolution + wrap_up)
        to.add_seconds("engaged", cells, facts.engaged[which] + wrap_up, histogram=False)
        to.add_seconds("hold", cells, cycles.hold[which], histogram=False)

    both, which = at(facts.handled_at, facts.is_handled)
    for cells in both:
        to.count("handled_count", cells)
        for name, marked in (
            ("first_contact_resolution_count", facts.is_first_contact_resolution),
            ("one_touch_count", facts.is_one_touch),
            ("reopened_count", cycles.reopen_count > 0),
            ("transferred_count", facts.transfer_count > 0),
            ("escalated_count", facts.escalation_count > 0),
        ):
            to.count(name, chosen(cells, marked[which]))

    both, which = at(facts.rated_at, spoken & (facts.rated_at != NEVER))
    score = facts.csat_score[which]
    for cells in both:
        to.count("rating_count", cells)
        to.add("sum_csat", cells, whole_micros(score))
        to.count("satisfied_count", cells[score >= 4])


def _count_turns(to: StatisticsBuilder, ev: EventVectors, turns: Turns, grid: WindowGrid, opened: Integers) -> None:
    """Reply time: of answered turns, at the turn's end, in the channel of its first message."""
    answered = np.flatnonzero(turns.outcome == ANSWERED)
    first, ended_at = turns.first.take(answered), ev.at.take(turns.end.take(answered))
    wait = ended_at - ev.at.take(first)
    cells = to.cells(ACTIVITY, grid.slices_of(ended_at), ev.account.take(first), ev.channel.take(first))
    for both in (cells, opened.take(turns.conversation.take(answered))):
        to.count("answered_turn_count", both)
        to.add_seconds("reply", both, wait)


def _count_backlog(to: StatisticsBuilder, ev: EventVectors, cycles: LifeCycles, facts: Facts, grid: WindowGrid) -> None:
    """Moves into and out of state open, from the first message on, of conversations whose life cycle is known."""
    counted = facts.has_message & facts.is_followed
    own, row = cycles.move_conversation, cycles.move_row
    # The first message finds the conversation open or opens it: either way that is the first move in.
    later = counted[own] & (row > facts.first_message[own])
    enters = np.flatnonzero(counted)
    stays_open = counted & (cycles.state != STATE_RESOLVED) & (cycles.state != STATE_DISMISSED)
    leaves = np.flatnonzero(stays_open & (facts.leaves_at != NEVER))
    into = np.flatnonzero(later & (cycles.move_change > 0))
    out = np.flatnonzero(later & (cycles.move_change < 0))
    for name, times, which in (
        ("backlog_in_count", facts.opened_at[enters], enters),
        ("backlog_in_count", ev.at.take(row.take(into)), own.take(into)),
        ("backlog_out_count", ev.at.take(row.take(out)), own.take(out)),
        ("backlog_out_count", facts.leaves_at[leaves], leaves),
    ):
        to.count(name, to.cells(ACTIVITY, grid.slices_of(times), facts.account[which], facts.channel[which]))


def _count_waiting(to: StatisticsBuilder, ev: EventVectors, turns: Turns, facts: Facts, grid: WindowGrid) -> None:
    """Turns that become due and are due no more, in the channel of the turn's first message."""
    leaves = np.flatnonzero(turns.is_due & (facts.leaves_at[turns.conversation] != NEVER))
    into, out = np.flatnonzero(turns.due_change > 0), np.flatnonzero(turns.due_change < 0)
    for name, times, turn in (
        ("waiting_in_count", ev.at.take(turns.due_at.take(into)), turns.due_turn.take(into)),
        ("waiting_out_count", ev.at.take(turns.due_at.take(out)), turns.due_turn.take(out)),
        ("waiting_out_count", facts.leaves_at[turns.conversation[leaves]], leaves),
    ):
        first = turns.first.take(turn)
        to.count(name, to.cells(ACTIVITY, grid.slices_of(times), ev.account.take(first), ev.channel.take(first)))


def whole_micros(seconds: np.ndarray) -> Integers:
    """Seconds (or a score) as whole millionths."""
    return np.rint(seconds * 1e6).astype(np.int64)
