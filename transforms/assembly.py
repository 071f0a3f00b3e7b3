"""From vectors to the published tables `conversations` and `turns`: text is gathered here, once a row."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.facts import Facts
from transforms.life_cycle import STATE_RESOLVED, STATES, LifeCycles
from transforms.ordering import codes_of
from transforms.schema import TIMESTAMP
from transforms.tables import CONVERSATIONS, TURNS
from transforms.turns import ANSWERED, OUTCOMES, Turns
from transforms.vectors import NEVER, Codes, EventVectors, Mask, Rows

_SPECIAL = r'["\\\x00-\x1f]'


def conversation_table(
    events: pa.Table, ev: EventVectors, conversation: Codes, cycles: LifeCycles, facts: Facts
) -> tuple[pa.Table, Rows]:
    """Makes the rows of `conversations`, sorted by started_at (then conversation_key).

    Args:
      events: columns of PARSED_EVENTS in one chunk each.
      ev: vectors of the events kept, none of them stray.
      conversation: number of the conversation of each event.
      cycles: states of the c conversations.
      facts: facts of the c conversations.

    Returns:
      The table (text dictionary-encoded where it repeats), and for each of its rows the number of the conversation.
    """
    keys = _conversation_keys(events, ev, facts.begin)
    started_at = ev.at[facts.begin]
    order = np.lexsort((_key_ranks(keys, started_at), started_at))
    is_handled = facts.is_handled
    is_closed = (cycles.state == STATE_RESOLVED) & facts.has_message & facts.is_followed
    resolution = (cycles.resolved_at - facts.opened_at) / 1e6
    columns: dict[str, pa.Array] = {
        "conversation_key": keys,
        "started_at": _times(started_at),
        "account_id": _words(events, "account_id", facts.account),
        "channel": _words(events, "channel", facts.channel),
        "customer_id": _first_text(events, "customer_id", ev, conversation, len(facts.begin)),
        "agent_id": _words(events, "agent_id", facts.agent),
        "team_id": _words(events, "team_id", facts.team),
        "state": _labels(STATES, cycles.state),
        "resolved_at": _times(cycles.resolved_at),
        "first_resolved_at": _times(cycles.first_resolved_at),
        "is_handled": pa.array(is_handled),
        "is_resolution_inferred": pa.array(cycles.is_inferred),
        "is_first_contact_resolution": pa.array(facts.is_first_contact_resolution, mask=~is_handled),
        "is_one_touch": pa.array(facts.is_one_touch, mask=~is_handled),
        "reopen_count": pa.array(cycles.reopen_count),
        "first_response_seconds": _between(facts.opened_at, facts.first_response_at),
        "first_reply_seconds": _between(facts.opened_at, facts.first_reply_at),
        "answer_seconds": _between(
            np.maximum(facts.opened_at, facts.assigned_at),
            np.where(facts.assigned_at == NEVER, NEVER, facts.first_response_at),
        ),
        "resolution_seconds": pa.array(resolution, mask=~is_closed),
        "handle_seconds": pa.array(resolution + facts.wrap_up_seconds, mask=~is_closed),
        "engaged_seconds": pa.array(facts.engaged / 1e6 + facts.wrap_up_seconds, mask=~is_closed),
        "hold_seconds": pa.array(cycles.hold / 1e6),
        "wrap_up_seconds": pa.array(facts.wrap_up_seconds),
        "csat_score": pa.array(facts.csat_score, mask=np.isnan(facts.csat_score)),
    }
    for name in ("topic", "subtopic", "priority", "language"):
        columns[name] = _words(events, name, _last_code(events, name, ev, conversation, len(facts.begin)))
    for name in ("opened_at", "first_response_at", "first_reply_at", "handled_at", "rated_at", "last_event_at"):
        columns[name] = _times(getattr(facts, name))
    for column in CONVERSATIONS.columns:
        if column.name not in columns:
            columns[column.name] = pa.array(getattr(facts, column.name))
    table = pa.table({column.name: columns[column.name] for column in CONVERSATIONS.columns})
    return table.take(pa.array(order)), order


def turn_table(events: pa.Table, ev: EventVectors, conversations: pa.Table, order: Rows, turns: Turns) -> pa.Table:
    """Makes the rows of `turns`, in the order of their conversations, then turn_number.

    Args:
      events: columns of PARSED_EVENTS in one chunk each.
      ev: vectors of the events kept, none of them stray.
      conversations: the rows of `conversations`.
      order: number of the conversation of each of these rows.
      turns: the turns.
    """
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    row_of = place[turns.conversation]
    by = np.argsort(row_of, kind="stable")
    first, end, bot = turns.first[by], turns.end[by], turns.bot[by]
    outcome = turns.outcome[by]
    parent = conversations.select(["conversation_key", "started_at"]).take(pa.array(row_of[by]))
    started, ended = ev.at[first], np.where(end >= 0, ev.at[np.maximum(end, 0)], NEVER) if len(by) else end
    answered = outcome == ANSWERED
    agent = np.where(answered, ev.agent[np.maximum(end, 0)], -1) if len(by) else end
    columns = {
        "conversation_key": parent["conversation_key"],
        "started_at": parent["started_at"],
        "turn_number": pa.array(turns.number[by]),
        "account_id": _words(events, "account_id", ev.account[first]),
        "channel": _words(events, "channel", ev.channel[first]),
        "turn_started_at": _times(started),
        "turn_ended_at": _times(ended),
        "bot_replied_at": _times(np.where(bot >= 0, ev.at[np.maximum(bot, 0)], NEVER) if len(by) else bot),
        "outcome": _labels(OUTCOMES, outcome),
        "agent_id": _words(
            events, "agent_id", np.where(answered, ev.agent[np.maximum(end, 0)], -1) if len(by) else end
        ),
        "message_count": pa.array(turns.message_count[by]),
        "is_responded": pa.array(turns.is_responded[by]),
        "needs_reply": pa.array(turns.needs_reply[by]),
        "wait_seconds": _between(started, np.where(answered, ended, NEVER)),
    }
    return pa.table({column.name: columns[column.name] for column in TURNS.columns})


def _conversation_keys(events: pa.Table, ev: EventVectors, begin: Rows) -> pa.Array:
    """conversation_key of each conversation: the compact JSON array of its key."""
    rows = pa.array(ev.row[begin])
    keyed = ev.is_keyed[begin]

    def text(name: str) -> pa.Array:
        return pc.fill_null(_json_text(events[name].combine_chunks().take(rows)), "null")

    account = text("account_id")
    second = text("conversation_id")
    if not keyed.all():
        unkeyed = pc.binary_join_element_wise(text("channel"), text("customer_id"), ",")
        second = pc.if_else(pa.array(keyed), second, unkeyed)
    joined = pc.binary_join_element_wise(account, second, ",")
    return pc.binary_join_element_wise(pa.scalar("["), joined, pa.scalar("]"), "")


def _json_text(values: pa.Array) -> pa.Array:
    """Each text as a JSON string; null stays null. Few texts have a character that JSON escapes."""
    if pa.types.is_dictionary(values.type):
        return _json_text(values.dictionary).take(values.indices)
    quoted = pc.binary_join_element_wise(pa.scalar('"'), values, pa.scalar('"'), "")
    if not _has_special(values):
        return quoted
    special = pc.fill_null(pc.match_substring_regex(values, _SPECIAL), False)
    escaped = [json.dumps(v.as_py(), ensure_ascii=False) for v in values.filter(special)]
    return pc.replace_with_mask(quoted, special, pa.array(escaped, pa.string()))


def _has_special(values: pa.StringArray) -> bool:
    """Whether any byte of the texts is one that JSON escapes: a quote, a backslash or a control character."""
    if not len(values):
        return False
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[[values.offset, values.offset + len(values)]]
    octets = np.frombuffer(data, np.uint8)[bounds[0] : bounds[1]] if data is not None else np.empty(0, np.uint8)
    return bool(np.any((octets < 32) | (octets == 34) | (octets == 92)))


def _key_ranks(keys: pa.Array, started_at: Rows) -> npt.NDArray[np.int64]:
    """Ranks of the keys among conversations that began at the same instant; 0 elsewhere."""
    ranks = np.zeros(len(keys), np.int64)
    order = np.argsort(started_at, kind="stable")
    ordered = started_at[order]
    twin = ordered[1:] == ordered[:-1] if len(ordered) else np.empty(0, bool)
    tied = order[np.append(twin, False) | np.append(False, twin)] if twin.any() else np.empty(0, np.int64)
    if len(tied):
        by_text = np.asarray(pc.sort_indices(keys.take(pa.array(tied))))
        ranks[tied[by_text]] = np.arange(len(tied))
    return ranks


def _last_code(events: pa.Table, name: str, ev: EventVectors, conversation: Codes, count: int) -> Codes:
    """The last non-null code of a column in each conversation, or -1."""
    codes = codes_of(events[name])
    out = np.full(count, -1, np.int32)
    if (codes >= 0).any():
        codes = codes[ev.row]
        named = np.flatnonzero(codes >= 0)
        out[conversation[named]] = codes[named]
    return out


def _first_text(events: pa.Table, name: str, ev: EventVectors, conversation: Codes, count: int) -> pa.Array:
    """The first non-null text of a column in each conversation."""
    column = events[name].combine_chunks()
    row = np.full(count, -1, np.int64)
    if column.null_count == 0:
        begin = np.flatnonzero(np.diff(conversation, prepend=np.int32(-1)))
        row[conversation[begin]] = ev.row[begin]
    else:
        named = np.flatnonzero(np.asarray(column.is_valid())[ev.row])
        row[conversation[named[::-1]]] = ev.row[named[::-1]]
    return column.take(pa.array(row, mask=row < 0))


def _words(events: pa.Table, name: str, codes: npt.NDArray[np.integer]) -> pa.DictionaryArray:
    """Text of a dictionary column by code; -1 is null."""
    dictionary = events[name].combine_chunks().dictionary
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), dictionary)


def _labels(words: tuple[str, ...], codes: npt.NDArray[np.integer]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(words))


def _times(at: Rows) -> pa.Array:
    """Instants as timestamps; NEVER is null."""
    return pa.array(at, pa.int64(), mask=at == NEVER).cast(TIMESTAMP)


def _between(start: Rows, end: Rows) -> pa.Array:
    """Seconds from start to end; null where the end never was."""
    never: Mask = end == NEVER
    return pa.array(np.where(never, 0, end - np.where(never, 0, start)) / 1e6, mask=never)
