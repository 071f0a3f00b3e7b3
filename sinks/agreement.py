"""Checks of the rows of a result: both copies say the same, keys are unique, and nothing was lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from sinks.manifest import Manifest
from sinks.output_folder import WAREHOUSE
from sinks.readings import Reading
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_CHANGES,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TABLES,
    TURNS,
    Table,
)

FULL = "batch"
"""The kind of a run that makes a result anew; the runs after it add to that."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
      found: what there is, where all is well.
      problems: what is wrong; nothing where all is well.
      left_out: why some of it could not be looked at.
    """

    found: str
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def check_columns(reading: Reading) -> Verdict:
    """Every table is there in both copies, with the columns and types of this version."""
    return Verdict(f"{len(TABLES)} tables, as they should be", tuple(reading.columns), _left_out(reading, TABLES))


def check_rows(reading: Reading, manifest: Manifest | None) -> Verdict:
    """Each table has as many rows in Parquet as in DuckDB and in the manifest."""
    problems, total = [], 0
    for spec in TABLES:
        counts = {
            copy: reading.rows(f"SELECT count(*) FROM {source}")[0][0]
            for copy, source in (("Parquet", reading.of_parquet(spec)), ("DuckDB", reading.of_warehouse(spec)))
            if (copy.lower(), spec.name) not in reading.unusable
        }
        if manifest is not None:
            counts["the manifest"] = sum(entry.rows or 0 for entry in manifest.of_table(spec.name).values())
            if ("parquet", spec.name) not in reading.unusable:
                problems += _rows_of_files(reading, manifest, spec)
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count:,} in {where}" for where, count in counts.items())
            problems.append(f"{spec.name} has {said}")
        total += max(counts.values(), default=0)
    return Verdict(f"{total:,} in {len(TABLES)} tables", tuple(problems), _left_out(reading, TABLES))


def compare_copies(reading: Reading) -> Verdict:
    """Parquet and DuckDB have the same rows, whatever their order.

    Sums of 64-bit hashes of whole rows are compared: a changed value is missed once in 10 ** 19.
    """
    problems, total = [], 0
    for spec in TABLES:
        if any((copy, spec.name) in reading.unusable for copy in ("parquet", "duckdb")):
            continue
        columns = ", ".join(spec.schema.names)
        sums = f"SELECT count(*), coalesce(sum(hash({columns})), 0) FROM"
        found, expected = (reading.rows(f"{sums} {source}")[0] for source in _copies(reading, spec))
        if found != expected:
            problems.append(_describe_difference(reading, spec))
        total += found[0]
    return Verdict(f"{total:,} rows of DuckDB are those of Parquet", tuple(problems), _left_out(reading, TABLES))


def check_keys(reading: Reading) -> Verdict:
    """No two rows of a table have the same key; null is a value."""
    problems, left_out = [], []
    for spec in TABLES:
        if (why := reading.why_not(spec)) is not None:
            left_out.append(why)
            continue
        keys = ", ".join(spec.key)
        if reading.rows(f"SELECT count(*) - count(DISTINCT hash({keys})) FROM {spec.name}")[0][0]:
            twice = reading.rows(f"SELECT {keys}, count(*) FROM {spec.name} GROUP BY ALL HAVING count(*) > 1 LIMIT 1")
            for *key, count in twice:
                problems.append(f"{spec.name} has {count:,} rows with {_named(spec, key)}")
    return Verdict(f"unique in {len(TABLES)} tables", tuple(problems), tuple(left_out))


def check_turns(reading: Reading) -> Verdict:
    """Every turn has its conversation, which has as many turns and messages as it says, numbered from 1."""
    found = reading.row(
        f"""WITH t AS (
          SELECT hash(conversation_key, started_at) AS id, any_value(conversation_key) AS conversation_key,
            count(*) AS n, sum(message_count) AS messages, min(turn_number) AS low, max(turn_number) AS high,
            count(DISTINCT hash(account_id)) AS accounts, min(hash(account_id)) AS account
          FROM {TURNS.name} GROUP BY id
        ), c AS (
          SELECT hash(conversation_key, started_at) AS id, conversation_key, turn_count, message_count,
            hash(account_id) AS account
          FROM {CONVERSATIONS.name}
        )
        SELECT count(c.id) AS conversations, coalesce(sum(n), 0) AS turns,
          count(*) FILTER (c.id IS NULL) AS orphans, min(t.conversation_key) FILTER (c.id IS NULL) AS an_orphan,
          count(*) FILTER (turn_count <> coalesce(n, 0)) AS counts,
          min(c.conversation_key) FILTER (turn_count <> coalesce(n, 0)) AS a_count,
          count(*) FILTER (message_count <> coalesce(messages, 0)) AS messages,
          min(c.conversation_key) FILTER (message_count <> coalesce(messages, 0)) AS a_messages,
          count(*) FILTER (low <> 1 OR high <> n) AS numbers,
          min(t.conversation_key) FILTER (low <> 1 OR high <> n) AS a_number,
          count(*) FILTER (accounts <> 1 OR t.account <> c.account) AS accounts,
          min(t.conversation_key) FILTER (accounts <> 1 OR t.account <> c.account) AS an_account
        FROM c FULL JOIN t USING (id)"""
    )
    problems = [
        f"{found[what]:,} {sentence}, such as {found[example]}"
        for what, example, sentence in (
            ("orphans", "an_orphan", "conversations of turns are not there"),
            ("counts", "a_count", "conversations have another number of turns than their turn_count"),
            (
                "messages",
                "a_messages",
                "conversations have another number of messages in turns than their message_count",
            ),
            ("numbers", "a_number", "conversations have turns that are not numbered from 1 on"),
            ("accounts", "an_account", "conversations have turns of another account"),
        )
        if found[what]
    ]
    return Verdict(f"{found['turns']:,} turns of {found['conversations']:,} conversations", tuple(problems))


def check_conservation(reading: Reading) -> Verdict:
    """Nothing was lost: rows read = events kept + dead letters + exact duplicates + late events, in every run.

    And the tables have what the runs since the last full one counted.
    """
    lost = reading.rows(
        f"""SELECT commit_id, rows_read_count,
          events_kept_count + dead_letter_count + exact_duplicate_count + late_event_count AS told
        FROM {RUNS.name} WHERE rows_read_count <> told ORDER BY commit_id"""
    )
    problems = [f"commit {commit} read {read:,} rows, of which it tells {told:,}" for commit, read, told in lost]
    since = (
        f"(FROM {RUNS.name} WHERE commit_id >= (SELECT coalesce(max(commit_id), 0) FROM {RUNS.name} "
        f"WHERE kind = '{FULL}'))"
    )
    of_runs = reading.row(
        f"""SELECT sum(rows_read_count) AS rows_read, sum(dead_letter_count) AS dead_letters,
          sum(late_event_count) AS late_events, sum(events_kept_count) AS events_kept,
          sum(stray_event_count) AS stray_events, arg_max(conversation_count, commit_id) AS conversations,
          arg_max(turn_count, commit_id) AS turns, list(dead_letters_by_reason) AS by_reason
        FROM {since}"""
    )
    in_tables = {
        spec.name: reading.rows(f"SELECT count(*) FROM {spec.name}")[0][0]
        for spec in (DEAD_LETTERS, LATE_EVENTS, CONVERSATIONS, TURNS)
    }
    in_tables["events_kept"] = reading.rows(
        f"SELECT coalesce(sum(event_count), 0) + {of_runs['stray_events'] or 0} FROM {CONVERSATIONS.name}"
    )[0][0]
    problems += [
        f"{name.replace('_', ' ')}: {count:,} in the tables, {of_runs[name] or 0:,} by the runs"
        for name, count in in_tables.items()
        if count != (of_runs[name] or 0)
    ]
    reasons: Counter[str] = Counter()
    for text in of_runs["by_reason"] or ():
        reasons.update(json.loads(text))
    found = dict(reading.rows(f"SELECT reason, count(*) FROM {DEAD_LETTERS.name} GROUP BY reason"))
    problems += [
        f"dead letters for {reason}: {found.get(reason, 0):,} in the table, {reasons[reason]:,} by the runs"
        for reason in sorted(reasons.keys() | found)
        if found.get(reason, 0) != reasons[reason]
    ]
    return Verdict(
        f"{of_runs['rows_read'] or 0:,} rows read, {of_runs['events_kept'] or 0:,} events kept", tuple(problems)
    )


def check_history(reading: Reading) -> Verdict:
    """Each row of kpis was made by a known commit, and kpi_changes has every revision before its own."""
    key = ", ".join(KPI_TABLE.key)
    found = reading.row(
        f"""WITH changes AS (
          SELECT {key}, count(*) AS earlier, max(revision) AS highest, count(DISTINCT revision) AS different
          FROM {KPI_CHANGES.name} GROUP BY ALL
        ), now AS (
          SELECT hash({key}) AS id, revision, changed_at FROM {KPI_TABLE.name}
        ), of_changes AS (SELECT hash({key}) AS id, earlier, highest, different FROM changes)
        SELECT count(id) AS windows, coalesce(sum(revision > 1), 0) AS restated,
          count(*) FILTER (revision <> coalesce(highest, 0) + 1 OR revision <> coalesce(earlier, 0) + 1) AS revisions,
          count(*) FILTER (changed_at NOT IN (SELECT committed_at FROM {RUNS.name})) AS commits
        FROM now LEFT JOIN of_changes USING (id)"""
    )
    unknown = reading.rows(
        f"""SELECT count(*) FROM {KPI_CHANGES.name} AS c LEFT JOIN {RUNS.name} AS r USING (commit_id)
        WHERE r.committed_at IS DISTINCT FROM c.replaced_at
        OR c.changed_at NOT IN (SELECT committed_at FROM {RUNS.name})"""
    )[0][0]
    numbers = reading.row(f"SELECT count(*) AS runs, coalesce(max(commit_id), 0) AS last FROM {RUNS.name}")
    problems = [
        sentence
        for count, sentence in (
            (found["revisions"], f"{found['revisions']:,} windows have revisions that kpi_changes does not explain"),
            (found["commits"], f"{found['commits']:,} windows were changed by a commit that is not in runs"),
            (unknown, f"{unknown:,} rows of kpi_changes name a commit that is not in runs"),
            (numbers["runs"] == 0, "there is no run"),
        )
        if count
    ]
    return Verdict(
        f"{numbers['runs']:,} runs, {found['restated']:,} of {found['windows']:,} windows restated", tuple(problems)
    )


def _copies(reading: Reading, spec: Table) -> tuple[str, str]:
    return reading.of_warehouse(spec), reading.of_parquet(spec)


def _left_out(reading: Reading, specs: tuple[Table, ...]) -> tuple[str, ...]:
    """Why copies of some tables cannot be looked at, each reason once."""
    reasons = [
        reading.unusable[copy, spec.name]
        for spec in specs
        for copy in ("parquet", "duckdb")
        if (copy, spec.name) in reading.unusable
    ]
    return tuple(dict.fromkeys(reasons))


def _rows_of_files(reading: Reading, manifest: Manifest, spec: Table) -> Iterator[str]:
    """Files of a table that have another number of rows than the manifest says."""
    for path, entry in manifest.of_table(spec.name).items():
        rows = pq.read_metadata(reading.snapshot / path).num_rows
        if rows != entry.rows:
            yield f"{path} has {rows:,} rows, and {entry.rows or 0:,} in the manifest"


def _describe_difference(reading: Reading, spec: Table) -> str:
    """How the copies of a table differ: how many rows, one of them, and in which columns."""
    keys = ", ".join(spec.key)
    warehouse, parquet = _copies(reading, spec)
    alone = (
        f"FROM {{}} AS a WHERE NOT EXISTS (FROM {{}} AS b WHERE hash({_each(spec, 'a')}) = hash({_each(spec, 'b')}))"
    )
    counts = [
        reading.rows(f"SELECT count(*) {alone.format(*pair)}")[0][0]
        for pair in ((parquet, warehouse), (warehouse, parquet))
    ]
    first, second = (parquet, warehouse) if counts[0] else (warehouse, parquet)
    example = reading.rows(f"SELECT {keys} {alone.format(first, second)} LIMIT 1")
    per_column = ", ".join(f"sum(hash({name}))" for name in spec.schema.names)
    sums = [reading.rows(f"SELECT {per_column} FROM {source}")[0] for source in (parquet, warehouse)]
    differing = [name for name, a, b in zip(spec.schema.names, *sums, strict=True) if a != b]
    where = f" in {', '.join(differing[:3])}{' and more' if len(differing) > 3 else ''}" if differing else ""
    such_as = f", such as the one with {_named(spec, example[0])}" if example else ""
    only = f"{counts[0]:,} rows are in Parquet only, {counts[1]:,} in {WAREHOUSE} only"
    return f"{spec.name} differs{where}: {only}{such_as}"


def _each(spec: Table, of: str) -> str:
    """All columns of a table under a name."""
    return ", ".join(f"{of}.{name}" for name in spec.schema.names)


def _named(spec: Table, key: object) -> str:
    """A key as a reader knows it."""
    assert isinstance(key, list | tuple)
    return ", ".join(f"{name} {value}" for name, value in zip(spec.key, key, strict=False))
