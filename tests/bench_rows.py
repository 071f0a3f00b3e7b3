"""The same logic row at a time: the way to write it in Beam that comes to mind first, as a yardstick of the bench.

Parquet rows become tuples, are validated one by one, keyed by conversation and grouped; a loop over the events of a key
runs the state machine; the counts, sums and histograms of every hour are added up by CombinePerKey, and those of every
day, week and month from them; a window's KPIs are computed from its own. Less is done than by the batch pipeline:
default settings and split_threads only, no infer_resolution and repeat_contact, a warehouse without comments and views;
dead letters are counted.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import apache_beam as beam
import duckdb
import pyarrow as pa
from apache_beam.io.parquetio import ReadAllFromParquet, WriteToParquet
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton, TaggedOutput

TIE_ORDER = {
    name: place
    for place, name in enumerate(
        "message reopened handoff assigned escalated resumed reply held note wrap_up dismissed resolved rating".split()
    )
}
END_OF_TIME = 4_133_980_800_000_000
SPLIT_CHANNELS = frozenset(("whatsapp", "facebook"))
TIMEZONE = ZoneInfo("Europe/Berlin")
HOUR = 3_600_000_000
GAP, MAX_IDLE, MAX_OPEN = 24 * HOUR, 30 * 24 * HOUR, 365 * 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_AUTHORS = frozenset(("customer", "agent", "bot", "system"))
_BOT, _AUTOMATED = "bot", "automated"
_SPOKEN = frozenset(("message", "reply", _BOT))

Counts = dict[str, int]
Cell = tuple[str, int, str, str]
Window = tuple[str, str, int, str, str]


class Event(NamedTuple):
    """One valid event; at in microseconds."""

    at: int
    event_type: str
    channel: str
    customer_id: str | None
    author_type: str | None
    agent_id: str | None
    team_id: str | None
    is_automated: bool | None
    topic: str | None
    subtopic: str | None
    priority: str | None
    language: str | None
    quick_reply_id: str | None
    sentiment: float | None
    score: float | None
    duration_seconds: float | None
    event_id: str
    account_id: str | None
    has_thread: bool

    @property
    def kind(self) -> str:
        """The event's type; a reply by its author: reply (human), bot or automated."""
        if self.event_type != "reply":
            return self.event_type
        if self.is_automated or self.author_type == "system":
            return _AUTOMATED
        return _BOT if self.author_type == "bot" else "reply"


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _is_within(value: float | None, least: float, most: float) -> bool:
    return value is None or least <= value <= most


def fault_of(row: dict[str, Any]) -> str | None:
    """Why a row cannot be used, or None."""
    kind, author = row["event_type"], row["author_type"] or None
    if not row["event_id"] or not kind or row["occurred_at"] is None or not row["channel"]:
        return "missing"
    if kind not in TIE_ORDER:
        return "unknown_event_type"
    if not 0 <= (row["occurred_at"] - _EPOCH) // _MICROSECOND < END_OF_TIME:
        return "out_of_range"
    if not row["conversation_id"] and not row["customer_id"]:
        return "missing"
    if author is not None:
        if author not in _AUTHORS:
            return "unknown_author_type"
        if (kind == "message" and author != "customer") or (kind == "reply" and author == "customer"):
            return "author_type_not_allowed"
    if (kind == "rating" and row["score"] is None) or (kind == "wrap_up" and row["duration_seconds"] is None):
        return "missing"
    if not (
        _is_within(row["sentiment"], -1, 1)
        and _is_within(row["score"], 1, 5)
        and _is_within(row["duration_seconds"], 0, END_OF_TIME / 1e6)
    ):
        return "out_of_range"
    return None


class KeyEventsFn(beam.DoFn):
    """Rows -> (conversation_key, Event); rows at fault to the output dead_letters, as their reason."""

    def process(self, row: dict[str, Any]) -> Iterator[Any]:
        """One row."""
        reason = fault_of(row)
        if reason is not None:
            yield TaggedOutput("dead_letters", reason)
            return
        account, thread = row["account_id"] or None, row["conversation_id"] or None
        parts = [account, thread] if thread else [account, row["channel"], row["customer_id"]]
        yield (
            json.dumps(parts, ensure_ascii=False, separators=(",", ":")),
            Event(
                (row["occurred_at"] - _EPOCH) // _MICROSECOND,
                row["event_type"],
                row["channel"],
                row["customer_id"] or None,
                row["author_type"] or None,
                row["agent_id"] or None,
                row["team_id"] or None,
                row["is_automated"],
                row["topic"] or None,
                row["subtopic"] or None,
                row["priority"] or None,
                row["language"] or None,
                row["quick_reply_id"] or None,
                row["sentiment"],
                row["score"],
                row["duration_seconds"],
                row["event_id"],
                account,
                thread is not None,
            ),
        )


def without_copies(events: Iterable[Event]) -> list[Event]:
    """One of the copies of every event, in the contract's order."""
    kept: dict[str, Event] = {}
    for event in events:
        other = kept.setdefault(event.event_id, event)
        if other is not event and other != event:
            kept[event.event_id] = min(other, event, key=_rank)
    return sorted(kept.values(), key=lambda e: (e.at, TIE_ORDER[e.event_type], e.event_id))


def _rank(event: Event) -> list[tuple[bool, Any]]:
    return [(value is not None, value) for value in event]


# ---------------------------------------------------------------------------------------------------------------------
# The state machine


class Turn:
    """A run of customer messages with no human reply between them."""

    __slots__ = ("agent_id", "bot_at", "changes", "end", "first", "is_due", "is_handed_off", "messages", "outcome")

    def __init__(self, first: Event) -> None:
        """Begins to wait."""
        self.first, self.messages, self.changes = first, [first], [(first.at, 1)]
        self.is_due, self.is_handed_off, self.outcome = True, False, "waiting"
        self.end: int | None = None
        self.bot_at: int | None = None
        self.agent_id: str | None = None

    def set_due(self, due: bool, at: int) -> None:
        """Becomes due, or is due no more."""
        if due != self.is_due:
            self.is_due = due
            self.changes.append((at, 1 if due else -1))

    @property
    def is_responded(self) -> bool:
        """Answered, or a bot replied."""
        return self.outcome == "answered" or self.bot_at is not None

    def needs_reply(self, number: int) -> bool:
        """Responded, or neither dismissed nor resolved in a turn after the first."""
        return (
            self.is_responded or self.outcome in ("answered", "waiting") or (self.outcome == "resolved" and number == 1)
        )


class Conversation:
    """The events of one group, applied in order."""

    def __init__(self) -> None:
        """Open, nothing waiting."""
        self.events: list[Event] = []
        self.last: Event | None = None
        self.is_conversation = self.is_proactive = self.is_pending = self.was_closed = False
        self.answered_since_open = False
        self.spoken_at: int | None = None
        self.state = "open"
        self.resolved_at: int | None = None
        self.first_resolved_at: int | None = None
        self.first_message: Event | None = None
        self.response_at: int | None = None
        self.reply_at: int | None = None
        self.assigned_at: int | None = None
        self.answer_from: int | None = None
        self.turns: list[Turn] = []
        self.waiting: Turn | None = None
        self.humans: list[Event] = []
        self.humans_after = 0
        self.last_human_at: int | None = None
        self.known_agent: str | None = None
        self.known_team: str | None = None
        self.held_at: int | None = None
        self.hold = 0
        self.wrap_up = 0.0
        self.rating: Event | None = None
        self.moves: list[tuple[int, int]] = []
        self.count: Counts = defaultdict(int)

    def limit(self) -> int:
        """Silence after the last event that ends it."""
        assert self.last is not None
        is_split = not self.last.has_thread or self.last.channel in SPLIT_CHANNELS
        return MAX_IDLE if is_split or self.was_closed else MAX_OPEN

    def is_over_before(self, event: Event) -> bool:
        """Whether an event begins the next one."""
        last = self.last
        assert last is not None
        if event.at - last.at > self.limit():
            return True
        kind = event.kind
        if (last.has_thread and last.channel not in SPLIT_CHANNELS) or kind not in _SPOKEN:
            return False
        since = self.spoken_at if self.spoken_at is not None else self.events[0].at if self.events else None
        if since is None or event.at - since <= GAP:
            return False
        return self.waiting is None or (kind == "message" and not self.waiting.is_due)

    def apply(self, event: Event) -> None:
        """One event."""
        self.last = event
        kind, at = event.kind, event.at
        if kind in ("rating", "wrap_up") and not self.is_conversation:
            return
        self.events.append(event)
        self.count[kind] += 1
        if kind == "message":
            self._message(event)
        elif kind == "reply":
            self._human(event)
        elif kind == _BOT:
            self._bot(at)
        elif kind in ("resolved", "dismissed", "reopened"):
            self.was_closed = kind != "reopened"
            getattr(self, f"_{kind}")(at)
        elif kind == "assigned":
            self._assigned(event)
        elif kind == "handoff" and self.waiting is not None:
            self.waiting.is_handed_off = True
            self.waiting.set_due(True, at)
        elif kind == "held" and self.state == "open" and self.held_at is None:
            self.held_at = at
        elif kind == "resumed":
            self._end_hold(at)
        elif kind == "wrap_up":
            self.wrap_up += event.duration_seconds or 0.0
        elif kind == "rating":
            self.rating = event
        if event.event_type in ("message", "reply"):
            self.is_conversation = True
            if event.event_type == "reply" and self.first_message is None:
                self.is_proactive = True
            if kind != _AUTOMATED:
                self.spoken_at = at

    def _message(self, event: Event) -> None:
        is_first = self.first_message is None
        if is_first:
            self.first_message = event
        elif self.state == "resolved":
            self.is_pending = True
        if self.state != "open":
            self._open(event.at)
        elif is_first:
            self.moves.append((event.at, 1))
        if self.waiting is None:
            self.waiting = Turn(event)
            self.turns.append(self.waiting)
        else:
            self.waiting.messages.append(event)
            self.waiting.set_due(True, event.at)

    def _human(self, event: Event) -> None:
        self._end_turn("answered", event.at, event.agent_id)
        self._confirm()
        self.humans.append(event)
        if self.first_message is None:
            return
        self.humans_after += 1
        self.last_human_at = event.at
        self.answered_since_open = True
        if self.response_at is None:
            self.response_at = event.at
            if self.assigned_at is not None:
                self.answer_from = max(self.first_message.at, self.assigned_at)
        if self.reply_at is None:
            self.reply_at = event.at

    def _bot(self, at: int) -> None:
        if self.first_message is not None and self.reply_at is None:
            self.reply_at = at
        if self.waiting is not None:
            if self.waiting.bot_at is None:
                self.waiting.bot_at = at
            if not self.waiting.is_handed_off:
                self.waiting.set_due(False, at)

    def _reopened(self, at: int) -> None:
        if self.state == "open":
            self._confirm()
            return
        if self.state == "resolved":
            self.count["reopen"] += 1
        self._open(at)

    def _resolved(self, at: int) -> None:
        if self.state == "resolved":
            return
        self._end_turn("resolved", at)
        if not self.is_pending:
            self._resolve(at)
        self._close("resolved", at)

    def _dismissed(self, at: int) -> None:
        if self.state != "open":
            return
        self._end_turn("dismissed", at)
        if self.is_pending:
            self._close("resolved", at)
        elif self.answered_since_open:
            self._resolve(at)
            self._close("resolved", at)
        else:
            self._close("dismissed", at)

    def _assigned(self, event: Event) -> None:
        agent, team = event.agent_id, event.team_id
        is_transfer = agent is not None and self.known_agent not in (None, agent)
        is_transfer |= team is not None and self.known_team not in (None, team)
        self.count["transfer"] += is_transfer
        if agent is not None:
            self.known_agent, self.assigned_at = agent, event.at
        if team is not None:
            self.known_team = team

    def _open(self, at: int) -> None:
        self.state, self.answered_since_open = "open", False
        if self.first_message is not None:
            self.moves.append((at, 1))

    def _close(self, state: str, at: int) -> None:
        self._end_hold(at)
        if self.state == "open" and self.first_message is not None:
            self.moves.append((at, -1))
        self.state, self.is_pending = state, False

    def _resolve(self, at: int) -> None:
        self.resolved_at = at
        if self.first_resolved_at is None:
            self.first_resolved_at = at

    def _confirm(self) -> None:
        if self.is_pending:
            self.is_pending = False
            self.count["reopen"] += 1

    def _end_turn(self, outcome: str, at: int, agent_id: str | None = None) -> None:
        if self.waiting is not None:
            self.waiting.outcome, self.waiting.end, self.waiting.agent_id = outcome, at, agent_id
            self.waiting.set_due(False, at)
            self.waiting = None

    def _end_hold(self, at: int) -> None:
        if self.held_at is not None:
            self.hold += at - self.held_at
            self.held_at = None

    def leave(self, next_started_at: int | None, as_of: int) -> None:
        """Leaves backlog and waiting when the next one begins or it has been silent for too long."""
        over = self.events[-1].at + self.limit()
        moments = [at for at in (next_started_at, over if as_of > over else None) if at is not None]
        if not moments:
            return
        if self.state == "open" and self.first_message is not None:
            self.moves.append((min(moments), -1))
        if self.waiting is not None:
            self.waiting.set_due(False, min(moments))


def conversations_of(events: Iterable[Event], as_of: int) -> list[Conversation]:
    """Cuts the events of one key into conversations."""
    groups: list[Conversation] = []
    for event in without_copies(events):
        if not groups or groups[-1].is_over_before(event):
            groups.append(Conversation())
        groups[-1].apply(event)
    found = [group for group in groups if group.is_conversation]
    for place, conversation in enumerate(found):
        conversation.leave(found[place + 1].events[0].at if place + 1 < len(found) else None, as_of)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _seconds(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1e6


def _last(events: Sequence[Event], column: str) -> str | None:
    return next((value for e in reversed(events) if (value := getattr(e, column)) is not None), None)


def _time(at: int | None) -> datetime | None:
    return None if at is None else _EPOCH + timedelta(microseconds=at)


class PairFn(beam.DoFn):
    """(conversation_key, events) -> rows of conversations; turns and cells to outputs of these names."""

    def process(self, element: tuple[str, Iterable[Event]], as_of: int) -> Iterator[Any]:
        """One key."""
        key, events = element
        for conversation in conversations_of(events, as_of):
            row = conversation_row(key, conversation)
            yield {name: _time(value) if name.endswith("_at") else value for name, value in row.items()}
            for number, turn in enumerate(conversation.turns, 1):
                yield TaggedOutput("turns", turn_row(row, number, turn))
            for item in cells_of(conversation, row):
                yield TaggedOutput("cells", item)


def conversation_row(key: str, c: Conversation) -> dict[str, Any]:
    """One row of `conversations`; times in microseconds."""
    head = c.first_message or c.events[0]
    assigned = [e for e in c.events if e.event_type == "assigned"]
    resolved_at = c.resolved_at if c.state == "resolved" else None
    handled_at = None
    if c.first_message is not None:
        handled_at = resolved_at if resolved_at is not None else c.last_human_at
    is_closed = c.first_message is not None and resolved_at is not None
    resolution = _seconds(head.at, resolved_at) if is_closed else None
    waits = [t.end - t.first.at for t in c.turns if is_closed and t.end is not None and t.first.at <= resolved_at]
    count = c.count
    untouched = is_closed and not (count["reopen"] or count["transfer"] or count["escalated"])
    return {
        "conversation_key": key,
        "started_at": c.events[0].at,
        "account_id": head.account_id,
        "channel": head.channel,
        "customer_id": next((e.customer_id for e in c.events if e.customer_id is not None), None),
        "agent_id": _last(c.humans, "agent_id") or _last(assigned, "agent_id"),
        "team_id": _last(c.humans, "team_id") or _last(assigned, "team_id"),
        "topic": _last(c.events, "topic"),
        "subtopic": _last(c.events, "subtopic"),
        "priority": _last(c.events, "priority"),
        "language": _last(c.events, "language"),
        "state": c.state,
        "opened_at": head.at,
        "first_response_at": c.response_at,
        "first_reply_at": c.reply_at,
        "resolved_at": resolved_at,
        "first_resolved_at": c.first_resolved_at,
        "handled_at": handled_at,
        "rated_at": c.rating.at if c.rating else None,
        "last_event_at": c.events[-1].at,
        "is_proactive": c.is_proactive or c.first_message is None,
        "is_handled": handled_at is not None,
        "is_resolution_inferred": False,
        "is_first_contact_resolution": untouched if handled_at is not None else None,
        "is_one_touch": is_closed and c.humans_after == 1 if handled_at is not None else None,
        "event_count": len(c.events),
        "message_count": count["message"],
        "reply_count": count["reply"],
        "bot_reply_count": count[_BOT],
        "automated_reply_count": count[_AUTOMATED],
        "turn_count": len(c.turns),
        "reopen_count": count["reopen"],
        "transfer_count": count["transfer"],
        "escalation_count": count["escalated"],
        "handoff_count": count["handoff"],
        "note_count": count["note"],
        "agent_count": len({e.agent_id for e in c.humans if e.agent_id is not None}),
        "channel_count": len({e.channel for e in c.events}),
        "first_response_seconds": _seconds(head.at, c.response_at),
        "first_reply_seconds": _seconds(head.at, c.reply_at),
        "answer_seconds": _seconds(c.answer_from, c.response_at),
        "resolution_seconds": resolution,
        "handle_seconds": None if resolution is None else resolution + c.wrap_up,
        "engaged_seconds": None if resolution is None else sum(waits) / 1e6 + c.wrap_up,
        "hold_seconds": c.hold / 1e6,
        "wrap_up_seconds": c.wrap_up,
        "csat_score": c.rating.score if c.rating else None,
    }


def turn_row(conversation: dict[str, Any], number: int, turn: Turn) -> dict[str, Any]:
    """One row of `turns`."""
    return {
        "conversation_key": conversation["conversation_key"],
        "started_at": _time(conversation["started_at"]),
        "turn_number": number,
        "account_id": turn.first.account_id,
        "channel": turn.first.channel,
        "turn_started_at": _time(turn.first.at),
        "turn_ended_at": _time(turn.end),
        "bot_replied_at": _time(turn.bot_at),
        "outcome": turn.outcome,
        "agent_id": turn.agent_id,
        "message_count": len(turn.messages),
        "is_responded": turn.is_responded,
        "needs_reply": turn.needs_reply(number),
        "wait_seconds": _seconds(turn.first.at, turn.end) if turn.outcome == "answered" else None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Hours


_HISTOGRAMS = frozenset(
    f"{what}_seconds" for what in ("first_response", "first_reply", "reply", "handle", "resolution")
)


def bucket_of(micros: int) -> int:
    """The histogram bucket of a duration: its exponent and the first six bits of its mantissa."""
    mantissa, exponent = math.frexp(micros)
    return 1 + 64 * (exponent - 1) + int((mantissa * 2 - 1) * 64) if micros else 0


def cells_of(c: Conversation, row: dict[str, Any]) -> Iterable[tuple[Cell, Counts]]:
    """What one conversation adds to the statistics: by basis, hour, account and channel; sums in millionths.

    A bin of a histogram is counted under its name and its bucket.
    """
    cells: dict[Cell, Counts] = defaultdict(lambda: defaultdict(int))
    account = "" if row["account_id"] is None else row["account_id"]
    channel, opened = row["channel"], cells["opened", row["opened_at"] // HOUR, account, row["channel"]]

    def at(time_: int, own_channel: str = channel) -> Counts:
        return cells["activity", time_ // HOUR, account, own_channel]

    def add(time_: int | None, names: Iterable[str], own_channel: str = channel) -> None:
        if time_ is not None:
            for cell in (at(time_, own_channel), opened):
                for name in names:
                    cell[name] += 1

    def add_seconds(time_: int | None, name: str, value: float | None, own_channel: str = channel) -> None:
        if time_ is not None and value is not None:
            micros = round(value * 1e6)
            for cell in (at(time_, own_channel), opened):
                cell[f"sum_{name}"] += micros
                if name in _HISTOGRAMS:
                    cell[f"{name[:-8]}_histogram {bucket_of(micros)}"] += 1

    for event in c.events:
        if event.kind in ("reply", _BOT):
            add(event.at, ("reply_count" if event.kind == "reply" else "bot_reply_count",), event.channel)
    for number, turn in enumerate(c.turns, 1):
        names = ["message_count"]
        names += ["needs_reply_message_count"] * turn.needs_reply(number)
        names += ["responded_message_count"] * turn.is_responded
        names += ["answered_message_count"] * (turn.outcome == "answered")
        for message in turn.messages:
            add(message.at, names, message.channel)
        if turn.outcome == "answered":
            add(turn.end, ("answered_turn_count",), turn.first.channel)
            add_seconds(turn.end, "reply_seconds", _seconds(turn.first.at, turn.end), turn.first.channel)
        for moment, change in turn.changes:
            at(moment, turn.first.channel)["waiting_in_count" if change > 0 else "waiting_out_count"] += 1
    if row["is_proactive"]:
        add(row["opened_at"], ("proactive_count",))
    if c.first_message is None:
        return cells.items()
    for moment, change in c.moves:
        at(moment)["backlog_in_count" if change > 0 else "backlog_out_count"] += 1
    is_resolvable, is_resolved = c.state != "dismissed", c.state == "resolved"
    add(row["opened_at"], ["conversation_count"] + ["resolvable_count"] * is_resolvable)
    add(row["opened_at"], ["resolvable_resolved_count"] * is_resolved)
    for name in ("first_response", "first_reply"):
        add(row[f"{name}_at"], (f"{name}_count",))
        add_seconds(row[f"{name}_at"], f"{name}_seconds", row[f"{name}_seconds"])
    if row["answer_seconds"] is not None:
        add(row["first_response_at"], ("answer_count",))
        add_seconds(row["first_response_at"], "answer_seconds", row["answer_seconds"])
    add(row["resolved_at"], ("resolved_count",))
    for name in ("handle", "engaged", "hold", "resolution"):
        add_seconds(row["resolved_at"], f"{name}_seconds", row[f"{name}_seconds"])
    handled = {
        "handled_count": row["is_handled"],
        "first_contact_resolution_count": row["is_first_contact_resolution"],
        "one_touch_count": row["is_one_touch"],
        "reopened_count": row["reopen_count"] > 0,
        "transferred_count": row["transfer_count"] > 0,
        "escalated_count": row["escalation_count"] > 0,
    }
    add(row["handled_at"], [name for name, holds in handled.items() if holds])
    if c.rating is not None:
        add(row["rated_at"], ["rating_count"] + ["satisfied_count"] * (row["csat_score"] >= 4))
        add_seconds(row["rated_at"], "csat", row["csat_score"])
    return cells.items()


class AddCountsCombineFn(beam.CombineFn):
    """Adds counts up by name."""

    def create_accumulator(self) -> Counts:
        """Nothing."""
        return {}

    def add_input(self, accumulator: Counts, element: Counts) -> Counts:
        """One more."""
        for name, value in element.items():
            accumulator[name] = accumulator.get(name, 0) + value
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        """All together."""
        total: Counts = {}
        for accumulator in accumulators:
            self.add_input(total, accumulator)
        return total

    def extract_output(self, accumulator: Counts) -> Counts:
        """The sums."""
        return accumulator


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def windows_of(cell: Cell) -> Iterator[Window]:
    """The day, week and month of an hour, each by its start."""
    basis, hour, account, channel = cell
    local = datetime.fromtimestamp(hour * 3600, TIMEZONE)
    day = local.replace(hour=0, fold=0)
    starts = {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}
    for grain, start in starts.items():
        yield basis, grain, int(start.timestamp()) * 1_000_000, account, channel


def as_window(cell: Cell) -> Window:
    """An hour as a window."""
    basis, hour, account, channel = cell
    return basis, "hour", hour * HOUR, account, channel


def _histograms(counts: Counts) -> dict[str, list[tuple[int, int]]]:
    """Bins by the name of their histogram, ascending."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key, count in counts.items():
        name, _, bucket = key.partition(" ")
        if bucket:
            found[name].append((int(bucket), count))
    return defaultdict(list, {name: sorted(bins) for name, bins in found.items()})


def _percentile(bins: list[tuple[int, int]], percent: int) -> float | None:
    """The middle of the bucket of the value with this rank, seconds."""
    rank = -(-sum(count for _, count in bins) * percent // 100)
    for bucket, count in bins:
        rank -= count
        if rank <= 0:
            exponent, mantissa = divmod(bucket - 1, 64)
            return math.ldexp(1 + (mantissa + 0.5) / 64, exponent) / 1e6 if bucket else 0.0
    return None


def _key_of(window: Window) -> dict[str, Any]:
    basis, grain, start, account, channel = window
    return {
        "basis": basis,
        "grain": grain,
        "window_start": start,
        "account_id": account or None,
        "channel": channel,
    }


def statistics_row(window: Window, counts: Counts) -> str:
    """One line of kpi_statistics.ndjson; sums in millionths."""
    from transforms.definitions import STATISTICS

    row, histograms = _key_of(window), _histograms(counts)
    for statistic in STATISTICS:
        name = statistic.name
        row[name] = histograms[name] if statistic.kind == "histogram" else counts.get(name, 0)
    return json.dumps(row)


def kpi_row(window: Window, counts: Counts) -> str:
    """One line of kpis.ndjson."""
    from transforms.definitions import KPIS

    row, histograms = _key_of(window), _histograms(counts)
    for kpi in KPIS:
        above, below = counts.get(kpi.numerator, 0), counts.get(kpi.denominator or "", 0)
        if kpi.kind == "count":
            row[kpi.name] = above
        elif kpi.kind == "change":
            row[kpi.name] = above - below if window[0] == "activity" else None
        elif kpi.quantile is not None:
            row[kpi.name] = _percentile(histograms[kpi.numerator], round(kpi.quantile * 100))
        elif kpi.kind != "running":
            total = above / 1e6 if kpi.numerator.startswith("sum_") else float(above)
            row[kpi.name] = total / below if below else None
    return json.dumps(row)


def _latest(times: Iterable[int]) -> int:
    return max(times, default=0)


def run_rows(inputs: list[str], output: Path) -> dict[str, Any]:
    """Makes conversations, turns (Parquet), kpi_statistics and kpis (NDJSON) of event files, and care.duckdb of them.

    Args:
      inputs: Parquet files with the input columns of the contract.
      output: folder, made where it is missing.

    Returns:
      seconds and cpu_seconds (user and system).
    """
    from transforms.tables import CONVERSATIONS, TURNS

    output.mkdir(parents=True, exist_ok=True)
    before, started = os.times(), time.perf_counter()
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        rows = pipeline | "Files" >> beam.Create(inputs) | "Read" >> ReadAllFromParquet()
        keyed = rows | "KeyEvents" >> beam.ParDo(KeyEventsFn()).with_outputs("dead_letters", main="events")
        as_of = keyed.events | "Times" >> beam.Map(lambda item: item[1].at) | "Latest" >> beam.CombineGlobally(_latest)
        grouped = keyed.events | "ByConversation" >> beam.GroupByKey()
        paired = grouped | "Pair" >> beam.ParDo(PairFn(), AsSingleton(as_of)).with_outputs(
            "turns", "cells", main="conversations"
        )
        hours = paired.cells | "AddHours" >> beam.CombinePerKey(AddCountsCombineFn())
        reasons = keyed.dead_letters | "CountLetters" >> beam.combiners.Count.PerElement()

        for table, found in ((CONVERSATIONS, paired.conversations), (TURNS, paired.turns)):
            schema = pa.schema([field.remove_metadata() for field in table.schema])
            target = str(output / table.name)
            _ = found | f"Write{table.name}" >> WriteToParquet(
                target, schema, codec="zstd", file_name_suffix=".parquet"
            )
        larger = hours | "Windows" >> beam.FlatMap(lambda item: [(window, item[1]) for window in windows_of(item[0])])
        added = larger | "AddWindows" >> beam.CombinePerKey(AddCountsCombineFn())
        each = hours | "Hours" >> beam.MapTuple(lambda cell, counts: (as_window(cell), counts))
        windows = (each, added) | beam.Flatten()
        for table, row_of in (("kpi_statistics", statistics_row), ("kpis", kpi_row)):
            lines = windows | f"Rows of {table}" >> beam.MapTuple(row_of)
            _ = lines | f"Write{table}" >> beam.io.WriteToText(str(output / table), ".ndjson")
        _ = reasons | "WriteLetters" >> beam.io.WriteToText(str(output / "dead_letters"), ".txt")
    with duckdb.connect(str(output / "care.duckdb")) as warehouse:
        for table in ("conversations", "turns"):
            warehouse.execute(f"CREATE TABLE {table} AS FROM read_parquet('{output}/{table}-*.parquet')")
        for table in ("kpi_statistics", "kpis"):
            warehouse.execute(f"CREATE TABLE {table} AS FROM read_json('{output}/{table}-*.ndjson')")
    seconds, after = time.perf_counter() - started, os.times()
    return {"seconds": seconds, "cpu_seconds": math.fsum((after.user, after.system, -before.user, -before.system))}


if __name__ == "__main__":
    # Beam pickles what is defined in __main__ by value, so the pipeline is run from the module of the same file.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import bench_rows

    result = bench_rows.run_rows(sorted(str(p) for p in Path(sys.argv[1]).glob("*.parquet")), Path(sys.argv[2]))
    print(f"seconds: {result['seconds']:.2f}")
    print(f"CPU seconds: {result['cpu_seconds']:.2f}")
