"""Checks of the numbers of a result: KPIs follow from statistics, and statistics from conversations and turns.

Sums are compared as whole millionths and as fingerprints of histograms (each bucket's hash times its count): exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sinks.agreement import Verdict
from sinks.readings import Reading
from transforms.definitions import KPIS, STATISTICS, Kpi
from transforms.tables import KPI_STATISTICS, KPI_TABLE, MILLIONTHS, RUNS

_HISTOGRAMS = tuple(s.name for s in STATISTICS if s.kind == "histogram")
EXACT = {s.name: MILLIONTHS.get(s.name, s.name) for s in STATISTICS if s.kind != "histogram"}
"""Statistics that are numbers, and the column that has each exactly."""

_ONE_BASIS = ("backlog", "waiting")
"""Beginnings of the names of statistics that exist on the activity basis only."""

_BUCKET_ERROR = 0.008
"""How far the middle of a bucket is from a value in it, at most, as a part of the value."""

PARTS = "statistics_to_add"
"""A table of the session: kpi_statistics with numbers as they are added up, and a fingerprint for each histogram."""

_COLUMNS = (*EXACT.values(), *_HISTOGRAMS)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in _COLUMNS)
_SAME_KEY = " AND ".join(f"s.{name} IS NOT DISTINCT FROM k.{name}" for name in KPI_TABLE.key)


def prepare_parts(reading: Reading) -> None:
    """Makes PARTS in the session, once."""
    fingerprints = (
        f"coalesce(list_sum(list_transform({name}, lambda e: e.count::HUGEINT * hash(e.bucket))), 0) AS {name}"
        for name in _HISTOGRAMS
    )
    columns = ", ".join((*KPI_STATISTICS.key, *EXACT.values(), *fingerprints))
    reading.rows(f"CREATE TEMP TABLE IF NOT EXISTS {PARTS} AS SELECT {columns} FROM {KPI_STATISTICS.name}")


def check_statistics(reading: Reading) -> Verdict:
    """In each row sums are their whole millionths, and a histogram has as many values as its count, and their mean."""
    tests = {
        f"{name} is not its millionths": f"{name} <> {column}::DOUBLE / 1e6" for name, column in MILLIONTHS.items()
    }
    for histogram, total, count in _histograms():
        sizes = f"coalesce(list_sum(list_transform({histogram}, lambda e: e.count)), 0)"
        seconds = f"coalesce(list_sum(list_transform({histogram}, lambda e: e.count * bucket_seconds(e.bucket))), 0)"
        tests[f"{histogram} has not {count} values"] = f"{sizes} <> {count}"
        tests[f"{histogram} does not fit {total}"] = f"abs({seconds} - {total}) > {_BUCKET_ERROR} * {total} + 1e-6"
    counts = _counts(list(tests.values()), window_named("{}"))
    found = reading.row(f"SELECT count(*) AS windows, {counts} FROM {KPI_STATISTICS.name}")
    problems = [
        f"{found[f'c{i}']:,} rows: {what}, such as {found[f'e{i}']}" for i, what in enumerate(tests) if found[f"c{i}"]
    ]
    return Verdict(f"{found['windows']:,} rows of sums and histograms", tuple(problems))


def check_bases(reading: Reading) -> Verdict:
    """Over all time both bases come to the same in each account; moves of backlog and waiting are on one only."""
    prepare_parts(reading)
    both = [name for name in _COLUMNS if not name.startswith(_ONE_BASIS)]
    differences = ", ".join(f"sum(CASE basis WHEN 'opened' THEN {name} ELSE -{name} END) AS {name}" for name in both)
    by_account = f"SELECT account_id, {differences} FROM {PARTS} WHERE grain = 'hour' GROUP BY ALL"
    tests = [f"{name} <> 0" for name in both]
    found = reading.row(
        f"SELECT count(*) AS accounts, {_counts(tests, account_named('account_id'))} FROM ({by_account})"
    )
    problems = [
        f"{name} differs in {found[f'c{i}']:,} accounts, such as {found[f'e{i}']}"
        for i, name in enumerate(both)
        if found[f"c{i}"]
    ]
    return Verdict(f"{len(both)} sums are the same on both, in {found['accounts']:,} accounts", tuple(problems))


def check_grains(reading: Reading) -> Verdict:
    """Hours add up to days over all time, and days to every week and month, for each basis, account and channel."""
    prepare_parts(reading)
    problems: list[str] = []
    for fine, coarse in (("hour", "day"), ("day", "week"), ("day", "month")):
        # A day has whole hours except where clocks change by less than one: those are compared over all time.
        start = "NULL" if fine == "hour" else "w.window_start"
        windows = f"(SELECT DISTINCT window_start FROM {PARTS} WHERE grain = '{coarse}')"
        join = "" if fine == "hour" else f"ASOF LEFT JOIN {windows} AS w ON f.window_start >= w.window_start"
        of_coarse = "NULL" if fine == "hour" else "window_start"
        fine_sums = ", ".join(f"sum(f.{name}) AS {name}" for name in _COLUMNS)
        differ = [f"a.{name} IS DISTINCT FROM b.{name}" for name in _COLUMNS]
        of_start = "'all time'" if start == "NULL" else "strftime(coalesce(a.start, b.start), '%Y-%m-%d %H:%M')"
        of_group = (
            f"concat(coalesce(a.basis, b.basis), ' basis, ', {of_start}, ', ', "
            f"{account_named('coalesce(a.account_id, b.account_id)')}, ', channel ', coalesce(a.channel, b.channel))"
        )
        found = reading.row(
            f"""WITH a AS (
              SELECT basis, {start} AS start, account_id, channel, {fine_sums} FROM {PARTS} AS f {join}
              WHERE grain = '{fine}' GROUP BY ALL
            ), b AS (
              SELECT basis, {of_coarse} AS start, account_id, channel, {_SUMS} FROM {PARTS}
              WHERE grain = '{coarse}' GROUP BY ALL
            )
            SELECT {_counts(differ, of_group)} FROM a FULL JOIN b ON a.basis = b.basis AND a.channel = b.channel
              AND a.start IS NOT DISTINCT FROM b.start AND a.account_id IS NOT DISTINCT FROM b.account_id"""
        )
        problems += [
            f"{name} of {found[f'c{i}']:,} {coarse}s is not that of their {fine}s, such as {found[f'e{i}']}"
            if start != "NULL"
            else f"{name} of all {coarse}s is not that of all {fine}s, such as {found[f'e{i}']}"
            for i, name in enumerate(_COLUMNS)
            if found[f"c{i}"]
        ]
    return Verdict(f"{len(_COLUMNS)} sums of hours, days, weeks and months", tuple(problems))


def check_kpis(reading: Reading) -> Verdict:
    """Every row and value of kpis follows from kpi_statistics, to the last bit, and is_complete from as_of."""
    values = [kpi for kpi in KPIS if kpi.kind not in ("percentile", "running")]
    differ = [f"k.{kpi.name} IS DISTINCT FROM {_value(kpi)}" for kpi in values]
    as_of = f"(SELECT arg_max(as_of, commit_id) FROM {RUNS.name})"
    differ.append(f"k.is_complete IS DISTINCT FROM (k.window_end <= {as_of})")
    differ.append("k.channel IS NULL OR s.channel IS NULL OR k.window_end <> s.window_end")
    names = [*(kpi.name for kpi in values), "is_complete", "window"]
    joined = f"{KPI_STATISTICS.name} AS s FULL JOIN {KPI_TABLE.name} AS k ON {_SAME_KEY}"
    counts = _counts(differ, window_named("coalesce(k.{0}, s.{0})"))
    found = reading.row(f"SELECT count(*) AS windows, {counts} FROM {joined}")
    wrong = {name: (found[f"c{i}"], found[f"e{i}"]) for i, name in enumerate(names)}
    for histogram in _HISTOGRAMS:
        wrong |= _wrong_percentiles(reading, histogram, joined)
    problems = [
        f"{name} of {count:,} windows does not follow, such as {example}"
        for name, (count, example) in wrong.items()
        if count
    ]
    return Verdict(f"{len(wrong) - 1} values of {found['windows']:,} windows", tuple(problems))


def _wrong_percentiles(reading: Reading, histogram: str, joined: str) -> dict[str, tuple[int, str | None]]:
    """In how many windows a percentile is not the bucket that its rank falls into, and one of them."""
    kpis = [kpi for kpi in KPIS if kpi.kind == "percentile" and kpi.numerator == histogram]
    if not kpis:
        return {}
    names = ", ".join(kpi.name for kpi in kpis)
    empty = [f"len({histogram}) = 0 AND k.{kpi.name} IS NOT NULL" for kpi in kpis]
    named = window_named("coalesce(k.{0}, s.{0})")
    without = reading.row(f"SELECT {_counts(empty, named)} FROM {joined}")
    # The rank lies above all that is below the value, and not above all that is up to it; a null is never right.
    ranks = ", ".join(
        f"(sum(count) * {round((kpi.quantile or 0) * 100)} + 99) // 100 AS rank{i}, "
        f"coalesce(sum(count) FILTER (seconds < {kpi.name}), 0) AS below{i}, "
        f"coalesce(sum(count) FILTER (seconds <= {kpi.name}), 0) AS upto{i}"
        for i, kpi in enumerate(kpis)
    )
    wrong = [f"NOT (below{i} < rank{i} AND rank{i} <= upto{i})" for i in range(len(kpis))]
    found = reading.row(
        f"""WITH windows AS (
          SELECT row_number() OVER () AS place, {named} AS named, s.{histogram} AS entries, {names} FROM {joined}
        ), entries AS (
          SELECT * EXCLUDE (bucket), bucket_seconds(bucket) AS seconds
          FROM (SELECT * EXCLUDE (entries), unnest(entries, recursive := true) FROM windows)
        )
        SELECT {_counts(wrong, "named")}
        FROM (SELECT place, any_value(named) AS named, {ranks} FROM entries GROUP BY place)"""
    )
    return {
        kpi.name: (without[f"c{i}"] + found[f"c{i}"], without[f"e{i}"] or found[f"e{i}"]) for i, kpi in enumerate(kpis)
    }


def _value(kpi: Kpi) -> str:
    """SQL of a KPI that is no percentile, over a row of kpi_statistics called s, in the operations that made it."""

    def exact(name: str) -> str:
        column = f"s.{EXACT[name]}"
        return f"({column}::DOUBLE / 1e6)" if name in MILLIONTHS else column

    if kpi.kind == "count":
        return exact(kpi.numerator)
    assert kpi.denominator is not None
    if kpi.kind == "change":
        return f"CASE WHEN s.basis = 'activity' THEN {exact(kpi.numerator)} - {exact(kpi.denominator)} END"
    return f"({exact(kpi.numerator)}::DOUBLE / nullif({exact(kpi.denominator)}, 0))"


def _histograms() -> Iterator[tuple[str, str, str]]:
    """Each histogram, with the sum and the number of its values, told by the mean of the same duration."""
    means = {kpi.name.removeprefix("avg_"): kpi for kpi in KPIS if kpi.kind == "mean"}
    for histogram in _HISTOGRAMS:
        kpi = next(kpi for kpi in KPIS if kpi.numerator == histogram)
        mean = means[kpi.name.split("_", 1)[1]]
        assert mean.denominator is not None
        yield histogram, mean.numerator, mean.denominator


def account_named(sql: str) -> str:
    """SQL of an account as a reader knows it."""
    return f"concat('account ', coalesce({sql}, 'null'))"


def window_named(column: str) -> str:
    """SQL of a window as a reader knows it.

    Args:
      column: SQL of a key column, {} or {0} standing for its name.
    """
    basis, grain, start, account, channel = (column.format(name) for name in KPI_TABLE.key)
    at = f"strftime({start}, '%Y-%m-%d %H:%M')"
    return f"concat({grain}, ' ', {at}, ', ', {basis}, ' basis, ', {account_named(account)}, ', channel ', {channel})"


def _counts(tests: Sequence[str], named: str) -> str:
    """SQL that counts how often each of some tests holds, as c0, c1 and so on, and names a row of each, as e0, e1."""
    return ", ".join(
        f"count(*) FILTER ({test}) AS c{i}, min({named}) FILTER ({test}) AS e{i}" for i, test in enumerate(tests)
    )
