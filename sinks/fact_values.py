"""What conversations and turns add to the statistics, as SQL: said once, for the checks and for breakdowns."""

from __future__ import annotations

from collections.abc import Mapping

Values = Mapping[str, str]
"""SQL of what a row adds to statistics, by their names; a flag adds 1."""

RESOLVED = "resolution_seconds IS NOT NULL"
_SPOKEN = "message_count > 0"


def micros(seconds: str) -> str:
    """SQL of seconds as whole microseconds (of a score: millionths)."""
    return f"CAST({seconds} * 1e6 AS BIGINT)"


OF_CONVERSATIONS: Mapping[str, Values] = {
    "opened_at": {
        "conversation_count": _SPOKEN,
        "proactive_count": "is_proactive",
        "resolvable_count": f"{_SPOKEN} AND state <> 'dismissed' AND is_followed",
        "resolvable_resolved_count": RESOLVED,
    },
    "first_response_at": {
        "first_response_count": "first_response_seconds IS NOT NULL",
        "sum_first_response_seconds": micros("first_response_seconds"),
        "answer_count": "answer_seconds IS NOT NULL",
        "sum_answer_seconds": micros("answer_seconds"),
    },
    "first_reply_at": {
        "first_reply_count": "first_reply_seconds IS NOT NULL",
        "sum_first_reply_seconds": micros("first_reply_seconds"),
    },
    "resolved_at": {
        "resolved_count": RESOLVED,
        "sum_resolution_seconds": micros("resolution_seconds"),
        "sum_handle_seconds": f"{micros('resolution_seconds')} + {micros('wrap_up_seconds')}",
        "sum_hold_seconds": f"CASE WHEN {RESOLVED} THEN {micros('hold_seconds')} END",
        "sum_engaged_seconds": f"CASE WHEN {RESOLVED} THEN {micros('wrap_up_seconds')} END",
    },
    "handled_at": {
        "handled_count": "is_handled",
        "first_contact_resolution_count": "is_first_contact_resolution",
        "one_touch_count": "is_one_touch",
        "reopened_count": "is_handled AND reopen_count > 0",
        "transferred_count": "is_handled AND transfer_count > 0",
        "escalated_count": "is_handled AND escalation_count > 0",
    },
    "rated_at": {
        "rating_count": f"{_SPOKEN} AND csat_score IS NOT NULL",
        "sum_csat": f"CASE WHEN {_SPOKEN} THEN {micros('csat_score')} END",
        "satisfied_count": f"{_SPOKEN} AND csat_score >= 4",
    },
}
"""What a conversation adds, by the time at which it falls on the activity basis.

`is_followed` tells whether resolutions are known or inferred in its channel. Of sum_engaged_seconds, a turn adds the
rest: ENGAGED.
"""

ENGAGED = {
    "sum_engaged_seconds": "CASE WHEN is_resolved AND turn_started_at <= resolved_at "
    "THEN epoch_us(turn_ended_at) - epoch_us(turn_started_at) END"
}
"""What a turn adds when its conversation is resolved."""

ENGAGED_WHOLE = {"sum_engaged_seconds": micros("engaged_seconds")}
"""What a conversation adds together with its turns, as it says itself."""

AT_ITS_END = {"answered_turn_count": "outcome = 'answered'", "sum_reply_seconds": micros("wait_seconds")}
"""What a turn adds at its end, in its own channel."""

MESSAGES = {name: name for name in ("message_count", "reply_count", "bot_reply_count")}
MESSAGES_OF_TURNS = {
    "needs_reply_message_count": "CASE WHEN needs_reply THEN message_count END",
    "responded_message_count": "CASE WHEN is_responded THEN message_count END",
    "answered_message_count": "CASE WHEN outcome = 'answered' THEN message_count END",
}
"""What falls at the time of each message on the activity basis, which the tables do not tell."""
