"""Macros that break KPIs down by what only conversations know: team, agent, topic, priority, language.

Everything is credited to what the row of the conversation says, and made of conversations and turns directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sinks.fact_values import AT_ITS_END, ENGAGED_WHOLE, MESSAGES, MESSAGES_OF_TURNS, OF_CONVERSATIONS
from sinks.periods import CHOICE, PERIOD, asked_basis, chosen, given
from sinks.views import HISTOGRAMS, Macro
from transforms.definitions import KPIS, Kpi
from transforms.tables import CONVERSATIONS, MILLIONTHS

CREDITED = {
    "team": "team_id",
    "agent": "agent_id",
    "topic": "topic",
    "priority": "priority",
    "language": "language",
}
"""What can be asked for, and the column of conversations that holds it."""

_OF_CONVERSATIONS = {at: {**values} for at, values in OF_CONVERSATIONS.items()}
_OF_CONVERSATIONS["resolved_at"] |= ENGAGED_WHOLE
_REPLIES = tuple(name for name in MESSAGES if name != "message_count")
_OF_TURNS: Mapping[str, Mapping[str, str]] = {
    "turn_ended_at": AT_ITS_END,
    "turn_started_at": {**MESSAGES_OF_TURNS, "message_count": "message_count"},
}
"""What a turn adds, by the time at which it does; messages at the start of their turn, for their own is not kept."""

_KNOWN = {name for values in (*_OF_CONVERSATIONS.values(), *_OF_TURNS.values(), MESSAGES) for name in values}


def _is_known(kpi: Kpi) -> bool:
    """Whether conversations and turns tell all that a KPI is made of."""
    if kpi.kind in ("change", "running"):
        return False
    if kpi.kind == "percentile":
        return f"sum_{kpi.numerator.removesuffix('_histogram')}_seconds" in _KNOWN
    return {kpi.numerator, kpi.denominator or kpi.numerator} <= _KNOWN


_NAMED = {kpi.name: kpi for kpi in KPIS if _is_known(kpi)}


def _aggregates(values: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """SQL of the sums of statistics, and of the percentiles of durations, over rows marked with when they count."""
    for at, sums in values.items():
        when = f"FILTER (in_{at})"
        for name, value in sums.items():
            yield f"CAST(coalesce(sum({value}) {when}, 0) AS BIGINT) AS {name}"
            histogram = name.removeprefix("sum_").removesuffix("_seconds") + "_histogram"
            quantiles = [k.quantile for k in KPIS if k.kind == "percentile" and k.numerator == histogram]
            if name in MILLIONTHS and histogram in HISTOGRAMS and quantiles:
                yield f"quantile_disc({value}, {quantiles}) {when} AS {histogram}"


def _value(kpi: Kpi) -> str:
    """SQL of a KPI over the sums of conversations and of turns."""

    def total(name: str) -> str:
        return f"({name} / 1e6)" if name in MILLIONTHS else f"coalesce({name}, 0)"

    if kpi.kind == "percentile":
        of_same = [k.quantile for k in KPIS if k.kind == "percentile" and k.numerator == kpi.numerator]
        return f"{kpi.numerator}[{of_same.index(kpi.quantile) + 1}] / 1e6"
    if kpi.kind == "count":
        return total(kpi.numerator)
    assert kpi.denominator is not None
    return f"{total(kpi.numerator)} / nullif({total(kpi.denominator)}, 0)"


def _kpis_by(word: str, column: str) -> Macro:
    """The KPIs of a period by a column of conversations."""
    description = next(c.description for c in CONVERSATIONS.columns if c.name == column)
    needed = [c.name for c in CONVERSATIONS.columns if c.name not in (column, "account_id", "channel")]
    marks = ", ".join(
        f"coalesce(CASE WHEN on_basis = 'opened' THEN opened_at ELSE {at} END >= first_at "
        f"AND CASE WHEN on_basis = 'opened' THEN opened_at ELSE {at} END < end_at, false) AS in_{at}"
        for at in _OF_CONVERSATIONS
    )
    turn_marks = ", ".join(f"t.{at} >= first_at AND t.{at} < end_at AS is_{at}" for at in _OF_TURNS)
    # On the opened basis a turn counts when its conversation does.
    turn_times = ", ".join(
        f"CASE WHEN is_opened THEN c.in_opened_at ELSE coalesce(is_{at}, false) END AS in_{at}" for at in _OF_TURNS
    )
    replies = ", ".join(
        f"CASE WHEN min(on_basis) = 'opened' THEN CAST(coalesce(sum({name}) FILTER (in_opened_at), 0) AS BIGINT) END "
        f"AS {name}"
        for name in _REPLIES
    )
    shown = ", ".join(f"{name if name in _REPLIES else _value(kpi)} AS {name}" for name, kpi in _NAMED.items())
    turns_within = " OR ".join(f"t.{at} >= first_at AND t.{at} < end_at" for at in _OF_TURNS)
    return Macro(
        f"kpis_by_{word}",
        f"One row per {column} of conversations (null is one), where anything fell in the period: KPIs from "
        f"conversations and turns, percentiles exact. All of a conversation and of its turns is credited to what its "
        f"row says ({description[0].lower()}{description[1:].rstrip('.')}): reply time and response rates too, "
        "whoever answered each turn. On the activity basis messages and response rates fall at the start of their "
        "turn, and reply_count and bot_reply_count are null; on the opened basis all falls at opened_at. "
        "Parameters as of kpis_between.",
        f"({PERIOD}, {CHOICE}, basis := 'activity') AS TABLE WITH {given(asked_basis())}, "
        "run AS (SELECT CAST(settings->'channel' AS MAP(VARCHAR, JSON)) AS by_channel, "
        "CAST(settings AS JSON)->'default' AS otherwise FROM runs ORDER BY commit_id DESC LIMIT 1), "
        "followed AS (SELECT channel, coalesce(said->>'has_life_cycle', 'true') = 'true' "
        "OR coalesce(said->>'infer_resolution', 'false') = 'true' AS is_followed "
        "FROM (SELECT channel, coalesce(by_channel[channel], otherwise) AS said "
        "FROM (SELECT DISTINCT channel FROM conversations), run)), "
        # Keys are joined by their hash and the time beside it: half as long as by their text.
        f"c AS NOT MATERIALIZED (SELECT {', '.join(needed)}, hash(conversation_key) AS key_hash, {column} AS credited, "
        f"is_followed, on_basis, first_at, end_at, {marks} "
        f"FROM conversations AS r JOIN followed USING (channel), given WHERE {chosen('r')} "
        "AND r.last_event_at >= first_at AND r.started_at < end_at), "
        f"of_conversations AS (SELECT credited, {replies}, {', '.join(_aggregates(_OF_CONVERSATIONS))} "
        f"FROM c WHERE {' OR '.join(f'in_{at}' for at in _OF_CONVERSATIONS)} GROUP BY credited), "
        f"t AS (SELECT c.credited, t.*, {turn_times} FROM ("
        "SELECT t.message_count, t.outcome, t.wait_seconds, t.needs_reply, t.is_responded, t.started_at, "
        f"hash(t.conversation_key) AS key_hash, on_basis = 'opened' AS is_opened, {turn_marks} FROM turns AS t, given "
        f"WHERE on_basis = 'opened' AND t.turn_started_at >= first_at OR {turns_within}"
        ") AS t JOIN (SELECT key_hash, started_at, credited, in_opened_at FROM c WHERE on_basis <> 'opened' "
        "OR in_opened_at) AS c ON t.key_hash = c.key_hash AND t.started_at = c.started_at), "
        f"of_turns AS (SELECT credited, {', '.join(_aggregates(_OF_TURNS))} FROM t "
        f"WHERE {' OR '.join(f'in_{at}' for at in _OF_TURNS)} GROUP BY credited) "
        f"SELECT coalesce(of_conversations.credited, of_turns.credited) AS {column}, {shown} FROM of_conversations "
        f"FULL JOIN of_turns ON of_conversations.credited IS NOT DISTINCT FROM of_turns.credited ORDER BY {column}",
        "MACRO TABLE",
    )


CREDIT_MACROS = tuple(_kpis_by(word, column) for word, column in CREDITED.items())
