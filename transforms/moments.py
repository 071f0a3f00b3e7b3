"""Where each number falls: the statistics of whole conversations, on both bases."""

from __future__ import annotations

import numpy as np

from transforms.calendars import WindowGrid
from transforms.counting import StatisticsBuilder
from transforms.facts import Facts
from transforms.life_cycle import STATE_DISMISSED, STATE_RESOLVED, LifeCycles
from transforms.statistics import ACTIVITY, OPENED, Integers, Statistics
from transforms.turns import ANSWERED, Turns
from transforms.vectors import NEVER, Codes, EventVectors, Mask


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
        cells = to.cells(ACTIVITY, grid.slices_of(ev.at[rows]), ev.account[rows], ev.channel[rows])
        to.count(name, cells)
        to.add(name, opened, getattr(facts, name))
        if name == "message_count":
            for what, of_turn in (
                ("needs_reply_message_count", turns.needs_reply),
                ("responded_message_count", turns.is_responded),
                ("answered_message_count", turns.outcome == ANSWERED),
            ):
                to.count(what, cells[of_turn[turns.of_message]])
                to.add(what, opened[turns.conversation[of_turn]], turns.message_count[of_turn])


def _count_conversations(
    to: StatisticsBuilder, cycles: LifeCycles, facts: Facts, grid: WindowGrid, opened: Integers
) -> None:
    """What is counted once a conversation: at its time on the activity basis, where it opened on the other."""
    spoken = facts.has_message

    def at(times: Integers, chosen: Mask) -> tuple[tuple[Integers, Integers], Integers]:
        """Cells on both bases of the chosen conversations, and their numbers."""
        which = np.flatnonzero(chosen)
        cells = to.cells(ACTIVITY, grid.slices_of(times[which]), facts.account[which], facts.channel[which])
        return (cells, opened[which]), which

    # Conversations without a message count in proactive_count and the reply counts only.
    resolvable = facts.is_followed & (cycles.state != STATE_DISMISSED)
    both, which = at(facts.opened_at, spoken | facts.is_proactive)
    for cells in both:
        to.count("conversation_count", cells[spoken[which]])
        to.count("proactive_count", cells[facts.is_proactive[which]])
        to.count("resolvable_count", cells[(spoken & resolvable)[which]])
        to.count("resolvable_resolved_count", cells[(spoken & resolvable & (cycles.state == STATE_RESOLVED))[which]])

    both, which = at(facts.first_response_at, facts.first_response_at != NEVER)
    wait = (facts.first_response_at - facts.opened_at)[which]
    assigned = (facts.assigned_at != NEVER)[which]
    answer = (facts.first_response_at - np.maximum(facts.opened_at, facts.assigned_at))[which[assigned]]
    for cells in both:
        to.count("first_response_count", cells)
        to.add_seconds("first_response", cells, wait)
        to.count("answer_count", cells[assigned])
        to.add_seconds("answer", cells[assigned], answer, histogram=False)

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
        for name, chosen in (
            ("first_contact_resolution_count", facts.is_first_contact_resolution),
            ("one_touch_count", facts.is_one_touch),
            ("reopened_count", cycles.reopen_count > 0),
            ("transferred_count", facts.transfer_count > 0),
            ("escalated_count", facts.escalation_count > 0),
        ):
            to.count(name, cells[chosen[which]])

    both, which = at(facts.rated_at, spoken & (facts.rated_at != NEVER))
    score = facts.csat_score[which]
    for cells in both:
        to.count("rating_count", cells)
        to.add("sum_csat", cells, whole_micros(score))
        to.count("satisfied_count", cells[score >= 4])


def _count_turns(to: StatisticsBuilder, ev: EventVectors, turns: Turns, grid: WindowGrid, opened: Integers) -> None:
    """Reply time: of answered turns, at the turn's end, in the channel of its first message."""
    answered = np.flatnonzero(turns.outcome == ANSWERED)
    first, end = turns.first[answered], turns.end[answered]
    wait = ev.at[end] - ev.at[first]
    cells = to.cells(ACTIVITY, grid.slices_of(ev.at[end]), ev.account[first], ev.channel[first])
    for both in (cells, opened[turns.conversation[answered]]):
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
    into, out = later & (cycles.move_change > 0), later & (cycles.move_change < 0)
    for name, times, which in (
        ("backlog_in_count", facts.opened_at[enters], enters),
        ("backlog_in_count", ev.at[row[into]], own[into]),
        ("backlog_out_count", ev.at[row[out]], own[out]),
        ("backlog_out_count", facts.leaves_at[leaves], leaves),
    ):
        to.count(name, to.cells(ACTIVITY, grid.slices_of(times), facts.account[which], facts.channel[which]))


def _count_waiting(to: StatisticsBuilder, ev: EventVectors, turns: Turns, facts: Facts, grid: WindowGrid) -> None:
    """Turns that become due and are due no more, in the channel of the turn's first message."""
    leaves = np.flatnonzero(turns.is_due & (facts.leaves_at[turns.conversation] != NEVER))
    into, out = turns.due_change > 0, turns.due_change < 0
    for name, times, turn in (
        ("waiting_in_count", ev.at[turns.due_at[into]], turns.due_turn[into]),
        ("waiting_out_count", ev.at[turns.due_at[out]], turns.due_turn[out]),
        ("waiting_out_count", facts.leaves_at[turns.conversation[leaves]], leaves),
    ):
        first = turns.first[turn]
        to.count(name, to.cells(ACTIVITY, grid.slices_of(times), ev.account[first], ev.channel[first]))


def whole_micros(seconds: np.ndarray) -> Integers:
    """Seconds (or a score) as whole millionths."""
    return np.rint(seconds * 1e6).astype(np.int64)
