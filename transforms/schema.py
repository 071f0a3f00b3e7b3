"""What goes in: the columns of an event, its types, and the words that its values may take.

Every other module takes names, types and codes from here; nothing spells a column's type a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
WORD = pa.dictionary(pa.int32(), pa.string())
"""The Arrow type of text with few distinct values: the batch carries codes."""


@dataclass(frozen=True)
class Column:
    """One column of a table: its name, Arrow type and the sentence that explains it."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = True


EVENT_TYPES = (
    "message",
    "reopened",
    "handoff",
    "assigned",
    "escalated",
    "resumed",
    "reply",
    "held",
    "note",
    "wrap_up",
    "dismissed",
    "resolved",
    "rating",
)
"""Event types in the order that breaks a tie on occurred_at; the code of a type is its place here."""

EVENT_TYPE_CODES = {name: code for code, name in enumerate(EVENT_TYPES)}

MESSAGE, REOPENED, HANDOFF, ASSIGNED, ESCALATED, RESUMED, REPLY = range(7)
HELD, NOTE, WRAP_UP, DISMISSED, RESOLVED, RATING = range(7, 13)

AUTHOR_TYPES = ("customer", "agent", "bot", "system")
"""Author types; the code of one is its place here."""

AUTHOR_TYPE_CODES = {name: code for code, name in enumerate(AUTHOR_TYPES)}
CUSTOMER, AGENT, BOT, SYSTEM = range(4)

REASONS = (
    "unreadable",
    "wrong_type",
    "missing",
    "unknown_event_type",
    "bad_time",
    "out_of_range",
    "unknown_author_type",
    "author_type_not_allowed",
    "conflicting_duplicate",
)
"""Why a row is a dead letter."""

MIN_OCCURRED_AT = 0
MAX_OCCURRED_AT = 4_133_980_800_000_000
"""occurred_at lies in [1970-01-01, 2101-01-01), in microseconds since the epoch."""

MAX_DURATION_SECONDS = (MAX_OCCURRED_AT - MIN_OCCURRED_AT) / 1e6
"""No after-contact work is longer than the whole range of occurred_at; what is longer is out_of_range."""

RAW_LIMIT = 1_000
"""An unreadable line is kept as its first characters, this many."""

EVENT_COLUMNS = (
    Column("event_id", pa.string(), "Unique within its conversation key.", nullable=False),
    Column("event_type", pa.string(), "What happened: " + ", ".join(EVENT_TYPES) + ".", nullable=False),
    Column("occurred_at", TIMESTAMP, "When it happened (event time, UTC).", nullable=False),
    Column("channel", pa.string(), "x, facebook, instagram, whatsapp, webchat, email, phone, …", nullable=False),
    Column("account_id", pa.string(), "The brand's profile, page or number; null is one account."),
    Column("conversation_id", pa.string(), "The platform's own thread id."),
    Column("customer_id", pa.string(), "The customer at the other end; needed where conversation_id is null."),
    Column("author_type", pa.string(), "Who wrote it: " + ", ".join(AUTHOR_TYPES) + "."),
    Column("agent_id", pa.string(), "Who acted; on `assigned` who it goes to."),
    Column("team_id", pa.string(), "The team that acted; on `assigned` the team it goes to."),
    Column("is_automated", pa.bool_(), "On replies: auto-reply, campaign or rule; never stops a clock."),
    Column("topic", pa.string(), "Topic as of that moment."),
    Column("subtopic", pa.string(), "Subtopic as of that moment."),
    Column("priority", pa.string(), "Priority as of that moment."),
    Column("language", pa.string(), "Language as of that moment."),
    Column("quick_reply_id", pa.string(), "Canned answer used, or quick-reply button pressed."),
    Column("sentiment", pa.float64(), "Sentiment of this message, -1 to 1."),
    Column("score", pa.float64(), "Survey answer of a rating, 1 to 5."),
    Column("duration_seconds", pa.float64(), "After-contact work of a wrap_up, seconds, at least 0."),
    Column("text", pa.string(), "What was written; no KPI needs it."),
)
"""The input, in the contract's order of columns. `text` is checked and then dropped."""

PARSED_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_type", pa.uint8(), nullable=False),
        pa.field("occurred_at", TIMESTAMP, nullable=False),
        pa.field("channel", WORD, nullable=False),
        pa.field("account_id", WORD),
        pa.field("conversation_id", WORD),
        pa.field("customer_id", WORD),
        pa.field("author_type", pa.uint8()),
        pa.field("agent_id", WORD),
        pa.field("team_id", WORD),
        pa.field("is_automated", pa.bool_()),
        pa.field("topic", WORD),
        pa.field("subtopic", WORD),
        pa.field("priority", WORD),
        pa.field("language", WORD),
        pa.field("quick_reply_id", WORD),
        pa.field("sentiment", pa.float64()),
        pa.field("score", pa.float64()),
        pa.field("duration_seconds", pa.float64()),
        pa.field("source", WORD, nullable=False),
        pa.field("source_partition", pa.int32()),
        pa.field("source_row", pa.int64(), nullable=False),
    ]
)
"""A valid event as it travels between the steps: values as parsed, before any default, and where it came from.

event_type and author_type are codes (places in EVENT_TYPES and AUTHOR_TYPES); text is left out.
"""

CONTENT_COLUMNS = tuple(column.name for column in EVENT_COLUMNS if column.name != "text")
"""What two copies of an event must share to be exact duplicates, in the order that ranks conflicting ones."""
