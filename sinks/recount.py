"""Counts conversations and turns again, and compares each day with kpi_statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sinks.agreement import Verdict
from sinks.arithmetic import EXACT, PARTS, account_named, prepare_parts
from sinks.fact_values import (
    AT_ITS_END,
    ENGAGED,
    MESSAGES,
    MESSAGES_OF_TURNS,
    OF_CONVERSATIONS,
    RESOLVED,
    Values,
)
from sinks.readings import Reading
from sinks.sql import sql_text
from transforms.tables import CONVERSATIONS, RUNS, TURNS

_AT_OPENING = {name: value for values in OF_CONVERSATIONS.values() for name, value in values.items()} | MESSAGES
_TURNS_AT_OPENING = {**ENGAGED, **AT_ITS_END, **MESSAGES_OF_TURNS}
RECOUNTED = tuple(dict.fromkeys((*_AT_OPENING, *_TURNS_AT_OPENING)))
"""The statistics that can be counted again."""

_HOURS = "hours_of_days"
"""A table of the session: each hour of UTC, and the start of the day that it begins in and of the one that it ends in.

A day of a time zone may begin anywhere in an hour, but no two begin in the same one. A join with hours is many times
faster than looking for the latest start before each moment.
"""


def check_facts(reading: Reading) -> Verdict:
    """Each day's statistics are those of its conversations and turns, as far as these tell them; exactly."""
    prepare_parts(reading)
    reading.rows(
        f"""CREATE OR REPLACE TEMP TABLE {_HOURS} AS
        WITH starts AS (SELECT DISTINCT window_start FROM {PARTS} WHERE grain = 'day'),
        hours AS (
          SELECT unnest(range(min(epoch_us(window_start)) // 3_600_000_000,
            max(epoch_us(window_start)) // 3_600_000_000 + 48)) AS hour FROM starts
        )
        SELECT hour, a.window_start AS day_before, b.window_start AS day FROM hours
        ASOF LEFT JOIN starts AS a ON make_timestamptz(hour * 3_600_000_000) >= a.window_start
        ASOF LEFT JOIN starts AS b ON make_timestamptz(hour * 3_600_000_000 + 3_599_999_999) >= b.window_start"""
    )
    problems = _compare_days(
        reading,
        "opened",
        _conversations(reading, "opened_at", _AT_OPENING),
        _turns(reading, "opened_at", _TURNS_AT_OPENING),
    )
    for at, values in OF_CONVERSATIONS.items():
        of_turns = [_turns(reading, at, ENGAGED)] if at == "resolved_at" else []
        problems += _compare_days(reading, "activity", _conversations(reading, at, values), *of_turns)
    problems += _compare_days(reading, "activity", _added(TURNS.name, "turn_ended_at", AT_ITS_END))
    conversations, turns = (reading.rows(f"SELECT count(*) FROM {spec.name}")[0][0] for spec in (CONVERSATIONS, TURNS))
    found = f"{len(RECOUNTED)} statistics of each day, from {conversations:,} conversations and {turns:,} turns"
    return Verdict(found, tuple(problems))


def _conversations(reading: Reading, at: str, values: Values) -> tuple[str, Values]:
    """SQL of what conversations add to each day, account and channel, at one of their times; and to what."""
    return _added(f"(SELECT *, {_is_followed(reading)} AS is_followed FROM {CONVERSATIONS.name})", at, values)


def _turns(reading: Reading, at: str, values: Values) -> tuple[str, Values]:
    """The same of turns, at one of the times of their conversation and in its channel."""
    key = "hash(conversation_key, started_at) AS id"
    # The day is found once a conversation, not once a turn.
    conversations = f"SELECT {key}, day, account_id, channel, resolved_at, {RESOLVED} AS is_resolved"
    turns = f"SELECT * EXCLUDE (conversation_key, started_at, account_id, channel), {key} FROM {TURNS.name}"
    rows = f"({turns}) JOIN ({conversations} FROM {_placed(CONVERSATIONS.name, at)}) USING (id)"
    return _sums(rows, values), values


def _added(rows: str, at: str, values: Values) -> tuple[str, Values]:
    return _sums(_placed(rows, at), values), values


def _placed(rows: str, at: str) -> str:
    """SQL of rows with the start of the day of one of their times; those without it are left out."""
    return (
        f"(SELECT r.*, CASE WHEN {at} >= day THEN day ELSE day_before END AS day FROM {rows} AS r "
        f"LEFT JOIN {_HOURS} ON epoch_us({at}) // 3_600_000_000 = hour WHERE {at} IS NOT NULL)"
    )


def _sums(rows: str, values: Values) -> str:
    sums = ", ".join(f"sum({value}) AS {name}" for name, value in values.items())
    return f"SELECT day, account_id, channel, {sums} FROM {rows} GROUP BY ALL"


def _is_followed(reading: Reading) -> str:
    """SQL that tells of a channel whether resolutions are known or inferred there, by the settings of the last run."""
    text = reading.rows(f"SELECT arg_max(settings, commit_id) FROM {RUNS.name}")[0][0]
    settings = json.loads(text or "{}")

    def known(channel: Mapping[str, object]) -> str:
        return "true" if channel.get("has_life_cycle", True) or channel.get("infer_resolution") else "false"

    cases = "".join(f" WHEN {sql_text(name)} THEN {known(said)}" for name, said in settings.get("channel", {}).items())
    otherwise = known(settings.get("default", {}))
    return f"CASE channel{cases} ELSE {otherwise} END" if cases else otherwise


def _compare_days(reading: Reading, basis: str, *added: tuple[str, Values]) -> list[str]:
    """What is wrong with statistics of days, compared with all that rows add to them."""
    names = list(dict.fromkeys(name for _, values in added for name in values))
    parts = " UNION ALL BY NAME ".join(f"({sums})" for sums, _ in added)
    total = ", ".join(f"sum({name}) AS {name}" for name in names)
    named = (
        f"concat(strftime(coalesce(a.day, b.window_start), '%Y-%m-%d %H:%M'), ', ', "
        f"{account_named('coalesce(a.account_id, b.account_id)')}, ', channel ', coalesce(a.channel, b.channel))"
    )
    tests = {name: f"coalesce(a.{name}, 0) <> coalesce(b.{EXACT[name]}, 0)" for name in names}
    differ = ", ".join(
        f"count(*) FILTER ({test}) AS {name}, min({named}) FILTER ({test}) AS in_{name}" for name, test in tests.items()
    )
    found = reading.row(
        f"""WITH a AS (SELECT day, account_id, channel, {total} FROM ({parts}) GROUP BY ALL),
        b AS (FROM {PARTS} WHERE basis = '{basis}' AND grain = 'day')
        SELECT {differ} FROM a FULL JOIN b ON a.day = b.window_start AND a.channel = b.channel
          AND a.account_id IS NOT DISTINCT FROM b.account_id"""
    )
    return [
        f"{name} of {found[name]:,} days by account and channel is not what they tell ({basis} basis), such as "
        f"{found[f'in_{name}']}"
        for name in names
        if found[name]
    ]
