"""Macros and `waiting_now`: against stored KPIs, against facts in plain SQL, in two zones whose clocks change."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from results import copy_of_result, snapshot_of
from test_duckdb import NOON, build, reading, rows_of, run_row

from fixtures.generate import write_events
from pipelines.batch import run
from pipelines.options import BatchOptions
from pipelines.settings import load_settings
from sinks.credit import CREDITED
from sinks.macros import MACROS
from sinks.rebuild import rebuild
from transforms.definitions import KPIS

NAMES = [kpi.name for kpi in KPIS]
ALL_TIME = "'2026-01-01', '2027-01-01'"
BERLIN, LORD_HOWE = "Europe/Berlin", "Australia/Lord_Howe"
CHANGES = {BERLIN: date(2026, 3, 29), LORD_HOWE: date(2026, 4, 5)}
"""The days on which clocks change, by an hour on and by half an hour back."""

COUNTED = [kpi.name for kpi in KPIS if kpi.kind == "count"]


@pytest.fixture(scope="module", params=CHANGES)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A zone, and the result of generated events of twenty days in it; one of three accounts is null."""
    root = tmp_path_factory.mktemp("result")
    [file] = write_events(root, events=6_000, format="ndjson", start=date(2026, 3, 20), days=20)
    file.write_text(file.read_text(encoding="utf-8").replace('"initech"', "null"), encoding="utf-8")
    settings = load_settings(None, {"timezone": request.param}, {}).settings
    run(BatchOptions(inputs=(str(file),), output=root / "output", settings=settings))
    yield request.param, root / "output" / "care.duckdb"


@pytest.fixture
def world(result: tuple[str, Path]) -> Iterator[tuple[str, duckdb.DuckDBPyConnection]]:
    """The zone, and the warehouse opened in a session of another one."""
    with reading(result[1]) as warehouse:
        yield result[0], warehouse


World = tuple[str, duckdb.DuckDBPyConnection]


def literal(moment: datetime) -> str:
    """A moment as SQL."""
    return f"TIMESTAMPTZ '{moment.isoformat()}'"


def only_kpis(row: dict[str, Any], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The KPIs of a row."""
    return {name: row[name] for name in NAMES if name not in left_out}


def nearly(row: dict[str, Any]) -> dict[str, Any]:
    """A row to compare with, whose fractions may differ by rounding."""
    return {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k, v in row.items()}


def test_there_is_a_null_account(world: World) -> None:
    """What the other tests stand on: three accounts, one null, and eight channels."""
    rows = world[1].sql("SELECT count(DISTINCT account_id), count(*) FILTER (account_id IS NULL) FROM conversations")
    [(accounts, of_null)] = rows.fetchall()
    assert accounts == 2 and of_null > 50


@pytest.mark.parametrize("basis", ["activity", "opened"])
@pytest.mark.parametrize("grain", ["day", "week", "month", "hour"])
def test_windows_are_those_of_kpis(world: World, basis: str, grain: str) -> None:
    """Over each calendar window every KPI of each account and channel is the stored one, on days of changes too."""
    zone, warehouse = world
    stored = defaultdict(dict)
    for row in rows_of(warehouse, f"FROM kpis WHERE basis = '{basis}' AND grain = '{grain}'"):
        stored[row["window_start"], row["window_end"]][row["account_id"], row["channel"]] = row
    change = datetime(*CHANGES[zone].timetuple()[:3], tzinfo=ZoneInfo(zone))
    near = [window for window in stored if abs(window[0] - change) < timedelta(hours=30)]
    windows = (near if grain == "hour" else list(stored))[:12]
    assert windows
    for start, end in windows:
        # Hours of a change of half an hour overlap: the end is that of the next hour's beginning.
        end = min(end, min((s for s, _ in stored if s > start), default=end)) if grain == "hour" else end
        found = rows_of(
            warehouse,
            f"FROM kpis_by_account_and_channel({literal(start)}, {literal(end)}, basis := '{basis}')",
        )
        by_place = {(row["account_id"], row["channel"]): row for row in found}
        assert len(by_place) == len(found)
        for place, row in next(v for k, v in stored.items() if k[0] == start).items():
            assert only_kpis(by_place[place]) == only_kpis(row)
        for place in by_place.keys() - next(v for k, v in stored.items() if k[0] == start).keys():
            assert not any(by_place[place][name] for name in COUNTED)


@pytest.mark.parametrize("basis", ["activity", "opened"])
def test_all_together(world: World, basis: str) -> None:
    """kpis_between is kpis_all_channels for each of its days, with backlog and waiting."""
    _, warehouse = world
    for row in rows_of(warehouse, f"FROM kpis_all_channels WHERE basis = '{basis}' AND grain = 'day'"):
        start, end = literal(row["window_start"]), literal(row["window_end"])
        [found] = rows_of(warehouse, f"FROM kpis_between({start}, {end}, basis := '{basis}')")
        assert only_kpis(found) == only_kpis(row)
        assert (found["window_start"], found["window_end"]) == (row["window_start"], row["window_end"])


@pytest.mark.parametrize(("start", "end"), [(3, 200), (11, 16), (170, 391), (0, 0), (9, 8)])
def test_any_hours(world: World, start: int, end: int) -> None:
    """A period that cuts days is what its hours come to, the backlog what all hours before its end come to."""
    zone, warehouse = world
    change = datetime(*CHANGES[zone].timetuple()[:3], tzinfo=ZoneInfo(zone)).astimezone(UTC)
    first, last = (literal(change + timedelta(hours=hours - 100)) for hours in (start, end))
    found = rows_of(warehouse, f"FROM kpis_by_channel({first}, {last})")
    assert len(found) == 8
    for row in found:
        hours = f"FROM kpi_statistics WHERE basis = 'activity' AND grain = 'hour' AND channel = '{row['channel']}'"
        within = f"{hours} AND window_start >= {first} AND window_start < {last}"
        [plain] = rows_of(
            warehouse,
            f"""SELECT coalesce(sum(message_count), 0)::BIGINT AS message_count,
              coalesce(sum(backlog_in_count - backlog_out_count), 0)::BIGINT AS backlog_change,
              sum(sum_reply_millionths) / 1e6 / nullif(sum(answered_turn_count), 0) AS avg_reply_seconds,
              histogram_percentile(merge_histograms(list(reply_histogram)), 0.95) AS p95_reply_seconds,
              sum(responded_message_count) / nullif(sum(needs_reply_message_count), 0) AS response_rate,
              (SELECT coalesce(sum(waiting_in_count - waiting_out_count), 0)::BIGINT {hours}
               AND window_start < {last}) AS waiting_count {within}""",
        )
        assert nearly(plain) == {name: row[name] for name in plain}


def test_choices(world: World) -> None:
    """Accounts and channels choose, null too; chosen parts are the rows of the breakdowns."""
    _, warehouse = world
    by_channel = {row["channel"]: row for row in rows_of(warehouse, f"FROM kpis_by_channel({ALL_TIME})")}
    [email] = rows_of(warehouse, f"FROM kpis_between({ALL_TIME}, channels := ['email'])")
    assert only_kpis(email) == only_kpis(by_channel["email"])
    by_account = {row["account_id"]: row for row in rows_of(warehouse, f"FROM kpis_by_account({ALL_TIME})")}
    assert set(by_account) == {None, "acme", "globex"}
    [none] = rows_of(warehouse, f"FROM kpis_between({ALL_TIME}, accounts := [NULL])")
    assert only_kpis(none) == only_kpis(by_account[None])
    [two] = rows_of(warehouse, f"FROM kpis_between({ALL_TIME}, accounts := [NULL, 'acme'])")
    assert two["message_count"] == by_account[None]["message_count"] + by_account["acme"]["message_count"]
    assert rows_of(warehouse, f"FROM kpis_between({ALL_TIME}, channels := ['fax'])") == []


def test_a_period_without_events(world: World) -> None:
    """Long after as_of counts are 0, values null, and backlog and waiting go on; long before all is 0 or nothing."""
    _, warehouse = world
    ends = {r["channel"]: r for r in rows_of(warehouse, f"FROM kpis_by_channel({ALL_TIME})")}
    for row in rows_of(warehouse, "FROM kpis_by_channel('2030-01-01', '2030-02-01')"):
        for kpi in KPIS:
            if kpi.kind == "running":
                assert row[kpi.name] == ends[row["channel"]][kpi.name]
            else:
                assert row[kpi.name] == (0 if kpi.kind in ("count", "change") else None)
    assert rows_of(warehouse, "FROM kpis_between('2020-01-01', '2021-01-01')") == []
    for word in CREDITED:
        assert rows_of(warehouse, f"FROM kpis_by_{word}('2030-01-01', '2030-02-01')") == []
    assert rows_of(warehouse, "FROM kpis_rolling(7, '2030-01-01', '2030-02-01')") == []
    assert rows_of(warehouse, "FROM kpis_heat_map('2030-01-01', '2030-02-01')") == []
    rows = rows_of(warehouse, "FROM duration_distribution('reply', '2030-01-01', '2030-02-01')")
    assert {(r["count"], r["share"]) for r in rows} == {(0, None)}


def test_a_result_without_any_event(tmp_path: Path) -> None:
    """Every macro answers where there is nothing."""
    with reading(build(tmp_path, [], "UTC", NOON, runs=run_row(as_of=None))) as warehouse:
        for macro in ("between", "by_channel", "by_account", "by_account_and_channel", "heat_map", "by_team"):
            assert rows_of(warehouse, f"FROM kpis_{macro}({ALL_TIME})") == []
        assert rows_of(warehouse, f"FROM kpis_rolling(7, {ALL_TIME})") == []
        assert rows_of(warehouse, "FROM kpis_beside_last_week('2026-01-01')") == []
        assert len(rows_of(warehouse, f"FROM duration_distribution('reply', {ALL_TIME})")) == 12


@pytest.mark.parametrize("window_days", [1, 7, 28])
def test_rolling_days(world: World, window_days: int) -> None:
    """Each row is the period of its days, fewer at the beginning; there is one for each complete day."""
    _, warehouse = world
    found = rows_of(warehouse, f"FROM kpis_rolling({window_days}, {ALL_TIME})")
    days = rows_of(warehouse, "FROM windows WHERE grain = 'day' AND is_complete ORDER BY window_start")
    assert [row["window_end"] for row in found] == [day["window_end"] for day in days]
    for place, row in enumerate(found):
        first = max(place - window_days + 1, 0)
        assert (row["window_start"], row["day_count"]) == (days[first]["window_start"], place - first + 1)
        start, end = literal(row["window_start"]), literal(row["window_end"])
        [meant] = rows_of(warehouse, f"FROM kpis_between({start}, {end})")
        assert only_kpis(row) == only_kpis(meant)
    [some] = rows_of(
        warehouse,
        f"FROM kpis_rolling(7, {literal(days[9]['window_start'])}, "
        f"{literal(days[9]['window_end'])}, channels := ['email'])",
    )
    [meant] = rows_of(
        warehouse,
        f"FROM kpis_between({literal(days[3]['window_start'])}, "
        f"{literal(days[9]['window_end'])}, channels := ['email'])",
    )
    assert only_kpis(some) == only_kpis(meant)


def test_beside_last_week(world: World) -> None:
    """The day of the change of clocks and the day a week before: each is its local date, by channel and together."""
    zone, warehouse = world
    day = CHANGES[zone]
    found = rows_of(warehouse, f"FROM kpis_beside_last_week('{day}')")
    assert len(found) == 9 * len(KPIS)
    for channel in (None, "email"):
        choice = f", channels := ['{channel}']" if channel else ""
        both = []
        for date_ in (day, day - timedelta(days=7)):
            start, end = (datetime(*d.timetuple()[:3], tzinfo=ZoneInfo(zone)) for d in (date_, date_ + timedelta(1)))
            both += rows_of(warehouse, f"FROM kpis_between({literal(start)}, {literal(end)}{choice})")
        rows = {row["name"]: row for row in found if row["channel"] == channel}
        assert list(rows) == NAMES
        for name, row in rows.items():
            now, before = both[0][name], both[1][name]
            assert (row["value"], row["value_week_before"]) == (now, before)
            assert row["difference"] == (None if None in (now, before) else now - before)


def test_heat_map(world: World) -> None:
    """Every hour falls into its local weekday and hour, by Python's calendar; nothing is lost at changes of clocks."""
    zone, warehouse = world
    found = {(r["weekday"], r["hour"]): r for r in rows_of(warehouse, f"FROM kpis_heat_map({ALL_TIME})")}
    [total] = rows_of(warehouse, f"FROM kpis_between({ALL_TIME})")
    messages, hours = Counter(), Counter()
    for row in rows_of(warehouse, "FROM windows WHERE grain = 'hour'"):
        local = row["window_start"].astimezone(ZoneInfo(zone))
        hours[local.isoweekday(), local.hour] += 1
    for row in rows_of(warehouse, "FROM kpis WHERE grain = 'hour' AND basis = 'activity'"):
        local = row["window_start"].astimezone(ZoneInfo(zone))
        messages[local.isoweekday(), local.hour] += row["message_count"]
    assert {cell: row["hour_count"] for cell, row in found.items()} == hours
    assert {cell: row["message_count"] for cell, row in found.items() if row["message_count"]} == +messages
    for name in COUNTED:
        assert sum(row[name] for row in found.values()) == total[name]
    cell, row = max(found.items(), key=lambda item: item[1]["message_count"])
    [plain] = warehouse.sql(
        f"""SELECT histogram_percentile(merge_histograms(list(reply_histogram)), 0.9) FROM kpi_statistics
        WHERE basis = 'activity' AND grain = 'hour' AND hour(timezone('{zone}', window_start)) = {cell[1]}
        AND isodow(timezone('{zone}', window_start)) = {cell[0]}"""
    ).fetchall()
    assert row["p90_reply_seconds"] == plain[0]


@pytest.mark.parametrize(
    ("duration", "values"),
    [
        ("reply", "SELECT wait_seconds AS s FROM turns WHERE outcome = 'answered'"),
        ("first_response", "SELECT first_response_seconds AS s FROM conversations WHERE first_response_at IS NOT NULL"),
    ],
)
def test_distribution(world: World, duration: str, values: str) -> None:
    """As many durations as the facts have, in each range but for those within 1 % of an edge."""
    _, warehouse = world
    found = rows_of(warehouse, f"FROM duration_distribution('{duration}', {ALL_TIME}, edges := [60, 600, 86400])")
    [(count,)] = warehouse.sql(f"SELECT count(*) FROM ({values})").fetchall()
    assert [(r["from_seconds"], r["to_seconds"]) for r in found] == [(0, 60), (60, 600), (600, 86400), (86400, None)]
    assert sum(row["count"] for row in found) == count
    up_to = 0
    for row in found:
        low, high = row["from_seconds"], row["to_seconds"] or 1e12
        bounds = warehouse.sql(
            f"SELECT count(*) FILTER (s >= {low} * 1.01 AND s < {high} * 0.99), "
            f"count(*) FILTER (s >= {low} * 0.99 AND s < {high} * 1.01) FROM ({values})"
        ).fetchall()[0]
        assert bounds[0] <= row["count"] <= bounds[1]
        up_to += row["count"]
        assert (row["share"], row["share_up_to"]) == (row["count"] / count, up_to / count)


def test_who_waits(world: World) -> None:
    """Turns that wait in the last conversations of their keys, the oldest first; kpis counts those without a bot."""
    _, warehouse = world
    found = rows_of(warehouse, "FROM waiting_now")
    assert found == sorted(found, key=lambda r: (r["turn_started_at"], r["conversation_key"], r["turn_number"]))
    [(as_of,)] = warehouse.sql("SELECT as_of FROM runs").fetchall()
    for row in found:
        assert row["waiting_seconds"] == pytest.approx((as_of - row["turn_started_at"]).total_seconds())
    [(waiting,)] = warehouse.sql(f"SELECT waiting_count FROM kpis_between({ALL_TIME})").fetchall()
    assert 0 < sum(row["bot_replied_at"] is None for row in found) <= waiting <= len(found)
    credited = warehouse.sql(
        "SELECT count(*) FROM waiting_now AS w JOIN conversations AS c USING (conversation_key, started_at) "
        "WHERE w.agent_id IS NOT DISTINCT FROM c.agent_id AND w.team_id IS NOT DISTINCT FROM c.team_id"
    ).fetchall()
    assert credited == [(len(found),)]


def test_who_waits_without_bots(tmp_path: Path) -> None:
    """Where no bot speaks it is as many as kpis has; a silence over the limit and a later conversation end the wait."""
    lines = []
    for place, (thread, day) in enumerate(
        [("a", 1), ("b", 2), ("b", 3), ("old", -400), ("idle", -40), ("split", 1), ("split", 5), ("v", -60), ("v", 4)]
    ):
        at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day)
        key = f'"customer_id": "{thread}"' if thread in ("idle", "v") else f'"conversation_id": "{thread}"'
        channel = "whatsapp" if thread == "split" else "email"
        lines.append(
            f'{{"event_id": "{place}", "event_type": "message", "occurred_at": "{at.isoformat()}", '
            f'"channel": "{channel}", {key}}}'
        )
    events = tmp_path / "events.ndjson"
    events.write_text("\n".join(lines), encoding="utf-8")
    config = tmp_path / "care.toml"
    config.write_text("[channel.whatsapp]\nsplit_threads = true\n", encoding="utf-8")
    settings = load_settings(config, {}, {}).settings
    run(BatchOptions(inputs=(str(events),), output=tmp_path / "output", settings=settings))
    with reading(tmp_path / "output" / "care.duckdb") as warehouse:
        found = rows_of(warehouse, "FROM waiting_now")
        [(waiting,)] = warehouse.sql("SELECT waiting_count FROM kpis_between('2020-01-01', '2027-01-01')").fetchall()
    assert len(found) == waiting
    keys = ['[null,"a"]', '[null,"split"]', '[null,"b"]', '[null,"email","v"]']
    assert [row["conversation_key"] for row in found] == keys


@pytest.fixture(scope="module")
def of_one(result: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the warehouse in which every conversation has the same team, and no topic."""
    path = Path(shutil.copy(result[1], tmp_path_factory.mktemp("one") / "care.duckdb"))
    with duckdb.connect(str(path)) as warehouse:
        warehouse.execute("UPDATE conversations SET team_id = 'all', topic = NULL")
    return path


@pytest.mark.parametrize("basis", ["activity", "opened"])
@pytest.mark.parametrize("period", [ALL_TIME, "'2026-03-27', '2026-03-30 14:00'"])
def test_credit_of_one_team_is_the_whole(of_one: Path, basis: str, period: str) -> None:
    """With one team its KPIs are those of kpis_between: all that falls at a known time; percentiles within 1 %."""
    with reading(of_one) as warehouse:
        [row] = rows_of(warehouse, f"FROM kpis_by_team({period}, basis := '{basis}')")
        [of_null] = rows_of(warehouse, f"FROM kpis_by_topic({period}, basis := '{basis}')")
        [meant] = rows_of(warehouse, f"FROM kpis_between({period}, basis := '{basis}')")
    assert of_null.pop("topic") is None and row.pop("team_id") == "all"
    assert of_null == row
    assert list(row) == [kpi.name for kpi in KPIS if kpi.kind not in ("change", "running")]
    unknown = {"reply_count", "bot_reply_count"} if basis == "activity" else set()
    if basis == "activity" and period != ALL_TIME:
        # Messages fall at the start of their turn, which may lie in another period than they do.
        unknown |= {"message_count", "response_rate", "human_response_rate"}
    for kpi in KPIS:
        if kpi.name in row and kpi.name not in unknown:
            exact = 0.008 if kpi.kind == "percentile" else 1e-9
            assert row[kpi.name] == pytest.approx(meant[kpi.name], rel=exact), kpi.name
    if basis == "activity":
        assert row["reply_count"] is None and row["bot_reply_count"] is None


@pytest.mark.parametrize("word", CREDITED)
def test_credit_by_each_column(world: World, word: str) -> None:
    """Each value has its row, null too; counts add up to the whole, and values are those of the facts."""
    _, warehouse = world
    column = CREDITED[word]
    found = rows_of(warehouse, f"FROM kpis_by_{word}({ALL_TIME}, basis := 'opened')")
    [total] = rows_of(warehouse, f"FROM kpis_between({ALL_TIME}, basis := 'opened')")
    for name in COUNTED:
        assert sum(row[name] for row in found) == total[name]
    plain = rows_of(
        warehouse,
        f"""SELECT {column}, avg(first_response_seconds) AS avg_first_response_seconds,
          quantile_disc(first_response_seconds, 0.9) AS p90_first_response_seconds,
          avg(is_one_touch::INTEGER) AS one_touch_rate, quantile_disc(handle_seconds, 0.5) AS p50_handle_seconds,
          avg(engaged_seconds) AS avg_engaged_seconds FROM conversations GROUP BY {column} ORDER BY {column}""",
    )
    assert [row[column] for row in found] == [row[column] for row in plain]
    for row, meant in zip(found, plain, strict=True):
        assert nearly(meant) == {name: row[name] for name in meant}
    of_turns = rows_of(
        warehouse,
        f"""SELECT c.{column}, quantile_disc(wait_seconds, 0.5) AS p50_reply_seconds FROM turns
        JOIN conversations AS c USING (conversation_key, started_at) WHERE c.channel = 'email'
        GROUP BY c.{column} ORDER BY c.{column}""",
    )
    of_email = rows_of(warehouse, f"FROM kpis_by_{word}({ALL_TIME}, channels := ['email'])")
    for row, meant in zip([r for r in of_email if r["message_count"]], of_turns, strict=True):
        assert {name: row[name] for name in meant} == meant


@pytest.mark.parametrize(
    ("zone", "given", "meant"),
    [
        ("Europe/Berlin", "'2026-03-29'", "2026-03-28T23:00Z"),
        ("Europe/Berlin", "'2026-03-29 10:00'", "2026-03-29T08:00Z"),
        ("Europe/Berlin", "'2026-03-29T10:00:00Z'", "2026-03-29T10:00Z"),
        ("Europe/Berlin", "'2026-03-29 10:00:00-03'", "2026-03-29T13:00Z"),
        ("Europe/Berlin", "'2026-03-29 10:00 America/New_York'", "2026-03-29T14:00Z"),
        ("Europe/Berlin", "DATE '2026-03-29'", "2026-03-28T23:00Z"),
        ("Europe/Berlin", "TIMESTAMP '2026-07-01 12:00:00'", "2026-07-01T10:00Z"),
        ("Europe/Berlin", "TIMESTAMPTZ '2026-07-01 12:00:00+00'", "2026-07-01T12:00Z"),
        ("Europe/Berlin", "'2026-10-25 02:30'", "2026-10-25T00:30Z"),
        ("Europe/Berlin", "'2026-10-25 03:30'", "2026-10-25T02:30Z"),
        ("Australia/Lord_Howe", "'2026-04-05 01:45'", "2026-04-04T14:45Z"),
        ("America/Havana", "'2026-11-01'", "2026-11-01T04:00Z"),
        ("Africa/Cairo", "'2026-04-24'", "2026-04-23T22:00Z"),
    ],
)
def test_moments(tmp_path: Path, zone: str, given: str, meant: str) -> None:
    """Text, dates and times without a zone are local times of the run, whatever the session's zone is."""
    with reading(build(tmp_path, [], zone, NOON, runs=run_row(timezone=zone))) as warehouse:
        [row] = rows_of(warehouse, f"SELECT instant_of({given}) AS at, local_time(instant_of({given})) AS shown")
    assert row["at"] == datetime.fromisoformat(meant)
    assert row["shown"] == row["at"].astimezone(ZoneInfo(zone)).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (f"FROM kpis_between({ALL_TIME}, basis := 'both')", "Expected the basis activity or opened, got both"),
        (f"FROM duration_distribution('queue', {ALL_TIME})", "Expected a duration out of first_response, first_reply"),
    ],
)
def test_what_is_asked_wrongly(world: World, query: str, said: str) -> None:
    """A word that is none of those expected is named."""
    with pytest.raises(duckdb.Error, match=said):
        world[1].sql(query).fetchall()


def test_after_an_append_and_a_rebuild(tmp_path: Path) -> None:
    """A result that grew has all macros, which know the new rows; one that was made anew says the same."""
    output = copy_of_result(tmp_path)
    period = "'2026-01-01', '2026-02-01'"
    queries = [f"FROM kpis_by_channel({period})", f"FROM kpis_by_agent({period})", "FROM waiting_now"]
    names = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal"

    def answers() -> list[Any]:
        with reading(output / "care.duckdb") as warehouse:
            assert {name for (name,) in warehouse.sql(names).fetchall()} == {macro.name for macro in MACROS}
            [(last,)] = warehouse.sql("SELECT conversation_count FROM runs ORDER BY commit_id DESC LIMIT 1").fetchall()
            whole = warehouse.sql("SELECT conversation_count + 0 FROM kpis_between('2020-01-01', '2030-01-01')")
            assert 0 < whole.fetchall()[0][0] <= last
            return [rows_of(warehouse, query) for query in queries]

    grown = answers()
    (snapshot_of(output) / "care.duckdb").unlink()
    rebuild(output)
    assert answers() == grown
