"""What is measured: the additive statistics, and the KPIs that are made of them.

One list each. The code that computes, the comments in DuckDB, the README table and the checks are all made from
these; adding a KPI is adding a row here (docs/add-a-kpi.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Statistic:
    """An additive part: windows, shards and restatements merge by addition.

    Attributes:
      name: column of kpi_statistics.
      kind: count; seconds or score (a sum, kept as whole millionths inside); histogram (of a sum's values).
      sentence: what is counted, and where it falls on the activity basis.
    """

    name: str
    kind: Literal["count", "seconds", "score", "histogram"]
    sentence: str


STATISTICS = (
    Statistic("message_count", "count", "Customer messages; each at its own time and channel."),
    Statistic("reply_count", "count", "Human replies; each at its own time and channel."),
    Statistic("bot_reply_count", "count", "Bot replies that are not automated; each at its own time and channel."),
    Statistic("conversation_count", "count", "Conversations with a message; at opened_at."),
    Statistic("proactive_count", "count", "Proactive conversations; at opened_at."),
    Statistic("first_response_count", "count", "Conversations with a first human response; at first_response_at."),
    Statistic("sum_first_response_seconds", "seconds", "Sum of first_response_seconds; at first_response_at."),
    Statistic("first_response_histogram", "histogram", "Histogram of first_response_seconds; at first_response_at."),
    Statistic("first_reply_count", "count", "Conversations with a first reply, bots too; at first_reply_at."),
    Statistic("sum_first_reply_seconds", "seconds", "Sum of first_reply_seconds; at first_reply_at."),
    Statistic("first_reply_histogram", "histogram", "Histogram of first_reply_seconds; at first_reply_at."),
    Statistic("answered_turn_count", "count", "Answered turns; at the turn's end, in its channel."),
    Statistic("sum_reply_seconds", "seconds", "Sum of wait_seconds of answered turns; at the turn's end."),
    Statistic("reply_histogram", "histogram", "Histogram of wait_seconds of answered turns; at the turn's end."),
    Statistic("answer_count", "count", "Conversations with a time to answer; at first_response_at."),
    Statistic("sum_answer_seconds", "seconds", "Sum of answer_seconds; at first_response_at."),
    Statistic("resolved_count", "count", "Resolved conversations; at resolved_at."),
    Statistic("sum_handle_seconds", "seconds", "Sum of handle_seconds; at resolved_at."),
    Statistic("handle_histogram", "histogram", "Histogram of handle_seconds; at resolved_at."),
    Statistic("sum_engaged_seconds", "seconds", "Sum of engaged_seconds; at resolved_at."),
    Statistic("sum_hold_seconds", "seconds", "Sum of hold_seconds of resolved conversations; at resolved_at."),
    Statistic("sum_resolution_seconds", "seconds", "Sum of resolution_seconds; at resolved_at."),
    Statistic("resolution_histogram", "histogram", "Histogram of resolution_seconds; at resolved_at."),
    Statistic("handled_count", "count", "Handled conversations; at handled_at."),
    Statistic(
        "first_contact_resolution_count", "count", "Handled conversations resolved at first contact; at handled_at."
    ),
    Statistic("one_touch_count", "count", "Handled conversations resolved with one human reply; at handled_at."),
    Statistic("reopened_count", "count", "Handled conversations with a reopen; at handled_at."),
    Statistic("transferred_count", "count", "Handled conversations with a transfer; at handled_at."),
    Statistic("escalated_count", "count", "Handled conversations with an escalation; at handled_at."),
    Statistic(
        "needs_reply_message_count", "count", "Messages in turns that need a reply; at the message's time and channel."
    ),
    Statistic("responded_message_count", "count", "Messages in responded turns; at the message's time and channel."),
    Statistic("answered_message_count", "count", "Messages in answered turns; at the message's time and channel."),
    Statistic(
        "resolvable_count",
        "count",
        "Conversations with a message and a known life cycle, not dismissed now; at opened_at.",
    ),
    Statistic("resolvable_resolved_count", "count", "Those of them that are resolved now; at opened_at."),
    Statistic("rating_count", "count", "Rated conversations; at rated_at."),
    Statistic("sum_csat", "score", "Sum of csat_score; at rated_at."),
    Statistic("satisfied_count", "count", "Rated conversations with a score of at least 4; at rated_at."),
    Statistic("backlog_in_count", "count", "Moves into the backlog, at their times (activity basis only)."),
    Statistic("backlog_out_count", "count", "Moves out of the backlog, at their times (activity basis only)."),
    Statistic("waiting_in_count", "count", "Turns that become due, at their times (activity basis only)."),
    Statistic("waiting_out_count", "count", "Turns that are due no more, at their times (activity basis only)."),
)

STATISTIC_NAMES = tuple(s.name for s in STATISTICS)


@dataclass(frozen=True)
class Kpi:
    """A value made of statistics.

    Attributes:
      name: column of kpis.
      label: what a reader calls it.
      unit: count, seconds, rate (0 to 1) or score (1 to 5).
      sentence: what it measures.
      kind: count (the numerator); mean or rate (numerator / denominator); percentile (of the histogram in
        numerator, at `quantile`); change (numerator - denominator); running (running sum of the change in numerator).
      numerator: statistic (running: KPI) above the line.
      denominator: statistic below the line, or None.
      source: whose rule it is.
      quantile: of a percentile.
    """

    name: str
    label: str
    unit: Literal["count", "seconds", "rate", "score"]
    sentence: str
    kind: Literal["count", "mean", "rate", "percentile", "change", "running"]
    numerator: str
    denominator: str | None = None
    source: str = "care"
    quantile: float | None = None


def _count(name: str, label: str, sentence: str) -> Kpi:
    return Kpi(name, label, "count", sentence, "count", name)


def _time(what: str, label: str, sentence: str, count: str, quantiles: tuple[int, ...]) -> tuple[Kpi, ...]:
    """The mean and the percentiles of one duration."""
    mean = Kpi(
        f"avg_{what}_seconds", f"{label}, mean", "seconds", f"{sentence}; mean.", "mean", f"sum_{what}_seconds", count
    )
    return mean, *(
        Kpi(
            f"p{q}_{what}_seconds",
            f"{label}, p{q}",
            "seconds",
            f"{sentence}; {q}th percentile (nearest rank).",
            "percentile",
            f"{what}_histogram",
            quantile=q / 100,
        )
        for q in quantiles
    )


def _rate(name: str, label: str, sentence: str, numerator: str, denominator: str) -> Kpi:
    return Kpi(name, label, "rate", sentence, "rate", numerator, denominator)


KPIS: tuple[Kpi, ...] = (
    _count("message_count", "Messages", "Customer messages."),
    _count("reply_count", "Replies", "Human replies."),
    _count("bot_reply_count", "Bot replies", "Bot replies that are not automated."),
    _count("conversation_count", "Conversations", "Conversations with a customer message."),
    _count("proactive_count", "Proactive conversations", "Conversations that a reply of any kind began."),
    *_time(
        "first_response",
        "First response time (FRT)",
        "First message to first human reply",
        "first_response_count",
        (50, 90, 95),
    ),
    *_time(
        "first_reply", "First reply, bots too", "First message to first human or bot reply", "first_reply_count", (50,)
    ),
    *_time(
        "reply",
        "Reply time",
        "Start of a customer turn to the human reply that ends it",
        "answered_turn_count",
        (50, 90, 95),
    ),
    *_time(
        "answer",
        "Time to answer",
        "Later of first message and last assignment to an agent, to the first human reply",
        "answer_count",
        (),
    ),
    *_time(
        "handle",
        "Average handle time (AHT)",
        "Opened to resolved, plus after-contact work, of resolved conversations",
        "resolved_count",
        (50, 90),
    ),
    *_time(
        "engaged",
        "Brand-side time",
        "Time that the customer waited for the brand, plus after-contact work, of resolved conversations",
        "resolved_count",
        (),
    ),
    *_time("hold", "Hold time", "Time on hold, of resolved conversations", "resolved_count", ()),
    *_time(
        "resolution", "Time to resolution", "Opened to resolved, of resolved conversations", "resolved_count", (50, 90)
    ),
    _rate(
        "first_contact_resolution_rate",
        "First contact resolution (FCR)",
        "Handled conversations that were resolved with no reopen, transfer, escalation or repeat contact.",
        "first_contact_resolution_count",
        "handled_count",
    ),
    _rate(
        "one_touch_rate",
        "One touch",
        "Handled conversations that were resolved with exactly one human reply.",
        "one_touch_count",
        "handled_count",
    ),
    _rate(
        "response_rate",
        "Response rate",
        "Messages in turns that a human or a bot responded to, of messages that need a reply.",
        "responded_message_count",
        "needs_reply_message_count",
    ),
    _rate(
        "human_response_rate",
        "Human response rate",
        "Messages in turns that a human answered, of messages that need a reply.",
        "answered_message_count",
        "needs_reply_message_count",
    ),
    _rate(
        "resolution_rate",
        "Resolution rate",
        "Conversations with a message that are resolved now, of those with a known life cycle that are not dismissed.",
        "resolvable_resolved_count",
        "resolvable_count",
    ),
    _rate("reopen_rate", "Reopen rate", "Handled conversations that were reopened.", "reopened_count", "handled_count"),
    _rate(
        "transfer_rate",
        "Transfer rate",
        "Handled conversations that were transferred.",
        "transferred_count",
        "handled_count",
    ),
    _rate(
        "escalation_rate",
        "Escalation rate",
        "Handled conversations that were escalated.",
        "escalated_count",
        "handled_count",
    ),
    Kpi(
        "backlog_change",
        "Backlog change",
        "count",
        "Moves into the backlog less moves out of it (activity basis only).",
        "change",
        "backlog_in_count",
        "backlog_out_count",
    ),
    Kpi(
        "backlog_count",
        "Backlog",
        "count",
        "Conversations in state open at the window's end (activity basis only).",
        "running",
        "backlog_change",
    ),
    Kpi(
        "waiting_change",
        "Waiting change",
        "count",
        "Turns that became due less turns that are due no more (activity basis only).",
        "change",
        "waiting_in_count",
        "waiting_out_count",
    ),
    Kpi(
        "waiting_count",
        "Waiting",
        "count",
        "Customer turns due at the window's end (activity basis only).",
        "running",
        "waiting_change",
    ),
    Kpi("avg_csat", "CSAT", "score", "Mean score of rated conversations.", "mean", "sum_csat", "rating_count"),
    _rate(
        "csat_rate", "CSAT rate", "Rated conversations with a score of at least 4.", "satisfied_count", "rating_count"
    ),
    _count("rating_count", "Ratings", "Rated conversations."),
)
