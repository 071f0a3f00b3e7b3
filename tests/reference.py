"""The contract once more, small, slow and obviously right: the oracle that every faster way is compared with.

Plain Python, one event after the other, exact integers; it shares nothing with the kernels but the `Settings` type.
Every rule is a step of its own with its sentence beside it. Times are whole microseconds since the epoch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from transforms.settings import ChannelSettings, Settings

Row = dict[str, Any]

TIE_ORDER = (
    "message reopened handoff assigned escalated resumed reply held note wrap_up dismissed resolved rating".split()
)
COLUMNS = (
    "event_id event_type occurred_at channel account_id conversation_id customer_id author_type agent_id team_id "
    "is_automated topic subtopic priority language quick_reply_id sentiment score duration_seconds text"
).split()
CONTENT = [column for column in COLUMNS if column != "text"]
REQUIRED = ("event_id", "event_type", "occurred_at", "channel")
AUTHOR_TYPES = ("customer", "agent", "bot", "system")
END_OF_TIME = 4_133_980_800_000_000
RANGES = {"sentiment": (-1.0, 1.0), "score": (1.0, 5.0), "duration_seconds": (0.0, END_OF_TIME / 1e6)}
LATEST_OF_CONVERSATION = ("topic", "subtopic", "priority", "language")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR = 3_600_000_000

KPI_COLUMNS = (
    "basis grain window_start window_end account_id channel is_complete message_count reply_count bot_reply_count "
    "conversation_count proactive_count avg_first_response_seconds p50_first_response_seconds "
    "p90_first_response_seconds p95_first_response_seconds avg_first_reply_seconds p50_first_reply_seconds "
    "avg_reply_seconds p50_reply_seconds p90_reply_seconds p95_reply_seconds avg_answer_seconds avg_handle_seconds "
    "p50_handle_seconds p90_handle_seconds avg_engaged_seconds avg_hold_seconds avg_resolution_seconds "
    "p50_resolution_seconds p90_resolution_seconds first_contact_resolution_rate one_touch_rate response_rate "
    "human_response_rate resolution_rate reopen_rate transfer_rate escalation_rate backlog_count waiting_count "
    "avg_csat csat_rate rating_count backlog_change waiting_change"
).split()


@dataclass
class Result:
    """What a batch run must give.

    Attributes:
      conversations: rows of the table, contract columns.
      turns: rows of the table.
      kpis: rows of the table, every column present (None where null), running sums included.
      statistics: rows of kpi_statistics: counts and sums (seconds, score) as numbers, a histogram as its sorted values.
      counts: rows read and what became of them, by the names of a golden case's counts.json.
      dead_letters: (line number from 1, reason, column or None), by line.
      paths: how often each noteworthy rule was used; says whether a test input is worth its name.
    """

    conversations: list[Row] = field(default_factory=list)
    turns: list[Row] = field(default_factory=list)
    kpis: list[Row] = field(default_factory=list)
    statistics: list[Row] = field(default_factory=list)
    counts: Row = field(default_factory=dict)
    dead_letters: list[tuple[int, str, str | None]] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)

    @property
    def tables(self) -> dict[str, list[Row]]:
        """The three published tables by name."""
        return {"conversations": self.conversations, "turns": self.turns, "kpis": self.kpis}


# ---------------------------------------------------------------------------------------------------------------------
# Reading a row


class Refused(Exception):
    """A row that can't be used: its reason and column."""

    def __init__(self, reason: str, column: str | None = None) -> None:
        """Keeps both."""
        super().__init__(reason, column)
        self.reason, self.column = reason, column


class WrittenFloat(float):
    """A number of the input that remembers how it was written, so that a time loses nothing to binary rounding."""

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        """Reads it as a double, and keeps the text."""
        number = super().__new__(cls, written)
        number.written = written
        return number


def parse(line: bytes) -> Row | None:
    """Reads one raw NDJSON line.

    Args:
      line: bytes of the line.

    Returns:
      A valid event (every column of the contract but text; occurred_at in microseconds), or None for a blank line.

    Raises:
      Refused: where the row is a dead letter.
    """
    # Blank lines are no rows.
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode("utf-8"), parse_float=WrittenFloat)
        # A lone surrogate is no text that UTF-8 can carry.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise Refused("unreadable") from None
    if not isinstance(row, dict):
        raise Refused("unreadable")
    return parse_row(row)


def parse_row(row: Row) -> Row:
    """Reads one row of JSON values; the reason is that of the first faulty column in the table's order.

    Args:
      row: column name -> JSON value; columns that are not in it are null, unknown ones are ignored.

    Returns:
      A valid event, as of `parse`.

    Raises:
      Refused: where the row is a dead letter.
    """
    event: Row = {}
    for column in COLUMNS:
        event[column] = check(column, row.get(column), event)
    del event["text"]
    return event


def check(column: str, value: Any, event: Row) -> Any:
    """One value as parsed; `event` holds the columns before it."""
    # Empty text is null, in every column.
    if isinstance(value, str) and value == "":
        value = None
    if value is None:
        # customer_id is required where conversation_id is null; score for rating; duration_seconds for wrap_up.
        required = (
            column in REQUIRED
            or (column == "customer_id" and event["conversation_id"] is None)
            or (column == "score" and event["event_type"] == "rating")
            or (column == "duration_seconds" and event["event_type"] == "wrap_up")
        )
        if required:
            raise Refused("missing", column)
        return None
    if column == "occurred_at":
        return check_time(value)
    if column == "is_automated":
        if not isinstance(value, bool):
            raise Refused("wrong_type", column)
        return value
    if column in RANGES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused("wrong_type", column)
        low, high = RANGES[column]
        # out_of_range: also NaN and infinity; checked on every event type.
        if not low <= value <= high:
            raise Refused("out_of_range", column)
        return float(value)
    # An integer where text is due is taken as text; any other type is wrong.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused("wrong_type", column)
    text = str(value)
    if column == "event_type" and text not in TIE_ORDER:
        raise Refused("unknown_event_type", column)
    if column == "author_type":
        if text not in AUTHOR_TYPES:
            raise Refused("unknown_author_type", column)
        # Only `message`: customer; `reply`: agent, bot, system.
        if event["event_type"] == "message" and text != "customer":
            raise Refused("author_type_not_allowed", column)
        if event["event_type"] == "reply" and text == "customer":
            raise Refused("author_type_not_allowed", column)
    return text


ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(?:Z|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII)


def check_time(value: Any) -> int:
    """occurred_at in microseconds: ISO 8601 with an offset or Z, or epoch milliseconds as a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Refused("wrong_type", "occurred_at")
    if isinstance(value, str):
        match = ISO.fullmatch(value)
        if not match:
            raise Refused("bad_time", "occurred_at")
        day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
        try:
            whole = datetime.fromisoformat(day).replace(
                hour=int(hour), minute=int(minute), second=int(second or 0), tzinfo=UTC
            )
        except ValueError:
            raise Refused("bad_time", "occurred_at") from None
        if int(offset_hour or 0) > 23 or int(offset_minute or 0) > 59:
            raise Refused("bad_time", "occurred_at")
        # Finer than 1 us is cut off.
        micros = (whole - EPOCH) // MICROSECOND + int(((fraction or "") + "000000")[:6])
        offset = (int(offset_hour or 0) * 60 + int(offset_minute or 0)) * 60_000_000
        micros += offset if sign == "-" else -offset
    else:
        if not -1e18 < value < 1e18:
            raise Refused("out_of_range", "occurred_at")
        written = value.written if isinstance(value, WrittenFloat) else value
        micros = math.floor(Fraction(written) * 1000)
    # 1970-01-01 up to 2101-01-01.
    if not 0 <= micros < END_OF_TIME:
        raise Refused("out_of_range", "occurred_at")
    return micros


# ---------------------------------------------------------------------------------------------------------------------
# Keys, duplicates, order


def key_of(event: Row) -> tuple[str | None, ...]:
    """(account_id, conversation_id) where conversation_id is given, else (account_id, channel, customer_id)."""
    if event["conversation_id"] is not None:
        return event["account_id"], event["conversation_id"]
    return event["account_id"], event["channel"], event["customer_id"]


def content_of(event: Row) -> tuple[Any, ...]:
    """All columns but text, as parsed, before defaults: null is not false."""
    return tuple(event[column] for column in CONTENT)


def content_rank(event: Row) -> tuple[Any, ...]:
    """(occurred_at, then the other columns in the table's order; null first, false before true, text by its bytes)."""

    def rank(value: Any) -> tuple[Any, ...]:
        if value is None:
            return (0,)
        return 1, value.encode("utf-8") if isinstance(value, str) else value

    return event["occurred_at"], *(rank(event[column]) for column in CONTENT if column != "occurred_at")


def order_of(event: Row) -> tuple[int, int, bytes]:
    """occurred_at, then the order of the types that breaks a tie, then event_id, by bytes."""
    return event["occurred_at"], TIE_ORDER.index(event["event_type"]), event["event_id"].encode("utf-8")


def without_duplicates(events: Iterable[tuple[int, Row]], result: Result) -> list[Row]:
    """One event of each event_id in a conversation key; the rest are exact duplicates or dead letters."""
    copies: dict[Any, list[tuple[int, Row]]] = defaultdict(list)
    for line, event in events:
        copies[key_of(event), event["event_id"]].append((line, event))
    kept = []
    for group in copies.values():
        # Where contents differ, the kept one is the smallest.
        best = min((event for _, event in group), key=content_rank)
        kept.append(best)
        same = [line for line, event in group if content_of(event) == content_of(best)]
        # Copies with the same content are exact duplicates, dropped and counted ...
        result.counts["exact_duplicates"] += len(same) - 1
        # ... and every row that differs from the kept one is a dead letter.
        result.dead_letters += [(line, "conflicting_duplicate", None) for line, _ in group if line not in same]
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# The state machine


@dataclass
class Turn:
    """A run of customer messages with no human reply between them; it waits from its first message."""

    number: int
    messages: list[Row]
    ended_at: int | None = None
    bot_replied_at: int | None = None
    outcome: str = "waiting"
    agent_id: str | None = None
    is_due: bool = False
    is_handed_off: bool = False
    moves: list[tuple[int, int]] = field(default_factory=list)

    @property
    def started_at(self) -> int:
        """Its first message."""
        return int(self.messages[0]["occurred_at"])

    @property
    def channel(self) -> str:
        """The channel of its first message."""
        return str(self.messages[0]["channel"])

    @property
    def is_responded(self) -> bool:
        """Answered, or a bot replied."""
        return self.outcome == "answered" or self.bot_replied_at is not None

    @property
    def needs_reply(self) -> bool:
        """Responded, or not (outcome dismissed, or outcome resolved in a turn after the first)."""
        return self.is_responded or not (
            self.outcome == "dismissed" or (self.outcome == "resolved" and self.number > 1)
        )

    def set_due(self, due: bool, at: int) -> None:
        """Becomes due, or is due no more."""
        if due != self.is_due:
            self.is_due = due
            self.moves.append((at, 1 if due else -1))


class Conversation:
    """The events of one group, applied in order; a group without any message or reply ends up as no conversation."""

    def __init__(self, key: tuple[str | None, ...], settings: Settings, paths: Counter[str]) -> None:
        """Open at first, nothing waiting."""
        self.key = key
        self.is_keyed = len(key) == 2
        self.settings = settings
        self.paths = paths
        self.last_of_group: Row | None = None
        self.events: list[Row] = []
        self.strays: list[Row] = []
        self.is_conversation = False
        self.latest_life_cycle: str | None = None
        self.last_spoken_at: int | None = None
        self.state = "open"
        self.is_pending = False
        self.resolved_at: int | None = None
        self.first_resolved_at: int | None = None
        self.is_inferred = False
        self.replied_since_open = False
        self.replied_after_message_since_open = False
        self.first_message: Row | None = None
        self.turns: list[Turn] = []
        self.waiting: Turn | None = None
        self.human_replies: list[Row] = []
        self.human_replies_after_message: list[Row] = []
        self.bot_replies: list[Row] = []
        self.first_reply_at: int | None = None
        self.answer_from: int | None = None
        self.is_proactive = False
        self.held_at: int | None = None
        self.hold = 0
        self.wrap_ups: list[float] = []
        self.rating: Row | None = None
        self.known: dict[str, str] = {}
        self.number: Counter[str] = Counter()
        self.backlog_moves: list[tuple[int, int]] = []
        self.next_started_at: int | None = None

    # -- where it ends ------------------------------------------------------------------------------------------------

    def silence_limit(self) -> int:
        """How long after its latest event the next one still belongs to it."""
        assert self.last_of_group is not None
        # Between two neighbouring events of a key, all settings are those of the earlier one's channel.
        s = self.settings.of_channel(self.last_of_group["channel"])
        # max_open where the key has a conversation_id, split_threads and infer_resolution are false, has_life_cycle is
        # true, and the conversation's latest resolved, dismissed or reopened so far is a reopened, or it has none yet.
        if (
            self.is_keyed
            and not s.split_threads
            and not s.infer_resolution
            and s.has_life_cycle
            and self.latest_life_cycle in (None, "reopened")
        ):
            return s.max_open
        return s.max_idle

    def is_over_before(self, event: Row) -> bool:
        """Whether `event` begins a new conversation."""
        assert self.last_of_group is not None
        at, s = event["occurred_at"], self.settings.of_channel(self.last_of_group["channel"])
        # 1. An event more than the silence limit after the one before it begins a new conversation.
        silence, limit = at - self.last_of_group["occurred_at"], self.silence_limit()
        self.note_edge("silence limit", silence, limit)
        if silence > limit:
            self.paths["begins after the silence limit"] += 1
            return True
        # 2. Where there is no conversation_id, or split_threads is set: a message while no turn is due, or a reply that
        # is not automated while no turn is waiting, also begins one ...
        if self.is_keyed and not s.split_threads:
            return False
        kind = kind_of(event)
        if kind not in SPOKEN:
            return False
        # ... where it comes more than gap after the conversation's last message or reply that is not automated (where
        # it has none: after its first event, stray ones apart).
        since = self.last_spoken_at
        if since is None and self.events:
            since = self.events[0]["occurred_at"]
        if since is None:
            return False
        self.note_edge("gap", at - since, s.gap)
        if at - since <= s.gap:
            return False
        if kind == "message":
            begins = self.waiting is None or not self.waiting.is_due
        else:
            begins = self.waiting is None
        self.paths["begins after the gap" if begins else "beyond the gap but still waiting"] += 1
        return begins

    def note_edge(self, what: str, silence: int, limit: int) -> None:
        """Counts silences on either side of a limit."""
        if silence == limit:
            self.paths[f"exactly at the {what}"] += 1
        if silence == limit + 1:
            self.paths[f"1 us beyond the {what}"] += 1

    # -- one event ----------------------------------------------------------------------------------------------------

    def apply(self, event: Row) -> None:
        """One event of this conversation, in order."""
        if self.last_of_group is not None:
            self.infer_resolution(until=event["occurred_at"])
        self.last_of_group = event
        kind = kind_of(event)
        # Ratings and wrap_ups before the first message or reply of their conversation are stray (they belong to an
        # older one that is gone).
        if kind in ("rating", "wrap_up") and not self.is_conversation:
            self.strays.append(event)
            return
        self.events.append(event)
        self.is_conversation = self.is_conversation or event["event_type"] in ("message", "reply")
        if kind in ("resolved", "dismissed", "reopened"):
            self.latest_life_cycle = kind
        getattr(self, f"on_{kind}")(event, event["occurred_at"])
        if kind in SPOKEN:
            self.last_spoken_at = event["occurred_at"]

    def infer_resolution(self, until: int) -> None:
        """Where more than gap passes without an event, a conversation that was answered counts as resolved."""
        assert self.last_of_group is not None
        s = self.settings.of_channel(self.last_of_group["channel"])
        at = self.last_of_group["occurred_at"]
        # With infer_resolution: where more than gap passes without an event, the state is open, no turn is waiting and
        # there was a human reply since the first event or the last move to open, the conversation moves to resolved at
        # its last event before the silence.
        if s.infer_resolution and self.state == "open" and self.waiting is None and self.replied_since_open:
            self.note_edge("gap of an inference", until - at, s.gap)
            if until - at > s.gap:
                self.paths["inferred"] += 1
                self.resolve_now(at, inferred=True)
                self.leave_open("resolved", at)

    def on_message(self, event: Row, at: int) -> None:
        """State open (from resolved, unless it is the first message: a pending reopening); joins or begins a turn."""
        is_first = self.first_message is None
        if is_first:
            self.first_message = event
            if self.state == "resolved":
                self.paths["first message after resolved"] += 1
        elif self.state == "resolved":
            self.is_pending = True
            self.paths["pending reopening"] += 1
        if self.state != "open":
            self.move_to_open(at)
        elif is_first:
            # Open, from their first message on.
            self.backlog_moves.append((at, 1))
        # Joins the waiting turn, or begins one.
        if self.waiting is None:
            self.waiting = Turn(len(self.turns) + 1, [])
            self.turns.append(self.waiting)
        elif not self.waiting.is_due:
            self.paths["due again"] += 1
        self.waiting.messages.append(event)
        # Due from a message until a bot reply (a further message makes it due again).
        self.waiting.set_due(True, at)

    def on_human(self, event: Row, at: int) -> None:
        """Ends the waiting turn: answered, by this agent. Confirms a pending reopening. Does not change the state."""
        self.end_turn("answered", at, event["agent_id"])
        if self.is_pending:
            self.confirm("human reply")
        self.replied_since_open = True
        self.human_replies.append(event)
        if self.first_message is not None:
            if not self.human_replies_after_message:
                # The last `assigned` with an agent before the response in order.
                assigned = [e for e in self.events if e["event_type"] == "assigned" and e["agent_id"] is not None]
                if assigned:
                    self.answer_from = max(self.first_message["occurred_at"], assigned[-1]["occurred_at"])
            self.human_replies_after_message.append(event)
            self.replied_after_message_since_open = True
            if self.first_reply_at is None:
                self.first_reply_at = at
        else:
            self.is_proactive = True

    def on_bot(self, event: Row, at: int) -> None:
        """The first one in a waiting turn is its bot_replied_at; the turn goes on waiting for a human."""
        self.bot_replies.append(event)
        if self.first_message is None:
            self.is_proactive = True
        elif self.first_reply_at is None:
            self.first_reply_at = at
        if self.waiting is not None:
            if self.waiting.bot_replied_at is None:
                self.waiting.bot_replied_at = at
            # Due from a handoff until it ends, whatever a bot says.
            if self.waiting.is_handed_off:
                self.paths["bot reply after a handoff"] += 1
            else:
                self.waiting.set_due(False, at)

    def on_automated(self, event: Row, at: int) -> None:
        """automated_reply_count + 1, nothing else."""
        self.number["automated_reply"] += 1
        # is_proactive: a reply of any kind came before the first message.
        if self.first_message is None:
            self.is_proactive = True

    def on_reopened(self, event: Row, at: int) -> None:
        """From resolved: state open, reopen_count + 1. In a pending reopening: confirms it. From dismissed: open."""
        if self.state == "resolved":
            self.number["reopen"] += 1
            self.paths["reopened from resolved"] += 1
            self.move_to_open(at)
        elif self.state == "dismissed":
            self.paths["reopened from dismissed"] += 1
            self.move_to_open(at)
        elif self.is_pending:
            self.confirm("reopened")
        # Else nothing.

    def on_resolved(self, event: Row, at: int) -> None:
        """Resolves an open or dismissed conversation; an explicit one always replaces an inferred one."""
        if self.state in ("open", "dismissed"):
            # The waiting turn ends with outcome resolved, a running hold ends, state resolved.
            self.end_turn("resolved", at)
            if not self.is_pending:
                self.resolve_now(at)
            elif self.is_inferred:
                # An explicit one always replaces an inferred one in resolved_at (pending reopening or not).
                self.paths["explicit replaces inferred, pending"] += 1
                self.resolved_at, self.is_inferred = at, False
            else:
                # If a reopening was still pending, it never was: resolved_at stays the earlier one.
                self.paths["pending, resolved"] += 1
            self.is_pending = False
            self.leave_open("resolved", at)
        elif self.is_inferred:
            # If resolved already: nothing; but an explicit one replaces an inferred one; first_resolved_at, holds and
            # moves stay as they were.
            self.paths["explicit replaces inferred"] += 1
            self.resolved_at, self.is_inferred = at, False

    def on_dismissed(self, event: Row, at: int) -> None:
        """Marked done: needs no reply. If not open: nothing."""
        if self.state != "open":
            self.paths["dismissed while not open"] += 1
            return
        # The waiting turn ends with outcome dismissed, a running hold ends.
        self.end_turn("dismissed", at)
        if self.is_pending:
            # Resolved with the earlier resolved_at where a reopening was pending. It replaces no inferred resolution.
            self.paths["pending, dismissed"] += 1
            self.is_pending = False
            self.leave_open("resolved", at)
        elif self.replied_after_message_since_open:
            # Resolved now where a human reply came after the first message and since the last move to open.
            self.paths["dismissed resolves"] += 1
            self.resolve_now(at)
            self.leave_open("resolved", at)
        else:
            self.leave_open("dismissed", at)

    def on_assigned(self, event: Row, at: int) -> None:
        """A change from the last known agent, or from the last known team, is one transfer. Null tells nothing."""
        is_transfer = False
        for column in ("agent_id", "team_id"):
            if event[column] is not None:
                is_transfer |= self.known.get(column, event[column]) != event[column]
                self.known[column] = event[column]
        self.number["transfer"] += is_transfer

    def on_escalated(self, event: Row, at: int) -> None:
        """Counted."""
        self.number["escalation"] += 1

    def on_handoff(self, event: Row, at: int) -> None:
        """Counted; from it on a waiting turn is due until it ends."""
        self.number["handoff"] += 1
        if self.waiting is not None:
            self.paths["handoff in a turn"] += 1
            self.waiting.is_handed_off = True
            self.waiting.set_due(True, at)

    def on_note(self, event: Row, at: int) -> None:
        """Counted."""
        self.number["note"] += 1

    def on_held(self, event: Row, at: int) -> None:
        """In state open, a hold runs from here. In a hold or outside open: nothing."""
        if self.state == "open" and self.held_at is None:
            self.held_at = at

    def on_resumed(self, event: Row, at: int) -> None:
        """Ends a hold."""
        self.end_hold(at)

    def on_wrap_up(self, event: Row, at: int) -> None:
        """wrap_up_seconds + duration_seconds."""
        self.wrap_ups.append(event["duration_seconds"])

    def on_rating(self, event: Row, at: int) -> None:
        """The last one is csat_score."""
        self.rating = event

    # -- steps that several events share ------------------------------------------------------------------------------

    def move_to_open(self, at: int) -> None:
        """State open; what was replied before counts no more."""
        self.state = "open"
        self.replied_since_open = self.replied_after_message_since_open = False
        # Moves count from the first message on.
        if self.first_message is not None:
            self.backlog_moves.append((at, 1))

    def leave_open(self, state: str, at: int) -> None:
        """A move out of open (or from dismissed to resolved); a hold ends with it."""
        self.end_hold(at)
        if self.state == "open" and self.first_message is not None:
            self.backlog_moves.append((at, -1))
        self.state = state

    def resolve_now(self, at: int, inferred: bool = False) -> None:
        """A move to resolved that counts."""
        self.resolved_at, self.is_inferred = at, inferred
        # first_resolved_at = the first move to resolved, also one before the first message.
        if self.first_resolved_at is None:
            self.first_resolved_at = at

    def confirm(self, by: str) -> None:
        """A pending reopening was one."""
        self.is_pending = False
        self.number["reopen"] += 1
        self.paths[f"pending, confirmed by {by}"] += 1

    def end_turn(self, outcome: str, at: int, agent_id: str | None = None) -> None:
        """Ends the waiting turn, if there is one."""
        if self.waiting is not None:
            self.waiting.outcome, self.waiting.ended_at, self.waiting.agent_id = outcome, at, agent_id
            self.waiting.set_due(False, at)
            self.waiting = None

    def end_hold(self, at: int) -> None:
        """Ends a running hold; one that never ends is not counted."""
        if self.held_at is not None:
            self.hold += at - self.held_at
            self.held_at = None
            self.paths["hold"] += 1

    # -- what is said of the whole ------------------------------------------------------------------------------------

    @property
    def started_at(self) -> int:
        """Its first event."""
        return int(self.events[0]["occurred_at"])

    @property
    def opened_at(self) -> int:
        """First message, else first event."""
        return int((self.first_message or self.events[0])["occurred_at"])

    @property
    def channel(self) -> str:
        """Of the first message, else the first event."""
        return str((self.first_message or self.events[0])["channel"])

    @property
    def account_id(self) -> str | None:
        """Every event of a key has the same account."""
        return self.key[0]

    @property
    def customer_id(self) -> str | None:
        """The first non-null."""
        return next((e["customer_id"] for e in self.events if e["customer_id"] is not None), None)

    @property
    def knows_life_cycle(self) -> bool:
        """Not (has_life_cycle and infer_resolution both false), by the settings of its channel."""
        s: ChannelSettings = self.settings.of_channel(self.channel)
        return s.has_life_cycle or s.infer_resolution

    @property
    def resolved_now_at(self) -> int | None:
        """The last move to resolved that counts, null unless resolved now."""
        return self.resolved_at if self.state == "resolved" else None

    @property
    def is_resolved(self) -> bool:
        """A resolved conversation: with a message, resolved now, not (has_life_cycle, infer_resolution both false)."""
        return self.first_message is not None and self.state == "resolved" and self.knows_life_cycle

    @property
    def handled_at(self) -> int | None:
        """For a conversation with a message: resolved_at, else last human reply after the first message."""
        if self.first_message is None or not self.knows_life_cycle:
            return None
        if self.resolved_now_at is not None:
            return self.resolved_now_at
        if self.human_replies_after_message:
            return int(self.human_replies_after_message[-1]["occurred_at"])
        return None

    @property
    def wrap_up_seconds(self) -> float:
        """Its after-contact work; 0 where there was none."""
        return math.fsum(self.wrap_ups)

    def last_known(self, column: str) -> str | None:
        """The last non-null of the human replies, else of `assigned`."""
        assigned = [e for e in self.events if e["event_type"] == "assigned"]
        for events in (self.human_replies, assigned):
            values = [e[column] for e in events if e[column] is not None]
            if values:
                return str(values[-1])
        return None

    def leaves_at(self, as_of: int) -> int | None:
        """When it leaves backlog and waiting without an event of its own."""
        moments = []
        # One also leaves when the next conversation of its key begins ...
        if self.next_started_at is not None:
            moments.append(self.next_started_at)
        # ... and at last_event_at + its silence limit once as_of is past that.
        over = int(self.events[-1]["occurred_at"]) + self.silence_limit()
        if as_of > over:
            moments.append(over)
        return min(moments) if moments else None

    def leave(self, as_of: int) -> None:
        """Ends what is still open or due when the conversation is over."""
        at = self.leaves_at(as_of)
        if at is None:
            return
        if self.state == "open" and self.first_message is not None:
            self.backlog_moves.append((at, -1))
            self.paths["leaves the backlog by silence or successor"] += 1
        if self.waiting is not None and self.waiting.is_due:
            self.waiting.set_due(False, at)
            self.paths["leaves waiting by silence or successor"] += 1

    def is_repeated(self, others: list[Conversation], repeat_contact: int | None) -> bool:
        """Whether the customer came back within repeat_contact."""
        if repeat_contact is None or self.customer_id is None or self.resolved_now_at is None:
            return False
        # No other conversation of the same account and non-null customer, on any channel, not proactive, with
        # 0 < its opened_at - resolved_at <= repeat_contact.
        for other in others:
            if (
                other is not self
                and not other.is_proactive
                and other.first_message is not None
                and (other.account_id, other.customer_id) == (self.account_id, self.customer_id)
                and 0 < other.opened_at - self.resolved_now_at <= repeat_contact
            ):
                self.paths["repeat contact"] += 1
                return True
        return False

    def row(self, others: list[Conversation]) -> Row:
        """One row of `conversations`."""
        n, resolved_at, handled_at = self.number, self.resolved_now_at, self.handled_at
        first_response = next(iter(self.human_replies_after_message), None)
        first_response_at = first_response["occurred_at"] if first_response else None
        is_handled = handled_at is not None
        resolution = resolved_at - self.opened_at if self.is_resolved and resolved_at is not None else None
        # Waits of its ended turns that began before resolved_at or at it.
        waits = [
            turn.ended_at - turn.started_at
            for turn in self.turns
            if turn.ended_at is not None and resolved_at is not None and turn.started_at <= resolved_at
        ]
        untouched = self.is_resolved and not (n["reopen"] or n["transfer"] or n["escalation"])
        return {
            "conversation_key": json.dumps(self.key, ensure_ascii=False, separators=(",", ":")),
            "started_at": self.started_at,
            "account_id": self.account_id,
            "channel": self.channel,
            "customer_id": self.customer_id,
            "agent_id": self.last_known("agent_id"),
            "team_id": self.last_known("team_id"),
            # As of that moment; the last non-null one wins for the conversation.
            **{
                column: next((e[column] for e in reversed(self.events) if e[column] is not None), None)
                for column in LATEST_OF_CONVERSATION
            },
            "state": self.state,
            "opened_at": self.opened_at,
            "first_response_at": first_response_at,
            "first_reply_at": self.first_reply_at,
            "resolved_at": resolved_at,
            "first_resolved_at": self.first_resolved_at,
            "handled_at": handled_at,
            "rated_at": self.rating["occurred_at"] if self.rating else None,
            "last_event_at": self.events[-1]["occurred_at"],
            # A reply of any kind came before the first message, or there is no message.
            "is_proactive": self.is_proactive or self.first_message is None,
            "is_handled": is_handled,
            "is_resolution_inferred": self.state == "resolved" and self.is_inferred,
            "is_first_contact_resolution": (
                untouched and not self.is_repeated(others, self.settings.repeat_contact) if is_handled else None
            ),
            # Resolved with exactly one human reply after the first message.
            "is_one_touch": self.is_resolved and len(self.human_replies_after_message) == 1 if is_handled else None,
            "event_count": len(self.events),
            "message_count": sum(len(turn.messages) for turn in self.turns),
            "reply_count": len(self.human_replies),
            "bot_reply_count": len(self.bot_replies),
            "automated_reply_count": n["automated_reply"],
            "turn_count": len(self.turns),
            "reopen_count": n["reopen"],
            "transfer_count": n["transfer"],
            "escalation_count": n["escalation"],
            "handoff_count": n["handoff"],
            "note_count": n["note"],
            # Distinct agents with a human reply.
            "agent_count": len({e["agent_id"] for e in self.human_replies} - {None}),
            # Of all events.
            "channel_count": len({e["channel"] for e in self.events}),
            "first_response_seconds": seconds(first_response_at, self.opened_at),
            "first_reply_seconds": seconds(self.first_reply_at, self.opened_at),
            # Null without an assignment.
            "answer_seconds": seconds(first_response_at, self.answer_from),
            "resolution_seconds": None if resolution is None else resolution / 1e6,
            "handle_seconds": None if resolution is None else resolution / 1e6 + self.wrap_up_seconds,
            "engaged_seconds": None if resolution is None else sum(waits) / 1e6 + self.wrap_up_seconds,
            "hold_seconds": self.hold / 1e6,
            "wrap_up_seconds": self.wrap_up_seconds,
            "csat_score": self.rating["score"] if self.rating else None,
        }

    def turn_row(self, turn: Turn) -> Row:
        """One row of `turns`."""
        return {
            "conversation_key": json.dumps(self.key, ensure_ascii=False, separators=(",", ":")),
            "started_at": self.started_at,
            "turn_number": turn.number,
            "account_id": self.account_id,
            "channel": turn.channel,
            "turn_started_at": turn.started_at,
            "turn_ended_at": turn.ended_at,
            "bot_replied_at": turn.bot_replied_at,
            "outcome": turn.outcome,
            "agent_id": turn.agent_id,
            "message_count": len(turn.messages),
            "is_responded": turn.is_responded,
            "needs_reply": turn.needs_reply,
            # Null unless answered.
            "wait_seconds": seconds(turn.ended_at, turn.started_at) if turn.outcome == "answered" else None,
        }


SPOKEN = ("message", "human", "bot")
"""A message, or a reply that is not automated."""


def kind_of(event: Row) -> str:
    """The event's type; a reply by its author: human, bot or automated."""
    if event["event_type"] != "reply":
        return str(event["event_type"])
    # author_type system is automated; null is agent; is_automated null is false.
    if event["is_automated"] or event["author_type"] == "system":
        return "automated"
    return "bot" if event["author_type"] == "bot" else "human"


def seconds(end: int | None, start: int | None) -> float | None:
    """Length in seconds; null where one end is."""
    return None if end is None or start is None else (end - start) / 1e6


def conversations_of_key(
    key: tuple[str | None, ...], events: list[Row], settings: Settings, as_of: int, result: Result
) -> list[Conversation]:
    """Cuts the events of one key into conversations, in order."""
    groups: list[Conversation] = []
    for event in sorted(events, key=order_of):
        if not groups or groups[-1].is_over_before(event):
            groups.append(Conversation(key, settings, result.paths))
        groups[-1].apply(event)
    found: list[Conversation] = []
    for group in groups:
        # A group without any message or reply is no conversation: its events are kept and counted as stray.
        if not group.is_conversation:
            result.counts["stray_events"] += len(group.events) + len(group.strays)
            continue
        result.counts["stray_events"] += len(group.strays)
        group.infer_resolution(until=as_of)
        if found:
            found[-1].next_started_at = group.started_at
        found.append(group)
    for conversation in found:
        conversation.leave(as_of)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Windows


@lru_cache(maxsize=100_000)
def first_instant(zone: str, day: date) -> int:
    """The first instant of a local date, where midnight may be skipped or come twice."""
    tz = ZoneInfo(zone)
    midnight = datetime(day.year, day.month, day.day)

    def instant(fold: int) -> int:
        return (midnight.replace(tzinfo=tz, fold=fold).astimezone(UTC) - EPOCH) // MICROSECOND

    def local(at: int) -> datetime:
        return (EPOCH + at * MICROSECOND).astimezone(tz).replace(tzinfo=None, fold=0)

    first = instant(0)
    if local(first) == midnight:
        return first
    # Midnight was skipped: the first instant is that of the change of clocks, which lies between the two readings.
    before, after = instant(1) - 1, first
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if local(middle) >= midnight else (middle, after)
    return after


@lru_cache(maxsize=100_000)
def windows(zone: str, at: int) -> dict[str, tuple[int, int]]:
    """The window of every grain that an instant falls into: [start, end), microseconds."""
    local = (EPOCH + at * MICROSECOND).astimezone(ZoneInfo(zone))
    offset = (local.utcoffset() or timedelta()) // MICROSECOND
    # Whole local hours at the offset in force.
    hour = (at + offset) // HOUR * HOUR - offset
    # From the first instant of the local date; half-open and without holes, also where the clock goes back over it.
    day = local.date()
    while at >= first_instant(zone, day + timedelta(days=1)):
        day += timedelta(days=1)
    # Week: ISO, Monday.
    monday = day - timedelta(days=day.weekday())
    month = day.replace(day=1)
    next_month = (month + timedelta(days=31)).replace(day=1)
    return {
        "hour": (hour, hour + HOUR),
        "day": (first_instant(zone, day), first_instant(zone, day + timedelta(days=1))),
        "week": (first_instant(zone, monday), first_instant(zone, monday + timedelta(days=7))),
        "month": (first_instant(zone, month), first_instant(zone, next_month)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# KPIs


class Cell:
    """Everything that fell into one window of one account and channel: values by statistic."""

    def __init__(self, end: int) -> None:
        """Nothing fell yet."""
        self.end = end
        self.values: dict[str, list[float]] = defaultdict(list)

    def count(self, name: str) -> int:
        """How many fell."""
        return len(self.values[name])

    def mean(self, name: str) -> float | None:
        """Mean; a zero denominator gives null."""
        return math.fsum(self.values[name]) / len(self.values[name]) if self.values[name] else None

    def percentile(self, percent: int, name: str) -> float | None:
        """Nearest rank: the value whose rank is percent * n / 100, rounded up."""
        ordered = sorted(self.values[name])
        return ordered[(percent * len(ordered) + 99) // 100 - 1] if ordered else None

    def rate(self, numerator: str, denominator: str) -> float | None:
        """Share; a zero denominator gives null."""
        return len(self.values[numerator]) / len(self.values[denominator]) if self.values[denominator] else None


Cells = dict[tuple[str, str, int, str | None, str], Cell]


def add_conversation(cells: Cells, conversation: Conversation, row: Row, zone: str) -> None:
    """Lets every number of one conversation fall where it belongs, on both bases."""
    c = conversation

    def fall_at(basis: str, name: str, value: float, at: int, channel: str) -> None:
        for grain, (start, end) in windows(zone, at).items():
            place = (basis, grain, start, c.account_id, channel)
            cells.setdefault(place, Cell(end)).values[name].append(value)

    def fall(name: str, at: int | None, channel: str, value: float | None = 1) -> None:
        if value is None or at is None:
            return
        # activity: each number falls where it happened.
        fall_at("activity", name, value, at, channel)
        # opened: all of a conversation's numbers fall where it opened, in its channel.
        fall_at("opened", name, value, c.opened_at, c.channel)

    # Message and reply counts use the event's own time and channel; reply_count is human replies.
    for turn in c.turns:
        for message in turn.messages:
            fall("message", message["occurred_at"], message["channel"])
    for reply in c.human_replies:
        fall("reply", reply["occurred_at"], reply["channel"])
    for reply in c.bot_replies:
        fall("bot_reply", reply["occurred_at"], reply["channel"])
    if row["is_proactive"]:
        fall("proactive", c.opened_at, c.channel)
    # Conversations without a message (outreach) count in proactive_count and the reply counts only.
    if c.first_message is None:
        return
    fall("conversation", c.opened_at, c.channel)
    fall("first_response", row["first_response_at"], c.channel, row["first_response_seconds"])
    fall("first_reply", row["first_reply_at"], c.channel, row["first_reply_seconds"])
    fall("answer", row["first_response_at"], c.channel, row["answer_seconds"])
    for turn in c.turns:
        # Reply time: of answered turns; at the turn's end, in the channel of the turn's first message.
        if turn.outcome == "answered":
            fall("reply_time", turn.ended_at, turn.channel, seconds(turn.ended_at, turn.started_at))
        # Response rates: messages in turns that need a reply; at the message's own time and channel.
        for message in turn.messages:
            if turn.needs_reply:
                fall("needs_reply_message", message["occurred_at"], message["channel"])
            if turn.is_responded:
                fall("responded_message", message["occurred_at"], message["channel"])
            if turn.outcome == "answered":
                fall("answered_message", message["occurred_at"], message["channel"])
    if c.is_resolved:
        for name in ("handle", "engaged", "hold", "resolution"):
            fall(name, row["resolved_at"], c.channel, row[f"{name}_seconds"])
    if row["is_handled"]:
        handled = {
            "handled": True,
            "first_contact_resolution": row["is_first_contact_resolution"],
            "one_touch": row["is_one_touch"],
            "reopened": row["reopen_count"] > 0,
            "transferred": row["transfer_count"] > 0,
            "escalated": row["escalation_count"] > 0,
        }
        for name, holds in handled.items():
            if holds:
                fall(name, row["handled_at"], c.channel)
    # Resolution rate: conversations with a message - those dismissed now - those without a known life cycle.
    if c.knows_life_cycle and c.state != "dismissed":
        fall("resolvable", c.opened_at, c.channel)
        if c.state == "resolved":
            fall("resolvable_resolved", c.opened_at, c.channel)
    if c.rating is not None:
        fall("csat", row["rated_at"], c.channel, c.rating["score"])
        # Share with >= 4.
        if c.rating["score"] >= 4:
            fall("satisfied", row["rated_at"], c.channel)
    # Backlog and waiting exist on the activity basis only. Conversations without a known life cycle are no backlog.
    if c.knows_life_cycle:
        for at, change in c.backlog_moves:
            fall_at("activity", "backlog_in" if change > 0 else "backlog_out", 1, at, c.channel)
    for turn in c.turns:
        for at, change in turn.moves:
            fall_at("activity", "waiting_in" if change > 0 else "waiting_out", 1, at, turn.channel)


def kpi_row(place: tuple[str, str, int, str | None, str], cell: Cell, as_of: int) -> Row:
    """One row of `kpis`; the running sums are still to come."""
    basis, grain, start, account_id, channel = place
    row: Row = dict.fromkeys(KPI_COLUMNS)
    row |= {"basis": basis, "grain": grain, "window_start": start, "window_end": cell.end}
    row |= {"account_id": account_id, "channel": channel, "is_complete": as_of >= cell.end}
    for name in ("message", "reply", "bot_reply", "conversation", "proactive"):
        row[f"{name}_count"] = cell.count(name)
    row["rating_count"] = cell.count("csat")
    times = {
        "first_response": ("first_response", (50, 90, 95)),
        "first_reply": ("first_reply", (50,)),
        "reply": ("reply_time", (50, 90, 95)),
        "answer": ("answer", ()),
        "handle": ("handle", (50, 90)),
        "engaged": ("engaged", ()),
        "hold": ("hold", ()),
        "resolution": ("resolution", (50, 90)),
    }
    for name, (values, percents) in times.items():
        row[f"avg_{name}_seconds"] = cell.mean(values)
        for percent in percents:
            row[f"p{percent}_{name}_seconds"] = cell.percentile(percent, values)
    row["first_contact_resolution_rate"] = cell.rate("first_contact_resolution", "handled")
    row["one_touch_rate"] = cell.rate("one_touch", "handled")
    row["reopen_rate"] = cell.rate("reopened", "handled")
    row["transfer_rate"] = cell.rate("transferred", "handled")
    row["escalation_rate"] = cell.rate("escalated", "handled")
    row["response_rate"] = cell.rate("responded_message", "needs_reply_message")
    row["human_response_rate"] = cell.rate("answered_message", "needs_reply_message")
    row["resolution_rate"] = cell.rate("resolvable_resolved", "resolvable")
    row["avg_csat"] = cell.mean("csat")
    row["csat_rate"] = cell.rate("satisfied", "csat")
    if basis == "activity":
        for name in ("backlog", "waiting"):
            row[f"{name}_change"] = cell.count(f"{name}_in") - cell.count(f"{name}_out")
    return row


def statistics_row(place: tuple[str, str, int, str | None, str], cell: Cell) -> Row:
    """One row of `kpi_statistics`; a histogram is the sorted list of its values."""
    basis, grain, start, account_id, channel = place
    row: Row = {"basis": basis, "grain": grain, "window_start": start, "window_end": cell.end}
    row |= {"account_id": account_id, "channel": channel}
    counts = (
        "message reply bot_reply conversation proactive first_response first_reply answer handled "
        "first_contact_resolution one_touch reopened transferred escalated needs_reply_message responded_message "
        "answered_message resolvable resolvable_resolved satisfied backlog_in backlog_out waiting_in waiting_out"
    ).split()
    row |= {f"{name}_count": cell.count(name) for name in counts}
    row |= {"answered_turn_count": cell.count("reply_time"), "resolved_count": cell.count("resolution")}
    row |= {"rating_count": cell.count("csat"), "sum_csat": math.fsum(cell.values["csat"])}
    sums = {name: name for name in "first_response first_reply answer handle engaged hold resolution".split()}
    for name, values in (sums | {"reply": "reply_time"}).items():
        row[f"sum_{name}_seconds"] = math.fsum(cell.values[values])
        if name not in ("answer", "engaged", "hold"):
            row[f"{name}_histogram"] = sorted(cell.values[values])
    return row


def add_running_sums(rows: list[Row]) -> None:
    """backlog_count and waiting_count: running sums over the rows of one grain, account and channel."""
    for name in ("backlog", "waiting"):
        running: Counter[tuple[str, str | None, str]] = Counter()
        for row in sorted(rows, key=lambda row: row["window_start"]):
            if row["basis"] == "activity":
                place = (row["grain"], row["account_id"], row["channel"])
                running[place] += row[f"{name}_change"]
                row[f"{name}_count"] = running[place]


# ---------------------------------------------------------------------------------------------------------------------
# A whole run


def run(lines: list[bytes], settings: Settings) -> Result:
    """A batch run over raw NDJSON lines.

    Args:
      lines: the lines in order, blank and bad ones included, with or without their line ends.
      settings: settings of the run.

    Returns:
      What the run must give.

    Raises:
      ValueError: where as_of is before the latest event kept.
    """
    result = Result()
    valid: list[tuple[int, Row]] = []
    rows_read = 0
    for number, line in enumerate(lines, 1):
        try:
            event = parse(line)
        except Refused as refused:
            rows_read += 1
            result.dead_letters.append((number, refused.reason, refused.column))
            continue
        if event is not None:
            rows_read += 1
            valid.append((number, event))
    return complete(valid, rows_read, settings, result)


def run_events(events: list[Row], settings: Settings) -> Result:
    """A batch run over events that are valid already.

    Args:
      events: column name -> value (text columns str, occurred_at int microseconds, is_automated bool, the others
        float, None or left out for null); duplicates are resolved, the place in this list (from 1) is the line number.
      settings: settings of the run.

    Returns:
      What the run must give.

    Raises:
      ValueError: where as_of is before the latest event kept.
    """
    valid = [(n, {column: event.get(column) for column in CONTENT}) for n, event in enumerate(events, 1)]
    return complete(valid, len(events), settings, Result())


def complete(valid: list[tuple[int, Row]], rows_read: int, settings: Settings, result: Result) -> Result:
    """The run from the valid rows on: (line number, event)."""
    result.counts = {"rows_read": rows_read, "events_kept": 0, "exact_duplicates": 0, "late_events": 0}
    result.counts |= {"dead_letters": 0, "dead_letters_by_reason": {}, "stray_events": 0}
    kept = without_duplicates(valid, result)
    result.dead_letters.sort(key=lambda letter: letter[0])
    # as_of: the latest occurred_at of the events kept, or given and not before it.
    latest = max((event["occurred_at"] for event in kept), default=None)
    as_of = latest if settings.as_of is None else settings.as_of
    if latest is not None and as_of is not None and as_of < latest:
        raise ValueError(f"expected as_of at or after the latest event ({latest}), got {as_of}")
    by_key: dict[tuple[str | None, ...], list[Row]] = defaultdict(list)
    for event in kept:
        by_key[key_of(event)].append(event)
    found: list[Conversation] = []
    for key, events in by_key.items():
        assert as_of is not None
        found += conversations_of_key(key, events, settings, as_of, result)
    cells: Cells = {}
    for conversation in found:
        row = conversation.row(found)
        result.conversations.append(row)
        result.turns += [conversation.turn_row(turn) for turn in conversation.turns]
        add_conversation(cells, conversation, row, settings.timezone)
    for place in sorted(cells, key=lambda p: (p[0], p[1], p[2], p[3] is not None, p[3] or "", p[4])):
        assert as_of is not None
        result.kpis.append(kpi_row(place, cells[place], as_of))
        result.statistics.append(statistics_row(place, cells[place]))
    add_running_sums(result.kpis)
    result.conversations.sort(key=lambda row: (row["conversation_key"], row["started_at"]))
    result.turns.sort(key=lambda row: (row["conversation_key"], row["started_at"], row["turn_number"]))
    result.counts["events_kept"] = len(kept)
    result.counts["dead_letters"] = len(result.dead_letters)
    result.counts["dead_letters_by_reason"] = dict(sorted(Counter(r for _, r, _ in result.dead_letters).items()))
    result.counts |= {"conversations": len(result.conversations), "turns": len(result.turns), "as_of": as_of}
    return result
