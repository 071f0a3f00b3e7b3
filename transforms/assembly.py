"""From vectors to the published tables `conversations` and `turns`: text is gathered here, once a row."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.facts import Facts
from transforms.hashing import dictionary_codes, valid_rows, words_by_code
from transforms.life_cycle import STATE_RESOLVED, STATES, LifeCycles
from transforms.ordering import codes_of, dense_codes, one_chunk, plain
from transforms.schema import TIMESTAMP
from transforms.tables import CONVERSATIONS, TURNS
from transforms.turns import ANSWERED, OUTCOMES, Turns
from transforms.vectors import NEVER, Codes, EventVectors, Mask, Rows, chosen

Vectors = TypeVar("Vectors", Facts, LifeCycles)

_SPECIAL = r'["\\\x00-\x1f]'


def conversation_table(
    events: pa.Table, ev: EventVectors, conversation: Codes, cycles: LifeCycles, facts: Facts
) -> tuple[pa.Table, Rows]:
    """Makes the rows of `conversations`, sorted by started_at (then conversation_key).

    Args:
      events: columns of PARSED_EVENTS.
      ev: vectors of the events kept, none of them stray.
      conversation: number of the conversation of each event.
      cycles: states of the c conversations.
      facts: facts of the c conversations.

    Returns:
      The table (text dictionary-encoded where it repeats), and the row of each conversation in it.
    """
    order = _order_of_rows(events, ev, facts.begin)
    row_of = np.empty(len(order), np.int64)
    row_of[order] = np.arange(len(order))
    f, c, count = _in_order(facts, order), _in_order(cycles, order), len(order)
    is_handled = f.is_handled
    not_closed = ~((c.state == STATE_RESOLVED) & f.has_message & f.is_followed)
    resolution = np.where(not_closed, 0, c.resolved_at - f.opened_at) / 1e6
    columns: dict[str, pa.Array] = {
        "conversation_key": _conversation_keys(events, ev, f.begin),
        "started_at": _times(ev.at[f.begin]),
        "account_id": _words(events, "account_id", f.account),
        "channel": _words(events, "channel", f.channel),
        "customer_id": _first_text(events, "customer_id", ev, conversation, facts.begin, order),
        "agent_id": _words(events, "agent_id", f.agent),
        "team_id": _words(events, "team_id", f.team),
        "state": _labels(STATES, c.state),
        "resolved_at": _times(c.resolved_at),
        "first_resolved_at": _times(c.first_resolved_at),
        "is_handled": pa.array(is_handled),
        "is_resolution_inferred": pa.array(c.is_inferred),
        "is_first_contact_resolution": pa.array(f.is_first_contact_resolution, mask=~is_handled),
        "is_one_touch": pa.array(f.is_one_touch, mask=~is_handled),
        "reopen_count": pa.array(c.reopen_count),
        "first_response_seconds": _between(f.opened_at, f.first_response_at),
        "first_reply_seconds": _between(f.opened_at, f.first_reply_at),
        "answer_seconds": _between(
            np.maximum(f.opened_at, f.assigned_at), np.where(f.assigned_at == NEVER, NEVER, f.first_response_at)
        ),
        "resolution_seconds": _where_known(resolution, not_closed),
        "handle_seconds": _where_known(resolution + f.wrap_up_seconds, not_closed),
        "engaged_seconds": _where_known(f.engaged / 1e6 + f.wrap_up_seconds, not_closed),
        "hold_seconds": pa.array(c.hold / 1e6),
        "wrap_up_seconds": pa.array(f.wrap_up_seconds),
        "csat_score": _where_known(f.csat_score, np.isnan(f.csat_score)),
    }
    for name in ("topic", "subtopic", "priority", "language"):
        columns[name] = _words(events, name, _last_code(events, name, ev, conversation, count).take(order))
    for name in ("opened_at", "first_response_at", "first_reply_at", "handled_at", "rated_at", "last_event_at"):
        columns[name] = _times(getattr(f, name))
    for column in CONVERSATIONS.columns:
        if column.name not in columns:
            columns[column.name] = pa.array(getattr(f, column.name))
    return pa.table({column.name: columns[column.name] for column in CONVERSATIONS.columns}), row_of


def _in_order(vectors: Vectors, order: Rows) -> Vectors:
    """Vectors of conversations (Facts, LifeCycles) in another order; those of other things are left alone."""
    return replace(
        vectors,
        **{
            field.name: getattr(vectors, field.name).take(order)
            for field in fields(vectors)
            if not field.name.startswith("move_")
        },
    )


def _order_of_rows(events: pa.Table, ev: EventVectors, begin: Rows) -> Rows:
    """The conversations by started_at; by conversation_key where several began at the same instant."""
    started_at = ev.at[begin]
    order = np.argsort(started_at)
    ordered = started_at[order]
    twin = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.append(twin, False) | np.append(False, twin))
    if len(tied):
        keys = dense_codes(_conversation_keys(events, ev, begin[order[tied]]))
        order[tied] = order[tied][np.lexsort((keys, ordered[tied]))]
    return order


def turn_table(events: pa.Table, ev: EventVectors, conversations: pa.Table, row_of: Rows, turns: Turns) -> pa.Table:
    """Makes the rows of `turns`, in the order of their conversations, then turn_number.

    Args:
      events: columns of PARSED_EVENTS.
      ev: vectors of the events kept, none of them stray.
      conversations: the rows of `conversations`.
      row_of: the row of each conversation.
      turns: the turns.
    """
    own_row = row_of.take(turns.conversation)
    by = _grouped_by_row(own_row, conversations.num_rows)
    first, end, bot, outcome = (part.take(by) for part in (turns.first, turns.end, turns.bot, turns.outcome))
    parent = conversations.select(["conversation_key", "started_at"]).take(pa.array(own_row.take(by)))
    started, ended = ev.at.take(first), ev.at_or_never.take(end)
    unanswered = outcome != ANSWERED
    # (Of an unanswered turn every bit is set: -1.)
    agent = ev.agent.take(end) | -unanswered.astype(np.int32)
    columns = {
        "conversation_key": parent["conversation_key"],
        "started_at": parent["started_at"],
        "turn_number": pa.array(turns.number.take(by)),
        "account_id": _words(events, "account_id", ev.account.take(first)),
        "channel": _words(events, "channel", ev.channel.take(first)),
        "turn_started_at": _times(started),
        "turn_ended_at": _times(ended),
        "bot_replied_at": _times(ev.at_or_never.take(bot)),
        "outcome": _labels(OUTCOMES, outcome),
        "agent_id": _words(events, "agent_id", agent),
        "message_count": pa.array(turns.message_count.take(by)),
        "is_responded": pa.array(turns.is_responded.take(by)),
        "needs_reply": pa.array(turns.needs_reply.take(by)),
        "wait_seconds": _where_known((ended - started) / 1e6, unanswered),
    }
    return pa.table({column.name: columns[column.name] for column in TURNS.columns})


def _grouped_by_row(own_row: Rows, rows: int) -> Rows:
    """The turns in the order of their conversations' rows; those of one conversation stand together already."""
    count = np.bincount(own_row, minlength=rows)
    first = np.zeros(rows, np.int64)
    begins = np.flatnonzero(np.diff(own_row, prepend=-1))
    first[own_row[begins]] = begins
    return np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(own_row))


def _conversation_keys(events: pa.Table, ev: EventVectors, begin: Rows) -> pa.Array:
    """conversation_key of each conversation: the compact JSON array of its key."""
    rows = ev.row.take(begin)
    keyed = ev.is_keyed.take(begin)
    if keyed.all():
        return _json_arrays(events, ("account_id", "conversation_id"), rows)
    known, others = np.flatnonzero(keyed), np.flatnonzero(~keyed)
    both = pa.concat_arrays(
        [
            _json_arrays(events, ("account_id", "conversation_id"), rows[known]),
            _json_arrays(events, ("account_id", "channel", "customer_id"), rows[others]),
        ]
    )
    place = np.empty(len(rows), np.int64)
    place[known], place[others] = np.arange(len(known)), np.arange(len(known), len(rows))
    return both.take(pa.array(place))


def _json_arrays(events: pa.Table, names: tuple[str, ...], rows: Rows) -> pa.Array:
    """Compact JSON arrays of the texts of some columns; only the last one may have a text of its own in each row."""
    *words, last = (one_chunk(events[name]) for name in names)
    heads = [_json_text(column, rows, "" if place else "[", ",") for place, column in enumerate(words)]
    text = plain(last.take(pa.array(rows)))
    if text.null_count or _has_special(text):
        return _joined(*heads, _quoted(text), "]")
    # Nearly always no text has to be escaped: one step puts the quotes around it and all the rest together.
    return _joined(*heads, '"', text, '"]')


def _joined(*parts: str | pa.Array) -> pa.Array:
    """Texts put together, row by row."""
    return pc.binary_join_element_wise(*(pa.scalar(p) if isinstance(p, str) else p for p in parts), "")


def _json_text(column: pa.DictionaryArray, rows: Rows, before: str, after: str) -> pa.Array:
    """Each word of some rows as a JSON string, or null, between two texts."""
    if len(column.dictionary) > len(rows):
        return _joined(before, _quoted(plain(column.take(pa.array(rows)))), after)
    # Null has the last place.
    words = _joined(before, pa.concat_arrays([_quoted(column.dictionary), pa.array(["null"])]), after)
    return words.take(pa.array(dictionary_codes(column).take(rows) % np.int32(len(words))))


def _quoted(values: pa.StringArray) -> pa.StringArray:
    quoted = pc.fill_null(_joined('"', values, '"'), "null")
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


def _last_code(events: pa.Table, name: str, ev: EventVectors, conversation: Codes, count: int) -> Codes:
    """The last non-null code of a column in each conversation, or -1."""
    codes = codes_of(events[name])
    out = np.full(count, -1, np.int32)
    if (codes >= 0).any():
        codes = codes.take(ev.row)
        named = np.flatnonzero(codes >= 0)
        out[conversation.take(named)] = codes.take(named)
    return out


def _first_text(
    events: pa.Table, name: str, ev: EventVectors, conversation: Codes, begin: Rows, order: Rows
) -> pa.Array:
    """The first non-null text of a column in each conversation, whose first events are given, in an order of them."""
    column = one_chunk(events[name])
    row = ev.row.take(begin)
    valid = valid_rows(column)
    lacking = ~valid.take(row)
    if lacking.any():
        row[lacking] = -1
        places = np.flatnonzero(lacking.take(conversation))
        named = chosen(places, valid.take(ev.row.take(places)))[::-1]
        row[conversation.take(named)] = ev.row.take(named)
    row = row.take(order)
    return plain(column.take(pa.array(row, mask=row < 0)))


def _words(events: pa.Table, name: str, codes: npt.NDArray[np.integer]) -> pa.DictionaryArray:
    """Text of a dictionary column by code; -1 is null."""
    return words_by_code(codes.astype(np.int32, copy=False), one_chunk(events[name]).dictionary)


def _labels(words: tuple[str, ...], codes: npt.NDArray[np.integer]) -> pa.DictionaryArray:
    return words_by_code(codes.astype(np.int32), pa.array(words))


def _times(at: Rows) -> pa.Array:
    """Instants as timestamps; NEVER is null."""
    return _where_known(at, at == NEVER, TIMESTAMP)


def _between(start: Rows, end: Rows) -> pa.Array:
    """Seconds from start to end; null where the end never was."""
    return _where_known((end - start) / 1e6, end == NEVER)


def _where_known(values: npt.NDArray[Any], unknown: Mask, kind: pa.DataType | None = None) -> pa.Array:
    """An Arrow array over the values; null where they are not known, whatever stands there."""
    valid = pa.py_buffer(np.packbits(~unknown, bitorder="little")) if unknown.any() else None
    return pa.Array.from_buffers(kind or pa.float64(), len(values), [valid, pa.py_buffer(values)])
