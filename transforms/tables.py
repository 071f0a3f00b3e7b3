"""What comes out: every published table with its grain, key, columns, types and sentences."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from transforms.definitions import KPIS, STATISTICS
from transforms.schema import EVENT_COLUMNS, TIMESTAMP, Column

TEXT, COUNT, SECONDS, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()


@dataclass(frozen=True)
class Table:
    """One published table: name, grain ("One row per …"), key columns and columns."""

    name: str
    grain: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema; each field and the table carry their sentence as metadata."""
        fields = [pa.field(c.name, c.type, c.nullable, metadata={"description": c.description}) for c in self.columns]
        return pa.schema(fields, metadata={"description": self.grain})


CONVERSATIONS = Table(
    "conversations",
    "One row per conversation that has a message or a reply.",
    ("conversation_key", "started_at"),
    (
        Column("conversation_key", TEXT, "Compact JSON array of what keys the conversation.", False),
        Column("started_at", TIMESTAMP, "Its first event.", False),
        Column("account_id", TEXT, "Account of the first message, else of the first event."),
        Column("channel", TEXT, "Channel of the first message, else of the first event.", False),
        Column("customer_id", TEXT, "First non-null customer_id."),
        Column("agent_id", TEXT, "Last non-null agent of the human replies, else of `assigned`."),
        Column("team_id", TEXT, "Last non-null team of the human replies, else of `assigned`."),
        Column("topic", TEXT, "Last non-null topic."),
        Column("subtopic", TEXT, "Last non-null subtopic."),
        Column("priority", TEXT, "Last non-null priority."),
        Column("language", TEXT, "Last non-null language."),
        Column("state", TEXT, "open, resolved or dismissed, as of as_of.", False),
        Column("opened_at", TIMESTAMP, "First message, else first event.", False),
        Column("first_response_at", TIMESTAMP, "First human reply after the first message."),
        Column("first_reply_at", TIMESTAMP, "First human or bot reply after the first message."),
        Column("resolved_at", TIMESTAMP, "Last move to resolved that counts; null unless resolved now."),
        Column("first_resolved_at", TIMESTAMP, "First move to resolved."),
        Column("handled_at", TIMESTAMP, "resolved_at, else the last human reply after the first message."),
        Column("rated_at", TIMESTAMP, "Last rating."),
        Column("last_event_at", TIMESTAMP, "Last event.", False),
        Column("is_proactive", FLAG, "A reply of any kind came before the first message, or there is none.", False),
        Column("is_handled", FLAG, "handled_at is known.", False),
        Column("is_resolution_inferred", FLAG, "The resolution in force was inferred from silence.", False),
        Column(
            "is_first_contact_resolution",
            FLAG,
            "Resolved with no reopen, transfer, escalation or repeat contact; null unless handled.",
        ),
        Column(
            "is_one_touch", FLAG, "Resolved with exactly one human reply after the first message; null unless handled."
        ),
        Column("event_count", COUNT, "Its events.", False),
        Column("message_count", COUNT, "Customer messages.", False),
        Column("reply_count", COUNT, "Human replies.", False),
        Column("bot_reply_count", COUNT, "Bot replies that are not automated.", False),
        Column("automated_reply_count", COUNT, "Automated replies.", False),
        Column("turn_count", COUNT, "Customer turns in the result.", False),
        Column("reopen_count", COUNT, "Confirmed reopenings.", False),
        Column("transfer_count", COUNT, "Changes of the assigned agent or team.", False),
        Column("escalation_count", COUNT, "`escalated` events.", False),
        Column("handoff_count", COUNT, "`handoff` events.", False),
        Column("note_count", COUNT, "`note` events.", False),
        Column("agent_count", COUNT, "Distinct agents with a human reply.", False),
        Column("channel_count", COUNT, "Distinct channels of all events.", False),
        Column("first_response_seconds", SECONDS, "first_response_at - first message."),
        Column("first_reply_seconds", SECONDS, "first_reply_at - first message."),
        Column(
            "answer_seconds",
            SECONDS,
            "First response - the later of first message and last assignment to an agent before it.",
        ),
        Column("resolution_seconds", SECONDS, "resolved_at - opened_at; null unless resolved with a message."),
        Column("handle_seconds", SECONDS, "resolution_seconds + wrap_up_seconds; null unless resolved with a message."),
        Column(
            "engaged_seconds",
            SECONDS,
            "Waits of its ended turns up to resolved_at + wrap_up_seconds; null unless resolved with a message.",
        ),
        Column("hold_seconds", SECONDS, "Time on hold; 0 where there was none.", False),
        Column("wrap_up_seconds", SECONDS, "After-contact work; 0 where there was none.", False),
        Column("csat_score", SECONDS, "Score of the last rating, 1 to 5."),
    ),
)

TURNS = Table(
    "turns",
    "One row per customer turn: a run of customer messages with no human reply between them.",
    ("conversation_key", "started_at", "turn_number"),
    (
        Column("conversation_key", TEXT, "Key of its conversation.", False),
        Column("started_at", TIMESTAMP, "started_at of its conversation.", False),
        Column("turn_number", COUNT, "Place of the turn in its conversation, from 1.", False),
        Column("account_id", TEXT, "Account."),
        Column("channel", TEXT, "Channel of its first message.", False),
        Column("turn_started_at", TIMESTAMP, "Its first message.", False),
        Column("turn_ended_at", TIMESTAMP, "When it was answered, resolved or dismissed; null while waiting."),
        Column("bot_replied_at", TIMESTAMP, "First bot reply while it waited."),
        Column("outcome", TEXT, "answered, resolved, dismissed or waiting.", False),
        Column("agent_id", TEXT, "Agent of the reply that ended it."),
        Column("message_count", COUNT, "Customer messages in it.", False),
        Column("is_responded", FLAG, "Answered by a human, or a bot replied.", False),
        Column("needs_reply", FLAG, "Responded, or neither dismissed nor resolved in a turn after the first.", False),
        Column("wait_seconds", SECONDS, "turn_ended_at - turn_started_at; null unless answered."),
    ),
)

WINDOW = (
    Column("basis", TEXT, "`opened`: where the conversation opened; `activity`: where it happened.", False),
    Column("grain", TEXT, "hour, day, week or month, cut in the time zone of the run.", False),
    Column("window_start", TIMESTAMP, "First instant of the window.", False),
    Column("window_end", TIMESTAMP, "First instant after the window.", False),
    Column("account_id", TEXT, "Account; null is an account."),
    Column("channel", TEXT, "Channel.", False),
)

HISTOGRAM = pa.list_(
    pa.field("item", pa.struct([pa.field("bucket", pa.int16(), False), pa.field("count", pa.int32(), False)]), False)
)
"""A log-histogram: its buckets that are not empty, in ascending order."""

STATISTIC_TYPES = {"count": COUNT, "seconds": SECONDS, "score": SECONDS, "histogram": HISTOGRAM}

MILLIONTHS = {
    s.name: s.name.removesuffix("_seconds") + "_millionths" for s in STATISTICS if s.kind in ("seconds", "score")
}
"""Sums of seconds or scores, and the column that holds them exactly."""

KPI_STATISTICS = Table(
    "kpi_statistics",
    "One row per basis, grain, window, account and channel in which anything fell: the additive parts of the KPIs.",
    ("basis", "grain", "window_start", "account_id", "channel"),
    (
        *WINDOW,
        *(Column(s.name, STATISTIC_TYPES[s.kind], s.sentence, False) for s in STATISTICS),
        *(
            Column(MILLIONTHS[s.name], COUNT, f"{s.name} in whole millionths, exact: what is added up.", False)
            for s in STATISTICS
            if s.name in MILLIONTHS
        ),
    ),
)

COMMIT_COLUMNS = (
    Column("revision", COUNT, "How many commits have changed this row, the first one included.", False),
    Column("changed_at", TIMESTAMP, "The commit that last changed this row.", False),
)

_STORED_KPIS = tuple(
    Column(k.name, COUNT if k.kind in ("count", "change") else SECONDS, k.sentence) for k in KPIS if k.kind != "running"
)

KPI_TABLE = Table(
    "kpis",
    "One row per basis, grain, window, account and channel in which anything fell.",
    ("basis", "grain", "window_start", "account_id", "channel"),
    (
        *WINDOW,
        Column("is_complete", FLAG, "as_of has reached window_end.", False),
        *_STORED_KPIS,
        *COMMIT_COLUMNS,
    ),
)
"""As stored; the running sums backlog_count and waiting_count are made from the changes on reading."""

KPI_CHANGES = Table(
    "kpi_changes",
    "One row per commit and row of `kpis` that it replaced or took away, as that row was before.",
    ("commit_id", *KPI_TABLE.key),
    (
        Column("commit_id", COUNT, "The commit that replaced the row, or took it away.", False),
        Column("replaced_at", TIMESTAMP, "When that commit was made.", False),
        *WINDOW,
        *_STORED_KPIS,
        Column("revision", COUNT, "How many commits had changed the row until then, the first one included.", False),
        Column("changed_at", TIMESTAMP, "The commit that had made the row what it was.", False),
    ),
)
"""Without is_complete: that a window becomes complete is no change of what it says."""

KPI_DEFINITIONS = Table(
    "kpi_definitions",
    "One row per KPI: what it means and what it is made of.",
    ("name",),
    (
        Column("name", TEXT, "Column of `kpis`.", False),
        Column("label", TEXT, "What a reader calls it.", False),
        Column("unit", TEXT, "count, seconds, rate (0 to 1) or score (1 to 5).", False),
        Column("sentence", TEXT, "What it measures.", False),
        Column("numerator", TEXT, "Statistic above the line (for a percentile: its histogram).", False),
        Column("denominator", TEXT, "Statistic below the line; null where there is none."),
        Column("source", TEXT, "Whose rule it is.", False),
    ),
)

PLACE = (
    Column("source", TEXT, "File, or topic.", False),
    Column("source_partition", pa.int32(), "Partition of a topic; null for a file."),
    Column("source_row", COUNT, "Line of a text file or row of a table file, from 1; offset in a topic.", False),
)

DEAD_LETTERS = Table(
    "dead_letters",
    "One row per input row that could not be used.",
    ("source", "source_partition", "source_row"),
    (
        *PLACE,
        Column("stage", TEXT, "read, parse or pair: the step that refused it.", False),
        Column("reason", TEXT, "The one reason.", False),
        Column("column_name", TEXT, "First faulty column in the contract's order; null where the whole row is."),
        Column("raw", TEXT, "The row as it came, without `text`; an unreadable line cut to 1,000 characters."),
    ),
)

LATE_EVENTS = Table(
    "late_events",
    "One row per event that came after its state was dropped (streams only).",
    ("source", "source_partition", "source_row"),
    (
        *PLACE,
        *(Column(c.name, c.type, c.description, c.nullable) for c in EVENT_COLUMNS if c.name != "text"),
    ),
)

RUNS = Table(
    "runs",
    "One row per commit.",
    ("commit_id",),
    (
        Column("commit_id", COUNT, "Number of the commit, from 1.", False),
        Column("committed_at", TIMESTAMP, "When it was made.", False),
        Column(
            "kind",
            TEXT,
            "batch: made of all its inputs; append: added to the result before; stream: what cycles added since.",
            False,
        ),
        Column(
            "as_of", TIMESTAMP, "The moment up to which time is taken to have passed; null where there is no event."
        ),
        Column("timezone", TEXT, "IANA zone in which the windows are cut.", False),
        Column("rows_read_count", COUNT, "Input rows of this commit.", False),
        Column(
            "events_kept_count",
            COUNT,
            "Rows kept as events; of an append the difference that it makes, here and in the next four.",
            False,
        ),
        Column("dead_letter_count", COUNT, "Rows that could not be used.", False),
        Column("exact_duplicate_count", COUNT, "Rows that repeated an event word for word.", False),
        Column("late_event_count", COUNT, "Rows that came too late (streams only).", False),
        Column("stray_event_count", COUNT, "Events kept that belong to no conversation.", False),
        Column("conversation_count", COUNT, "Conversations in the result.", False),
        Column("turn_count", COUNT, "Customer turns.", False),
        Column("dead_letters_by_reason", TEXT, "JSON object: dead letters by reason.", False),
        Column(
            "inputs",
            TEXT,
            "JSON array of what was read: name, bytes, rows; for a result that grows SHA-256 too; of a stream name "
            "(topic/partition), offsets from and to, rows, and how many offsets were lost.",
            False,
        ),
        Column("settings", TEXT, "JSON object of the settings in force.", False),
        Column("duration_seconds", SECONDS, "From the start of the run to the commit.", False),
        Column("version", TEXT, "Version of this package.", False),
    ),
)

TABLES = (
    CONVERSATIONS,
    TURNS,
    KPI_TABLE,
    KPI_CHANGES,
    KPI_STATISTICS,
    KPI_DEFINITIONS,
    DEAD_LETTERS,
    LATE_EVENTS,
    RUNS,
)
