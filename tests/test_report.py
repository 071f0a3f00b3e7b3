"""The report: its numbers against the table kpis, its words, its files, and the page in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po
from results import copy_of_result, snapshot_of

from pipelines.batch import run
from pipelines.cli import main
from pipelines.commands.report import LOCALES
from pipelines.options import BatchOptions
from pipelines.report.build import Written, write_report
from pipelines.report.comparison import BY_NAME, unusual_days, usual_ranges
from pipelines.report.data import RESTATED_KPIS
from pipelines.report.files import plain_text, write_files
from pipelines.report.period import Period, first_instant, period_of
from pipelines.report.warehouse import Filters
from pipelines.report.words import NULL, Words
from pipelines.settings import load_settings
from transforms.definitions import KPIS
from transforms.errors import UserError

REPORT = Path(__file__).parents[1] / "pipelines" / "report"
SCRIPT = '<script>alert("a")</script>'
HOSTILE = {
    "account_id": "=1+1",
    "team_id": "+team & co",
    "agent_id": SCRIPT,
    "topic": "{{ 7 * 7 }}<img src=https://evil.example/x.png onerror=alert(1)>",
}
CHANNEL = "<b>$\\1$ \"chat'</b>"
FIRST, QUIET, LAST = date(2026, 1, 5), date(2026, 3, 8), date(2026, 3, 9)
"""Of the world below: its first day, the last Sunday, on which nothing happens, and the last Monday."""


# A world of nine weeks: the same every day, but for the last one


def _events() -> Iterator[dict[str, Any]]:
    for day in range((LAST - FIRST).days + 1):
        at = datetime(2026, 1, 5, 8, tzinfo=UTC) + timedelta(days=day)
        if at.date() == QUIET:
            continue
        for number in range(120 if at.date() == LAST else 30):
            shared = {
                "channel": ("email", CHANNEL)[number % 2],
                "conversation_id": f"@{day}-{number}",
                "customer_id": f"c{number}",
                **{name: value for name, value in HOSTILE.items() if name in ("account_id", "topic")},
            }
            times = (at + timedelta(minutes=number), at + timedelta(minutes=number + 5 + number % 7))
            yield {**shared, "event_id": "1", "event_type": "message", "occurred_at": times[0].isoformat()}
            agent = {name: HOSTILE[name] for name in ("agent_id", "team_id")}
            reply = {**shared, **agent, "event_id": "2", "event_type": "reply", "author_type": "agent"}
            yield {**reply, "occurred_at": times[1].isoformat()}
    yield {
        "channel": "email",
        "conversation_id": "end",
        "event_id": "1",
        "event_type": "message",
        "occurred_at": datetime(2026, 3, 10, 1, tzinfo=UTC).isoformat(),
    }
    yield {
        "channel": "email",
        "conversation_id": "end",
        "event_id": "2",
        "event_type": "note",
        "occurred_at": datetime(2026, 3, 10, 3, tzinfo=UTC).isoformat(),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with hostile names, a day on which nothing happens, and a day with four times the usual."""
    folder = tmp_path_factory.mktemp("world")
    lines = "".join(f"{json.dumps(event)}\n" for event in _events())
    (folder / "events.ndjson").write_text(lines, encoding="utf-8")
    settings = load_settings(None, {}, {}).settings
    run(BatchOptions(inputs=(str(folder / "events.ndjson"),), output=folder / "output", settings=settings))
    return folder / "output"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the sample in two commits, the second of which restated windows."""
    return copy_of_result(tmp_path_factory.mktemp("sample"))


def rows_of(written: Written, table: str) -> dict[str, dict[str, str]]:
    """A table of the CSV file: column -> value by the key of the row."""
    path = next(path for path in written.paths if path.suffix == ".csv")
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))):
        if row["table"] == table:
            found.setdefault(row["key"], {})[row["column"]] = row["value"]
    return found


def page_of(written: Written) -> str:
    """The HTML page."""
    return written.paths[-1].read_text(encoding="utf-8")


def asked(output: Path, query: str, *values: Any) -> list[dict[str, Any]]:
    """Rows of the result, by its own views."""
    with duckdb.connect(str(snapshot_of(output) / "care.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        found = warehouse.execute(query, list(values))
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_the_account_without_a_name(world: Path, tmp_path: Path) -> None:
    """Null is an account too: empty text names it, beside others as well."""
    last = date(2026, 3, 10)
    alone = write_report(world, tmp_path, day=last, filters=Filters(accounts=("",)))
    assert rows_of(alone, "headline")["conversation_count"]["value"] == "1"
    assert "Only: (none)" in alone.text
    assert rows_of(alone, "report")["accounts"]["value"] == "(none)"
    both = write_report(world, tmp_path, day=LAST, filters=Filters(accounts=("", HOSTILE["account_id"])))
    assert rows_of(both, "headline")["conversation_count"]["value"] == "120"
    assert {path.name for path in alone.paths}.isdisjoint(path.name for path in both.paths)


def assert_same(found: dict[str, dict[str, str]], expected: dict[str, Any], column: str = "value") -> None:
    """Every KPI of a report is that of a row of `kpis`."""
    for kpi in KPIS:
        shown, known = found[kpi.name][column], expected[kpi.name]
        assert (None if shown == "" else float(shown)) == known, kpi.name


# The numbers


@pytest.mark.parametrize("grain", ["day", "week", "month"])
def test_numbers_are_those_of_all_channels(sample: Path, tmp_path: Path, grain: Any) -> None:
    """Every KPI of a day, week or month, and of the one before, is that of the view kpis_all_channels."""
    written = write_report(sample, tmp_path, grain=grain, day=date(2026, 1, 8))
    found = rows_of(written, "headline")
    for period, column in ((written.period, "value"), (written.period.before, "before")):
        query = "FROM kpis_all_channels WHERE basis = 'activity' AND grain = ? AND window_start = ?"
        for row in asked(sample, query, grain, period.start_at):
            assert_same(found, row, column)
    assert written.fell and float(found["message_count"]["value"]) > 0


def test_numbers_of_one_account_and_channel_are_those_of_kpis(sample: Path, tmp_path: Path) -> None:
    """With --account and --channel every KPI is that of a row of kpis."""
    rows = asked(
        sample,
        "FROM kpis WHERE basis = 'activity' AND grain = 'day' AND account_id IS NOT NULL "
        "ORDER BY message_count DESC LIMIT 3",
    )
    for row in rows:
        filters = Filters((row["account_id"],), (row["channel"],))
        day = (row["window_start"] + timedelta(hours=6)).date()
        written = write_report(sample, tmp_path, day=day, filters=filters)
        assert_same(rows_of(written, "headline"), row)
        channels = rows_of(written, "channels")[row["channel"]]
        assert float(channels["p90_reply_seconds"]) == row["p90_reply_seconds"]


def test_channels_and_trends_add_up(sample: Path, tmp_path: Path) -> None:
    """Teams, agents and topics share out the conversations of all channels; the trend ends with the day's value."""
    written = write_report(sample, tmp_path, day=date(2026, 1, 8))
    total = float(rows_of(written, "headline")["conversation_count"]["value"])
    for table in ("teams", "agents", "topics"):
        assert sum(float(row["conversation_count"]) for row in rows_of(written, table).values()) == total
    channels = rows_of(written, "channels")
    assert sum(float(row["conversation_count"]) for name, row in channels.items() if name != "all channels") == total
    assert float(rows_of(written, "trends")["2026-01-08 | all channels"]["conversation_count"]) == total
    first = rows_of(written, "headline")["avg_first_response_seconds"]["value"]
    histogram = rows_of(written, "first_response")
    answered = asked(
        sample,
        "SELECT sum(first_response_count) AS n FROM kpi_statistics "
        "WHERE basis = 'activity' AND grain = 'day' AND window_start = ?",
        written.period.start_at,
    )
    assert sum(int(row["count"]) for row in histogram.values()) == answered[0]["n"] and first


def test_the_longest_waits(world: Path, tmp_path: Path) -> None:
    """Ten turns, the longest first, with their keys; who began in the period and has no answer waits until its end."""
    written = write_report(world, tmp_path, day=LAST)
    waits = rows_of(written, "longest_waits")
    assert len(waits) == 10
    assert [float(row["waited_seconds"]) for row in waits.values()] == [660.0] * 10
    assert all(json.loads(key)[1].startswith("@63-") for key in waits)
    at = datetime(2026, 3, 10, tzinfo=UTC)
    rest = rows_of(write_report(world, tmp_path, day=at.date()), "longest_waits")
    assert [(row["outcome"], float(row["waited_seconds"])) for row in rest.values()] == [("still waiting", 7200.0)]


def test_restated_windows(sample: Path, tmp_path: Path) -> None:
    """Windows that were complete in the report before and say something else now, from what to what."""
    runs = asked(sample, "FROM runs ORDER BY commit_id")
    written = write_report(sample, tmp_path, day=runs[0]["as_of"].date())
    with duckdb.connect(str(snapshot_of(sample) / "care.duckdb"), read_only=True) as warehouse:
        first, second = (
            {
                (row[0], row[1], row[2], name): value
                for row in warehouse.execute(
                    f"SELECT window_start, account_id, channel, {', '.join(RESTATED_KPIS)} FROM kpis_as_of(?) "
                    "WHERE basis = 'activity' AND grain = 'day' AND window_end <= ?",
                    [run["committed_at"], runs[0]["as_of"]],
                ).fetchall()
                for name, value in zip(RESTATED_KPIS, row[3:], strict=True)
            }
            for run in runs
        )
    expected = [
        (key[3], first.get(key), second.get(key)) for key in first | second if first.get(key) != second.get(key)
    ]
    found = [
        (key.split(" | ")[3], *(float(row[side]) if row[side] else None for side in ("before", "now")))
        for key, row in rows_of(written, "restated").items()
    ]
    assert expected and Counter(expected) == Counter(found)


def test_the_report_before_says_since_when(sample: Path, tmp_path: Path) -> None:
    """What changed is counted from the commit that the latest earlier report of the same kind was made of."""
    first, second = date(2026, 1, 7), date(2026, 1, 8)
    write_report(sample, tmp_path, day=first)
    assert "commit 2" in page_of(write_report(sample, tmp_path, day=second)).split('id="restated"')[1]
    other = write_report(sample, tmp_path, day=second, filters=Filters(channels=("email",)))
    assert "commit 1" in page_of(other).split('id="restated"')[1]


# What is usual


def days_of(values: list[float], name: str = "conversation_count", cases: float = 1000) -> pd.DataFrame:
    """Days of one channel with a KPI, from the first Monday of 2026."""
    index = pd.Index([FIRST + timedelta(days=place) for place in range(len(values))], dtype=object)
    ends = [first_instant(day + timedelta(days=1), "UTC") for day in index]
    counts = {"n_handled_count": cases, "n_first_response_histogram": cases, "n_rating_count": cases}
    return pd.DataFrame({name: values, "is_complete": True, "window_end": ends, **counts}, index=index)


@pytest.mark.parametrize(
    ("name", "usual", "odd", "cases", "is_found"),
    [
        ("conversation_count", 1000.0, 1500.0, 0, True),
        ("conversation_count", 1000.0, 1050.0, 0, False),
        ("conversation_count", 4.0, 8.0, 0, False),
        ("p50_first_response_seconds", 600.0, 1200.0, 1000, True),
        ("p50_first_response_seconds", 600.0, 1200.0, 19, False),
        ("first_contact_resolution_rate", 0.7, 0.5, 1000, True),
        ("first_contact_resolution_rate", 0.7, 0.6, 30, False),
        ("avg_csat", 4.0, 3.0, 1000, True),
        ("avg_csat", 4.0, 3.9, 1000, False),
    ],
)
def test_what_is_unusual(name: str, usual: float, odd: float, cases: int, is_found: bool) -> None:
    """Far outside of the same weekdays before, and by more than chance does to so few cases."""
    days = days_of([usual] * 63 + [odd], name, cases)
    found = unusual_days(days, days.index[-1], days.index[-1], datetime(2027, 1, 1, tzinfo=UTC), (name,))
    assert [one.is_high for one in found] == ([odd > usual] if is_found else [])


def test_a_weekday_is_compared_with_its_own() -> None:
    """Quiet Sundays are usual, a Monday as quiet as a Sunday is not; of three weeks nothing is said."""
    week = [100.0] * 6 + [10.0]
    days = days_of(week * 8 + [10.0])
    found = unusual_days(days, FIRST, days.index[-1], None, ("conversation_count",))
    assert [(one.day, one.is_high, one.weeks) for one in found] == [(days.index[-1], False, 8)]
    assert not unusual_days(days_of(week * 3 + [10.0]), FIRST, LAST, None, ("conversation_count",))
    assert not len(usual_ranges(days.iloc[:0], BY_NAME["conversation_count"]))


def test_rates_are_not_judged_while_they_settle() -> None:
    """The resolution rate of yesterday is low every day; two weeks later it can be compared."""
    days, name = days_of([0.9] * 63 + [0.1], "first_contact_resolution_rate"), "first_contact_resolution_rate"
    end = days["window_end"].iloc[-1]
    for later, count in ((timedelta(days=13), 0), (timedelta(days=14), 1)):
        assert len(unusual_days(days, LAST, LAST, end + later, (name,))) == count
    assert not unusual_days(days.assign(is_complete=False), LAST, LAST, end + timedelta(days=20), (name,))


def test_an_unusual_day_is_said_in_words(world: Path, tmp_path: Path) -> None:
    """Four times the usual conversations: on the card, in a sentence, in the short text, as a ring in the trend."""
    written = write_report(world, tmp_path, day=LAST)
    sentence = "Monday, 9 March 2026: Conversations 120, above what is usual on this weekday"
    assert sentence in page_of(written) and sentence in written.text
    assert "unusually high" in page_of(written)
    assert rows_of(written, "unusual")["2026-03-09 | conversation_count"]["value"] == "120"
    month = write_report(world, tmp_path, grain="month", day=LAST)
    assert sentence in month.text


# A day without data


@pytest.mark.parametrize("day", [QUIET, FIRST - timedelta(days=400), LAST + timedelta(days=400)])
def test_a_day_without_data_says_so(world: Path, tmp_path: Path, day: date) -> None:
    """Also before the first and after the last event; nothing fails, no number is invented."""
    written = write_report(world, tmp_path, day=day)
    assert not written.fell
    assert "There is no data for this period" in page_of(written) and "There is no data" in written.text
    assert rows_of(written, "headline")["avg_csat"]["value"] == ""
    if day > LAST:
        assert "not complete" in written.text


def test_a_result_without_any_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A given day says that there is no data; without one the user is asked for it."""
    (tmp_path / "none.ndjson").write_text("")
    settings = load_settings(None, {}, {}).settings
    run(BatchOptions(inputs=(str(tmp_path / "none.ndjson"),), output=tmp_path / "output", settings=settings))
    written = write_report(tmp_path / "output", tmp_path / "reports", day=LAST)
    assert "no event has been read yet" in written.text
    assert main(["report", str(tmp_path / "output")]) == 2
    assert "Expected a day that is complete" in capsys.readouterr().err


# Names that mean no good, and what a page may ask for


class Page(HTMLParser):
    """What a page is made of: tags, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        """Reads it."""
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keeps text."""
        self.text += data


@pytest.mark.parametrize("locale", LOCALES)
def test_hostile_names_stay_text(world: Path, tmp_path: Path, locale: str) -> None:
    """No name becomes a tag, a template or a formula, and each can be read as it is."""
    written = write_report(world, tmp_path, day=LAST, locale=locale)
    page = Page(page_of(written))
    assert not {"script", "img", "iframe", "object", "b"} & {tag for tag, _ in page.tags}
    assert all(name in page.text for name in (*HOSTILE.values(), CHANNEL))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "49" not in {data.strip() for data in re.findall(r">([^<]*)<", page_of(written)) if "7 *" in data}
    for row in csv.reader(io.StringIO(written.paths[0].read_text(encoding="utf-8-sig"))):
        assert not any(re.match(r"[=@\t\r]|[+-][^0-9]", cell) for cell in row)
    book = zipfile.ZipFile(next(path for path in written.paths if path.suffix == ".xlsx"))
    sheets = [book.read(name).decode() for name in book.namelist() if "worksheets/sheet" in name]
    assert len(sheets) == 19 and not any("<f>" in sheet or "hyperlink" in sheet for sheet in sheets)
    assert "=1+1" in book.read("xl/sharedStrings.xml").decode()


@pytest.mark.parametrize("locale", LOCALES)
def test_a_page_asks_for_nothing(world: Path, tmp_path: Path, locale: str) -> None:
    """No attribute or style leads outside, and the page forbids it too."""
    text = page_of(write_report(world, tmp_path, day=LAST, locale=locale))
    page = Page(text)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                assert value is not None and re.match(r"#|data:", value), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import|@font-face", text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) >= 10 and all(a["role"] == "img" and a["aria-label"] for a in charts)


def test_text_that_looks_like_a_formula() -> None:
    """Gets an apostrophe in front; other text does not."""
    assert [plain_text(text) for text in ("=1", "+1", "-x", "@a", "\tb", "a=b", "")] == [
        "'=1",
        "'+1",
        "'-x",
        "'@a",
        "'\tb",
        "a=b",
        "",
    ]


# Words


def test_locales_write_their_own_way(world: Path, tmp_path: Path) -> None:
    """Title, date and numbers in each language; the numbers are the same ones."""
    said = {locale: write_report(world, tmp_path, day=LAST, locale=locale) for locale in LOCALES}
    assert "Monday, 9 March 2026" in page_of(said["en_GB"]) and '<html lang="en">' in page_of(said["en_GB"])
    assert "Montag, 9. März 2026" in page_of(said["de_DE"]) and "Bericht zum Kundenservice" in said["de_DE"].text
    assert "2026年3月9日星期一" in page_of(said["zh_CN"]) and "客户服务报告" in said["zh_CN"].text
    values = [{k: v["value"] for k, v in rows_of(one, "headline").items()} for one in said.values()]
    assert values[0] == values[1] == values[2]
    assert len(list(tmp_path.iterdir())) == 12


@cache
def catalog(language: str) -> dict[str, str]:
    """The translations of a language."""
    with (REPORT / "locales" / f"{language}.po").open("rb") as file:
        return {str(m.id): str(m.string) for m in read_po(file) if m.id}


@pytest.mark.parametrize("language", ["de", "zh"])
def test_everything_is_translated(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str) -> None:
    """What is said in code and page, and every KPI's label and sentence; placeholders are the same ones."""
    asked_for: set[str] = set()
    say = Words.say

    def listen(self: Words, text: str, **values: object) -> str:
        asked_for.add(text)
        return say(self, text, **values)

    monkeypatch.setattr(Words, "say", listen)
    locale = next(name for name in LOCALES if name.startswith(language))
    for grain in ("day", "week", "month"):
        write_report(world, tmp_path, grain=grain, day=LAST, locale=locale)  # type: ignore[arg-type]
    for path in REPORT.glob("*.py"):
        found = extract_from_file("python", str(path), keywords={"say": None})
        # A sentence chosen in place is two texts to the extractor; those are heard when reports are written, above.
        if path.name not in ("contents.py", "background.py"):
            asked_for |= {str(message[1]) for message in found}
    page = extract_from_file("jinja2.ext:babel_extract", str(REPORT / "templates" / "report.html"), {"_": None})
    asked_for |= {str(message[1]) for message in page}
    known = catalog(language)
    assert not {text for text in asked_for if not known.get(text)}
    for text, translated in known.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", translated)), text


@pytest.mark.parametrize(
    ("seconds", "english", "german"),
    [
        (0, "0s", "0 Sek."),
        (0.44, "0.4s", "0,4 Sek."),
        (59.6, "1m", "1 Min."),
        (117, "1m 57s", "1 Min. 57 Sek."),
        (3_600, "1h", "1 Std."),
        (90_000, "1d 1h", "1 Tg. 1 Std."),
    ],
)
def test_durations(seconds: float, english: str, german: str) -> None:
    """In their two largest units."""
    assert [Words(name, "UTC").duration(seconds) for name in ("en_GB", "de_DE")] == [english, german]


def test_changes() -> None:
    """Per cent of numbers and times, percentage points of rates; nothing against nothing."""
    words = Words("en_GB", "UTC")
    assert words.change(3, 2, "count") == "+50%" and words.change(1, 2, "seconds") == "-50%"
    assert words.change(0.5, 0.6, "rate") == "-10.0 pp" and words.change(4.0, 3.5, "score") == "+0.50"
    assert words.change(3, 0, "count") == NULL == words.change(3, np.nan, "count")


# Periods and files


def test_periods() -> None:
    """Days, weeks from Monday and months, over a change of clocks and the turn of a year."""
    assert period_of(date(2026, 1, 1), "week", "UTC") == Period("week", date(2025, 12, 29), "UTC")
    assert period_of(date(2026, 1, 1), "week", "UTC").name == "2026-W01"
    month = period_of(date(2026, 3, 31), "month", "Europe/Berlin")
    assert (month.name, month.last, month.before.name) == ("2026-03", date(2026, 3, 31), "2026-02")
    summer = period_of(date(2026, 3, 29), "day", "Europe/Berlin")
    assert summer.end_at - summer.start_at == timedelta(hours=23)
    assert first_instant(date(2018, 11, 4), "America/Sao_Paulo") == datetime(2018, 11, 4, 3, tzinfo=UTC)


def test_twice_is_the_same(world: Path, tmp_path: Path) -> None:
    """Byte for byte, in every file; and nothing is left lying about."""
    first = {path.name: path.read_bytes() for path in write_report(world, tmp_path, day=LAST).paths}
    second = {path.name: path.read_bytes() for path in write_report(world, tmp_path, day=LAST).paths}
    assert first == second
    assert {path.name for path in tmp_path.iterdir()} == set(first)


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said in one sentence, and the report of before is still there."""
    write_files(tmp_path, {"a.html": b"old"})

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_files(tmp_path, {"a.html": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_bytes() == b"old"


# The command


def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a period it is the latest complete day; the short text and the files are printed."""
    assert main(["report", str(world), "--reports", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Monday, 9 March 2026 (UTC)" in printed
    assert f"{tmp_path / 'care-kpis-2026-03-09.html'}" in printed
    assert main(["report", str(world), "--last-week", "--reports", str(tmp_path)]) == 0
    assert (tmp_path / "care-kpis-2026-W10.html").exists()
    assert main(["report", str(world), "--month", "2026-02", "--channel", "email", "--reports", str(tmp_path)]) == 0
    assert list(tmp_path.glob("care-kpis-2026-02-email-*.html"))


def test_help_imports_nothing_heavy() -> None:
    """Charts, templates and DuckDB are imported when a report is made."""
    code = "import sys, pipelines.cli; pipelines.cli.main(['report', '--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"apache_beam", "babel", "duckdb", "jinja2", "matplotlib", "numpy", "pandas", "pyarrow", "xlsxwriter"}
    assert not heavy & set(done.stderr.split()) and "--last-week" in done.stdout


def test_a_package_that_is_missing(world: Path, tmp_path: Path) -> None:
    """The extra to install is named."""
    code = "import sys; sys.modules['matplotlib'] = None; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["report", str(world), "--reports", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "Expected the package matplotlib" in done.stderr and "pip install 'care-kpis[report]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--date", "2026-01-08", "--last-week"], "Expected one of --date, --last-week and --month"),
        (["--month", "2026-13"], "expected a month such as 2026-01"),
        (["--date", "yesterday"], "yesterday"),
        (["--date", "0001-01-01"], "Expected a day from 1970 to 2101"),
        (["--account", "nobody"], "Expected --account to be one of those"),
        (["--channel", "fax"], "got 'fax'"),
        (["--locale", "fr_FR"], "fr_FR"),
    ],
)
def test_what_is_wrong_is_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """In a sentence, with exit code 2; nothing is written."""
    assert main(["report", str(world), *arguments, "--reports", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a result, and a DuckDB file that is none."""
    assert main(["report", str(tmp_path)]) == 2
    assert "Expected a result with care.duckdb" in capsys.readouterr().err
    (tmp_path / "care.duckdb").write_text("nothing of the kind" * 1000)
    assert main(["report", str(tmp_path)]) == 2
    assert "Expected to read" in capsys.readouterr().err


# A real browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(path: Path, folder: Path, width: int, is_dark: bool) -> tuple[list[str], Path]:
    """What the console says when Chromium opens a page, and its picture."""
    picture = folder / f"{width}-{is_dark}.png"
    done = subprocess.run(
        [
            CHROMIUM or "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            f"--window-size={width},2000",
            f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
            f"--screenshot={picture}",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], picture


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_real_browser_shows_it(world: Path, tmp_path: Path) -> None:
    """No error on the console, no request, light and dark differ; a page that asks for something is found out."""
    path = write_report(world, tmp_path, day=LAST).paths[-1]
    pictures = {}
    for width in (1280, 390):
        for is_dark in (False, True):
            said, picture = opened(path, tmp_path, width, is_dark)
            assert not said
            pictures[width, is_dark] = picture.read_bytes()
    assert len(set(pictures.values())) == 4
    bad = tmp_path / "bad.html"
    bad.write_text(path.read_text(encoding="utf-8").replace("</main>", "<img src='https://evil.example/x.png'></main>"))
    assert any("Content Security Policy" in line for line in opened(bad, tmp_path, 1280, False)[0])
