"""The reference gives every golden case, and keeps the laws of the contract on random worlds."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import golden
import pytest
import reference
import worlds

from transforms.definitions import KPIS, STATISTIC_NAMES
from transforms.settings import ChannelSettings, Settings
from transforms.tables import CONVERSATIONS, TURNS, WINDOW

SEEDS = range(60)
HOUR = 3_600_000_000
DAY = 24 * HOUR


def at(text: str) -> int:
    """A UTC moment in microseconds since the epoch."""
    return golden.micros(text)


def test_golden_cases_are_there() -> None:
    """Says so where the cases are not beside the checkout."""
    if not golden.cases():
        pytest.skip(f"no golden cases in {golden.FOLDER.name}/ beside the checkout")
    assert len(golden.cases()) == len({case.name for case in golden.cases()})


@pytest.mark.parametrize("case", golden.cases(), ids=lambda case: f"{case.parent.name}/{case.name}")
def test_golden_case(case: Path) -> None:
    """Every table and count of the case, percentiles exactly."""
    result = reference.run(golden.lines_of(case), golden.settings_of(case))
    assert golden.compare({**result.tables, "counts": result.counts}, case, percentile_error=0.0) == []


def test_columns_are_those_of_the_published_tables() -> None:
    """The reference has every column that the definitions name, no more."""
    result = reference.run(*worlds.clean_world(0))
    window = [column.name for column in WINDOW]
    assert set(result.conversations[0]) == {column.name for column in CONVERSATIONS.columns}
    assert set(result.turns[0]) == {column.name for column in TURNS.columns}
    assert set(result.kpis[0]) == {*window, "is_complete", *(kpi.name for kpi in KPIS)}
    assert set(result.statistics[0]) == {*window, *STATISTIC_NAMES}


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("seed", range(3))
def test_bad_rows_have_their_reason(seed: int) -> None:
    """Each bad row is refused for what is wrong with it, at its first faulty column."""
    bad = worlds.bad_rows(random.Random(seed)) + worlds.debatable_bad_rows()
    result = reference.run([line for line, _, _ in bad], Settings())
    assert result.dead_letters == [(n, reason, column) for n, (_, reason, column) in enumerate(bad, 1)]
    assert {reason for _, reason, _ in bad} | {"conflicting_duplicate"} >= {r for _, r, _ in result.dead_letters}


@pytest.mark.parametrize(
    ("written", "micros"),
    [
        ('"2026-03-02T00:00:00Z"', 0),
        ('"2026-03-02 00:00Z"', 0),
        ('"2026-03-02T01:00:00+01:00"', 0),
        ('"2026-03-01T14:30:00.000001-09:30"', 1),
        ('"2026-03-02T00:00:00.1234569999Z"', 123_456),
        ('"2026-03-02T00:00:00.5Z"', 500_000),
        ("1772409600000", 0),
        ("1772409600000.0", 0),
        ("1772409600000.5", 500),
        ("1772409600000.001", 1),
        ("1.7724096e12", 0),
    ],
)
def test_times(written: str, micros: int) -> None:
    """A moment in its many notations."""
    line = f'{{"event_id":"1","event_type":"note","occurred_at":{written},"channel":"x","conversation_id":"c"}}'
    event = reference.parse(line.encode())
    assert event is not None
    assert event["occurred_at"] - at("2026-03-02T00:00:00Z") == micros


def test_written_times_mean_the_same_moment() -> None:
    """However a world writes a moment, it is read back to the microsecond."""
    rng = random.Random(1)
    moments = [0, worlds.END_OF_TIME - 1, at("2026-03-02T00:00:00Z")]
    moments += [rng.randrange(worlds.END_OF_TIME) for _ in range(50)]
    for moment in moments:
        for grain in (1, 125, 1_000, 1_000_000):
            for _ in range(20):
                rounded = moment // grain * grain
                assert reference.check_time(reread(worlds.written_time(rng, rounded))) == rounded


def reread(value: object) -> object:
    """A JSON value as the reference gets it."""
    return reference.WrittenFloat(repr(value)) if isinstance(value, float) else value


def test_as_of_before_the_last_event_is_refused() -> None:
    """as_of is not before the latest event kept."""
    event = {"event_id": "1", "event_type": "message", "occurred_at": 10, "channel": "x", "conversation_id": "c"}
    with pytest.raises(ValueError, match="as_of"):
        reference.run_events([event], Settings(as_of=9))
    assert reference.run_events([event], Settings(as_of=10)).counts["as_of"] == 10
    assert reference.run_events([], Settings()).counts["as_of"] is None


# ---------------------------------------------------------------------------------------------------------------------
# Windows and percentiles


def test_days_around_changes_of_clocks() -> None:
    """Days of 23, 24, 25 and no hours, from the first instant of the local date."""
    expected = {
        ("Europe/Berlin", date(2026, 3, 29)): ("2026-03-28T23:00:00Z", 23),
        ("Europe/Berlin", date(2026, 10, 25)): ("2026-10-24T22:00:00Z", 25),
        ("Asia/Kolkata", date(2026, 3, 1)): ("2026-02-28T18:30:00Z", 24),
        ("America/Sao_Paulo", date(2018, 11, 4)): ("2018-11-04T03:00:00Z", 23),
        ("America/Sao_Paulo", date(2018, 2, 17)): ("2018-02-17T02:00:00Z", 25),
        ("America/Havana", date(2026, 3, 8)): ("2026-03-08T05:00:00Z", 23),
        ("America/Havana", date(2026, 11, 1)): ("2026-11-01T04:00:00Z", 25),
        ("America/St_Johns", date(2006, 10, 28)): ("2006-10-28T02:30:00Z", 24),
        ("America/St_Johns", date(2006, 10, 29)): ("2006-10-29T02:30:00Z", 25),
        ("Australia/Lord_Howe", date(2026, 4, 5)): ("2026-04-04T13:00:00Z", 24.5),
        ("Pacific/Apia", date(2011, 12, 29)): ("2011-12-29T10:00:00Z", 24),
        ("Pacific/Apia", date(2011, 12, 30)): ("2011-12-30T10:00:00Z", 0),
        ("Pacific/Apia", date(2011, 12, 31)): ("2011-12-30T10:00:00Z", 24),
        ("Asia/Kathmandu", date(1986, 1, 1)): ("1985-12-31T18:30:00Z", 23.75),
    }
    for (zone, day), (start, hours) in expected.items():
        begins, ends = (reference.first_instant(zone, day + timedelta(days=n)) for n in (0, 1))
        assert (begins, ends - begins) == (at(start), hours * HOUR), (zone, day)


@pytest.mark.parametrize("place", sorted(set(worlds.PLACES)), ids=lambda place: f"{place[0]} {place[1]}")
def test_windows_hold_their_instants(place: tuple[str, str]) -> None:
    """Every instant around a change of clocks lies in its windows; days, weeks and months have no holes."""
    zone, near = place
    tz, start = ZoneInfo(zone), at(near + "Z")
    for instant in range(start - 2 * DAY, min(start + 3 * DAY, worlds.END_OF_TIME), 10 * 60_000_000 - 1):
        if instant < 0:
            continue
        found = reference.windows(zone, instant)
        local = (reference.EPOCH + timedelta(microseconds=instant)).astimezone(tz)
        for grain, (begins, ends) in found.items():
            assert begins <= instant < ends, (grain, local)
            if grain != "hour":
                assert reference.windows(zone, max(ends, 0))[grain][0] == ends
                first = (reference.EPOCH + timedelta(microseconds=begins)).astimezone(tz)
                before = (reference.EPOCH + timedelta(microseconds=begins - 1)).astimezone(tz)
                assert before.date() < first.date() <= local.date() + timedelta(days=1)
        # Nested: a day lies in one week and in one month.
        assert found["week"][0] <= found["day"][0] < found["day"][1] <= found["week"][1]
        assert found["month"][0] <= found["day"][0] < found["day"][1] <= found["month"][1]
        hour = (reference.EPOCH + timedelta(microseconds=found["hour"][0])).astimezone(local.tzinfo)
        shift = (local.utcoffset() or timedelta()) - (hour.utcoffset() or timedelta())
        assert (hour + shift).strftime("%M%S%f") == "0000000000"


def test_percentiles_are_nearest_rank() -> None:
    """The value whose rank is q * n, rounded up."""
    cell = reference.Cell(0)
    for count in (1, 2, 3, 9, 10, 11, 19, 20, 21, 100):
        cell.values["v"] = [float(n) for n in range(count, 0, -1)]
        for percent in (50, 90, 95):
            rank = next(rank for rank in range(1, count + 1) if rank * 100 >= percent * count)
            assert cell.percentile(percent, "v") == rank


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def test_worlds_use_the_rare_rules() -> None:
    """The worlds reach every noteworthy path, every reason and every outcome more than once."""
    paths: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for seed in range(150):
        result = reference.run(*worlds.world(seed))
        paths += result.paths
        reasons.update(reason for _, reason, _ in result.dead_letters)
        outcomes.update(turn["outcome"] for turn in result.turns)
        outcomes.update(conversation["state"] for conversation in result.conversations)
    assert min(paths[name] for name in PATHS) >= 5, paths
    assert min(reasons[reason] for reason in REASONS) >= 5, reasons
    assert min(outcomes[name] for name in ("answered", "resolved", "dismissed", "waiting", "open")) >= 20, outcomes


PATHS = (
    "begins after the silence limit",
    "begins after the gap",
    "beyond the gap but still waiting",
    "exactly at the silence limit",
    "1 us beyond the silence limit",
    "exactly at the gap",
    "1 us beyond the gap",
    "exactly at the gap of an inference",
    "1 us beyond the gap of an inference",
    "inferred",
    "explicit replaces inferred",
    "explicit replaces inferred, pending",
    "pending reopening",
    "pending, confirmed by human reply",
    "pending, confirmed by reopened",
    "pending, resolved",
    "pending, dismissed",
    "reopened from resolved",
    "reopened from dismissed",
    "first message after resolved",
    "dismissed resolves",
    "dismissed while not open",
    "handoff in a turn",
    "bot reply after a handoff",
    "due again",
    "hold",
    "repeat contact",
    "leaves the backlog by silence or successor",
    "leaves waiting by silence or successor",
)
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


@pytest.mark.parametrize("seed", SEEDS)
def test_worlds_are_reproducible_and_small(seed: int) -> None:
    """A seed is a world; without its bad rows the same tables come out."""
    lines, settings = worlds.world(seed)
    assert (lines, settings) == worlds.world(seed)
    assert 15 <= len(lines) <= 200
    clean, same_settings = worlds.clean_world(seed)
    result, clean_result = reference.run(lines, settings), reference.run(clean, same_settings)
    assert result.tables == clean_result.tables
    assert {reason for _, reason, _ in clean_result.dead_letters} <= {"conflicting_duplicate"}
    plain = reference.run(*worlds.clean_world(seed, duplicates=False))
    assert plain.counts["rows_read"] == plain.counts["events_kept"]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost(seed: int) -> None:
    """Rows read = events kept + dead letters + exact duplicates; kept = in conversations + stray."""
    counts = (result := reference.run(*worlds.world(seed))).counts
    assert counts["rows_read"] == counts["events_kept"] + counts["dead_letters"] + counts["exact_duplicates"]
    in_conversations = sum(conversation["event_count"] for conversation in result.conversations)
    assert counts["events_kept"] == in_conversations + counts["stray_events"]
    assert counts["turns"] == sum(conversation["turn_count"] for conversation in result.conversations)


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_arrival_means_nothing(seed: int) -> None:
    """Shuffled rows give the same tables and counts."""
    lines, settings = worlds.world(seed)
    result = reference.run(lines, settings)
    random.Random(seed).shuffle(lines)
    shuffled = reference.run(lines, settings)
    assert (shuffled.tables, shuffled.counts) == (result.tables, result.counts)


@pytest.mark.parametrize("seed", SEEDS)
def test_bases_and_grains_agree(seed: int) -> None:
    """Over all time every count and sum agrees between the bases (moves apart) and between the grains."""
    result = reference.run(*worlds.world(seed))
    totals: dict[tuple[str, str], Counter[str]] = {}
    for row in result.statistics:
        total = totals.setdefault((row["basis"], row["grain"]), Counter())
        for name in STATISTIC_NAMES:
            total[name] += len(row[name]) if isinstance(row[name], list) else round(row[name] * 1_000_000)
    for (basis, _), total in totals.items():
        for name, value in totals["activity", "hour"].items():
            if not name.startswith(("backlog_", "waiting_")):
                assert value == total[name], name
            elif basis == "activity":
                assert value == total[name], name
            else:
                assert total[name] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_kpis_follow_from_the_statistics(seed: int) -> None:
    """Each KPI is what its definition says of the statistics in the same row."""
    result = reference.run(*worlds.world(seed))
    assert len(result.kpis) == len(result.statistics)
    running: Counter[object] = Counter()
    for row, statistics in zip(result.kpis, result.statistics, strict=True):
        place = (row["grain"], row["account_id"], row["channel"])
        for kpi in KPIS:
            above: Any = statistics.get(kpi.numerator)
            below: Any = statistics[kpi.denominator] if kpi.denominator else None
            want: float | None
            if kpi.kind == "count":
                want = above
            elif kpi.kind in ("mean", "rate"):
                want = above / below if below else None
            elif kpi.kind == "percentile":
                rank = (round(100 * (kpi.quantile or 0)) * len(above) + 99) // 100
                want = above[rank - 1] if above else None
            elif row["basis"] == "opened":
                want = None
            elif kpi.kind == "change":
                want = above - below
            else:
                running[(kpi.name, *place)] += row[kpi.numerator]
                want = running[(kpi.name, *place)]
            assert golden.same(kpi.name, row[kpi.name], want, percentile_error=0.0), kpi.name


@pytest.mark.parametrize("seed", SEEDS)
def test_backlog_is_counted_from_the_facts(seed: int) -> None:
    """What is left in backlog and waiting at the end are open conversations and waiting turns that are not over."""
    lines, settings = worlds.world(seed)
    result = reference.run(lines, settings)
    changes: Counter[str] = Counter()
    for row in result.kpis:
        if row["basis"] == "activity" and row["grain"] == "hour":
            changes["backlog"] += row["backlog_change"]
            changes["waiting"] += row["waiting_change"]
            assert row["backlog_count"] >= 0
            assert row["waiting_count"] >= 0
    last = {row["conversation_key"]: row["started_at"] for row in result.conversations}
    still_open = [
        row
        for row in result.conversations
        if row["state"] == "open" and row["message_count"] and last[row["conversation_key"]] == row["started_at"]
    ]
    assert changes["backlog"] <= len(still_open)
    assert changes["waiting"] <= sum(
        turn["outcome"] == "waiting" and last[turn["conversation_key"]] == turn["started_at"] for turn in result.turns
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_do_not_touch_each_other(seed: int) -> None:
    """The events of one key alone give that key's conversations (as_of given, without repeat contacts)."""
    lines, settings = worlds.clean_world(seed)
    events = [event for event in map(reference.parse, lines) if event is not None]
    as_of = settings.as_of or max(event["occurred_at"] for event in events)
    settings = Settings(settings.default, settings.channels, None, settings.timezone, as_of)
    whole = reference.run_events(events, settings)
    by_key: dict[object, list[reference.Row]] = {}
    for event in events:
        by_key.setdefault(reference.key_of(event), []).append(event)
    parts = [reference.run_events(part, settings) for part in by_key.values()]
    assert (
        golden.compare_tables(
            {"conversations": [row for part in parts for row in part.conversations]},
            {"conversations": whole.conversations},
            tables=("conversations",),
        )
        == []
    )


# ---------------------------------------------------------------------------------------------------------------------
# The comparison itself


def test_comparison_sees_every_change() -> None:
    """Rows missing or too many, missing columns and changed values are differences; percentiles may be 1 % off."""
    result = reference.run(*worlds.clean_world(3))
    assert golden.compare_tables(result.tables, result.tables) == []
    for name, rows in result.tables.items():
        assert "row missing" in golden.compare_tables({**result.tables, name: rows[1:]}, result.tables)[0]
        assert "row too many" in golden.compare_tables(result.tables, {**result.tables, name: rows[1:]})[0]
        for column, value in rows[0].items():
            if column in golden.KEYS[name]:
                continue
            without = [{c: v for c, v in row.items() if c != column} for row in rows]
            excused = name == "kpis" and column.startswith(("backlog", "waiting"))
            assert bool(golden.compare_tables({**result.tables, name: without}, result.tables)) is not excused
            text = isinstance(value, str) or (value is None and not golden.TIME.fullmatch(column))
            other = "other" if text else (value or 0) + 1
            wrong = [{**rows[0], column: other}, *rows[1:]]
            assert len(golden.compare_tables({**result.tables, name: wrong}, result.tables)) == 1, column
            if value is not None:
                wrong = [{**rows[0], column: None}, *rows[1:]]
                assert len(golden.compare_tables({**result.tables, name: wrong}, result.tables)) == 1, column
    assert golden.same("p50_reply_seconds", 100.9, 100.0)
    assert not golden.same("p50_reply_seconds", 101.1, 100.0)
    assert not golden.same("avg_reply_seconds", 100.1, 100.0)
    assert not golden.same("avg_reply_seconds", float("nan"), None)
    assert not golden.same("reply_count", 0, None)
    assert not golden.same("reply_count", False, 0)


def test_comparison_takes_times_in_any_form() -> None:
    """Microseconds, aware datetimes and ISO text are the same moment."""
    row = {"conversation_key": "k", "started_at": at("2026-03-02T00:00:00Z")}
    for moment in (datetime(2026, 3, 2, tzinfo=UTC), "2026-03-02T00:00:00.000000Z", "2026-03-02T01:00:00+01:00"):
        ours = {"conversations": [{**row, "started_at": moment}]}
        assert golden.compare_tables(ours, {"conversations": [row]}, tables=("conversations",)) == []


def test_settings_of_a_case(tmp_path: Path) -> None:
    """A channel takes from the case's own defaults what it does not name."""
    text = '{"gap_seconds": 600, "channels": {"x": {"max_idle_seconds": 700.5}}, "as_of": "1970-01-01T00:00:01Z"}'
    (tmp_path / "settings.json").write_text(text)
    settings = golden.settings_of(tmp_path)
    assert settings.default == ChannelSettings(gap=600_000_000)
    assert settings.channels == {"x": ChannelSettings(gap=600_000_000, max_idle=700_500_000)}
    assert settings.as_of == 1_000_000
