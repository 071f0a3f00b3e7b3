"""Adapters: exports of other formats become events of the contract."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources import adapted
from pipelines.sources.adapted import read_adapter
from pipelines.sources.files import list_files
from pipelines.sources.formats import read_block
from transforms.adapters import ADAPTERS, SOURCE_ROW, Adapter
from transforms.adapters.twcs import TWCS, convert_tweets
from transforms.errors import UserError
from transforms.events import ParsedEvents, parse_events
from transforms.schema import EVENT_COLUMNS, MESSAGE, REPLY

Row = dict[str, Any]

BRANDS = ("Acme", "Bolt")


def tweets(*rows: tuple[str | None, str | None, str | None, int | None]) -> pa.Table:
    """Tweets from (tweet_id, author_id, tweet that it answers, minute); brands are those in BRANDS."""
    return pa.Table.from_pylist(
        [
            {
                "tweet_id": tweet,
                "author_id": author,
                "inbound": str(author not in BRANDS),
                "created_at": None
                if minute is None
                else f"Tue Oct 31 {minute // 60:02}:{minute % 60:02}:00 +0000 2017",
                "in_response_to_tweet_id": answers,
            }
            for tweet, author, answers, minute in rows
        ],
        schema=pa.schema([(name, pa.string()) for name in TWCS.columns]),
    )


def converted(*rows: tuple[str | None, str | None, str | None, int | None]) -> list[tuple[Any, ...]]:
    """(event_id, conversation_id, account_id, customer_id, agent_id) of tweets."""
    table = convert_tweets(tweets(*rows))
    names = ("event_id", "conversation_id", "account_id", "customer_id", "agent_id")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
def test_every_adapter(adapter: Adapter) -> None:
    """What holds for any adapter: one sentence, known settings, columns of the contract, and nothing of nothing."""
    assert adapter.description.endswith(".")
    assert set(adapter.settings) <= {
        "gap",
        "max_idle",
        "max_open",
        "split_threads",
        "infer_resolution",
        "has_life_cycle",
    }
    made = adapter.convert(pa.table({name: pa.array([], pa.string()) for name in adapter.columns}))
    assert made.num_rows == 0
    assert set(made.column_names) <= {column.name for column in EVENT_COLUMNS} | {SOURCE_ROW}
    assert SOURCE_ROW in made.column_names


def test_question_and_answer() -> None:
    """Every column of a message and the reply to it."""
    table = convert_tweets(tweets(("1", "115712", None, 0), ("2", "Acme", "1", 5)))
    sent = {"channel": "x", "account_id": "Acme", "conversation_id": "1", "customer_id": "115712"}
    assert table.to_pylist() == [
        {
            "event_id": "1",
            "event_type": "message",
            "occurred_at": "2017-10-31T00:00:00+0000",
            "author_type": "customer",
            "agent_id": None,
            "row": 0,
        }
        | sent,
        {
            "event_id": "2",
            "event_type": "reply",
            "occurred_at": "2017-10-31T00:05:00+0000",
            "author_type": "agent",
            "agent_id": "Acme",
            "row": 1,
        }
        | sent,
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # A tweet that answers one which is not there begins a thread.
        ([("2", "c", "1", 0), ("3", "Acme", "2", 1)], [("2", "2", "Acme", "c", None), ("3", "2", "Acme", "c", "Acme")]),
        # No brand answers: no account.
        ([("1", "c", None, 0), ("2", "d", "1", 1)], [("1", "1", None, "c", None), ("2", "1", None, "d", None)]),
        # The brand whose answer comes first, by time and not by number of the tweet.
        (
            [("1", "c", None, 0), ("2", "Acme", "1", 9), ("3", "Bolt", "1", 8)],
            [("1", "1", "Bolt", "c", None), ("2", "1", "Bolt", "c", "Acme"), ("3", "1", "Bolt", "c", "Bolt")],
        ),
        # At the same moment: by name.
        (
            [("1", "c", None, 0), ("2", "Bolt", "1", 8), ("3", "Acme", "1", 8)],
            [("1", "1", "Acme", "c", None), ("2", "1", "Acme", "c", "Bolt"), ("3", "1", "Acme", "c", "Acme")],
        ),
        # The customer of a reply: the nearest above it, also past another reply; in an outreach the first who answers.
        (
            [
                ("1", "Acme", None, 0),
                ("2", "Acme", "1", 1),
                ("3", "d", "2", 9),
                ("4", "c", "1", 3),
                ("5", "Bolt", "3", 9),
                ("6", "Acme", "5", 9),
            ],
            [
                ("1", "1", "Acme", "c", "Acme"),
                ("2", "1", "Acme", "c", "Acme"),
                ("3", "1", "Acme", "d", None),
                ("4", "1", "Acme", "c", None),
                ("5", "1", "Acme", "d", "Bolt"),
                ("6", "1", "Acme", "d", "Acme"),
            ],
        ),
        # An outreach that nobody answers.
        ([("1", "Acme", None, 0)], [("1", "1", "Acme", None, "Acme")]),
        # A tweet that answers itself, and a circle: named by its least id.
        ([("1", "c", "1", 0)], [("1", "1", None, "c", None)]),
        (
            [("7", "c", "5", 0), ("5", "d", "6", 1), ("6", "e", "5", 2), ("8", "Acme", "7", 3)],
            [
                ("7", "5", "Acme", "c", None),
                ("5", "5", "Acme", "d", None),
                ("6", "5", "Acme", "e", None),
                ("8", "5", "Acme", "c", "Acme"),
            ],
        ),
        # Numbers as tools write them that know no integers with gaps.
        ([("1", "c", None, 0), ("2", "d", "1.0", 1)], [("1", "1", None, "c", None), ("2", "1", None, "d", None)]),
        # Without an id or a time a row is linked nowhere and counts for nobody; null answers no null.
        (
            [("1", "c", None, 0), (None, "Acme", "1", 1), ("3", "Bolt", "1", None), ("4", "d", None, 2)],
            [
                ("1", "1", None, "c", None),
                (None, "1", None, "c", "Acme"),
                ("3", "1", None, "c", "Bolt"),
                ("4", "4", None, "d", None),
            ],
        ),
    ],
)
def test_threads(rows: list[tuple[str | None, str | None, str | None, int | None]], expected: list[Any]) -> None:
    """Who belongs to which thread, and who is at its other end."""
    assert converted(*rows) == expected


def test_long_chain_and_wide_thread() -> None:
    """A chain of any length has one root; so has a thread with many answers to one tweet."""
    chain = [(str(i), "Acme" if i % 2 else f"c{i}", str(i - 1) if i else None, i % 600) for i in range(5_000)]
    wide = [(f"w{i}", f"d{i}", "w0" if i else None, i % 600) for i in range(5_000)]
    rows = converted(*chain[::-1], *wide)
    assert {row[1] for row in rows[:5_000]} == {"0"}
    assert {row[1] for row in rows[5_000:]} == {"w0"}
    assert rows[0][3] == "c4998"


def test_copies_of_a_tweet() -> None:
    """A tweet that comes twice stays in one thread, even where the copies contradict each other, in any order."""
    rows = [("1", "c", None, 0), ("2", "d", None, 0), ("3", "Acme", "2", 1), ("3", "Acme", "1", 1), ("4", "c", "3", 2)]
    for order in (rows, rows[::-1]):
        found = dict.fromkeys(converted(*order))
        assert {(event, conversation) for event, conversation, *_ in found} == {
            ("1", "1"),
            ("2", "2"),
            ("3", "1"),
            ("4", "1"),
        }


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12).map(str),
            st.sampled_from(["c", "d", *BRANDS]),
            st.one_of(st.none(), st.integers(0, 14).map(str)),
            st.integers(0, 3),
        ),
        max_size=16,
        unique_by=lambda row: row[0],
    ),
    st.randoms(use_true_random=False),
)
def test_threads_by_following_links(rows: list[tuple[str, str, str | None, int]], random: Any) -> None:
    """Any links give the threads that following them one by one gives; the order of rows means nothing."""
    answers = {tweet: answered for tweet, _, answered, _ in rows}
    authors = {tweet: author for tweet, author, _, _ in rows}

    def root(tweet: str) -> str:
        seen = [tweet]
        while answers[seen[-1]] in answers:
            if answers[seen[-1]] in seen:
                return min(seen[seen.index(answers[seen[-1]]) :])
            seen.append(answers[seen[-1]])
        return seen[-1]

    def customer(tweet: str) -> str | None:
        seen: list[str] = []
        above: str | None = tweet
        while above in answers and above not in seen:
            if authors[above] not in BRANDS:
                return authors[above]
            seen.append(above)
            above = answers[above]
        thread = [row for row in rows if root(row[0]) == root(tweet) and row[1] not in BRANDS]
        return min(thread, key=lambda row: (row[3], row[1]))[1] if thread else None

    def account(tweet: str) -> str | None:
        thread = [row for row in rows if root(row[0]) == root(tweet) and row[1] in BRANDS]
        return min(thread, key=lambda row: (row[3], row[1]))[1] if thread else None

    shuffled = random.sample(rows, len(rows))
    assert [row[:4] for row in converted(*shuffled)] == [
        (tweet, root(tweet), account(tweet), customer(tweet)) for tweet, *_ in shuffled
    ]


# Reading an export


def export(rows: list[Row], index: bool = False) -> bytes:
    """A CSV export of tweets, with or without the unnamed column that pandas writes."""
    names = ["tweet_id", "author_id", "inbound", "created_at", "text", "response_tweet_id", "in_response_to_tweet_id"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([""] * index + names)
    for number, row in enumerate(rows):
        writer.writerow([str(number)] * index + [row.get(name, "") for name in names])
    return text.getvalue().encode()


QUESTION = {
    "tweet_id": "1",
    "author_id": "115712",
    "inbound": "True",
    "created_at": "Tue Oct 31 22:10:47 +0000 2017",
    "text": '@Acme "help",\nplease',
}
ANSWER = QUESTION | {
    "tweet_id": "2",
    "author_id": "Acme",
    "inbound": "False",
    "created_at": "Wed Nov 01 01:10:47 +0230 2017",
    "in_response_to_tweet_id": "1",
}


def read(*paths: Path, source: str | Adapter = "twcs") -> ParsedEvents:
    """All events of an export."""
    files = list_files([str(path) for path in paths], "csv")
    return parse_events([part for block in read_adapter(files, source) for part in read_block(block)])


@pytest.mark.parametrize("index", [False, True])
def test_export(tmp_path: Path, index: bool) -> None:
    """Line breaks in texts, an unnamed index column; each event knows the line it came from."""
    path = tmp_path / "twcs.csv"
    path.write_bytes(export([QUESTION, ANSWER], index))
    found = read(path).events
    assert found["event_type"].to_pylist() == [MESSAGE, REPLY]
    assert [str(at) for at in found["occurred_at"].to_pylist()] == [
        "2017-10-31 22:10:47+00:00",
        "2017-10-31 22:40:47+00:00",
    ]
    assert found["source_row"].to_pylist() == [2, 4]
    assert found["source"].to_pylist() == [str(path)] * 2
    assert found["customer_id"].to_pylist() == ["115712"] * 2


def test_thread_across_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export in several files is one: a thread may reach from one into another."""
    monkeypatch.setattr(adapted, "BLOCK_ROWS", 2)
    for name, rows in {
        "a.csv": [ANSWER, QUESTION | {"tweet_id": "9"}, QUESTION | {"tweet_id": "8"}],
        "b.csv": [QUESTION],
    }.items():
        (tmp_path / name).write_bytes(export(rows))
    (tmp_path / "c.csv").write_bytes(b"")
    found = read(tmp_path)
    assert found.events["conversation_id"].to_pylist() == ["1", "9", "8", "1"]
    assert [Path(source).name for source in found.events["source"].to_pylist()] == ["a.csv"] * 3 + ["b.csv"]
    assert found.events["source_row"].to_pylist() == [2, 4, 6, 2]
    assert found.rows_read == 4


def test_bad_rows_of_an_export(tmp_path: Path) -> None:
    """What makes no sense is a dead letter with the row as it was exported, without its text."""
    bad = [
        {"tweet_id": ""},
        {"inbound": "maybe"},
        {"inbound": ""},
        {"created_at": "yesterday"},
        {"created_at": "Tue Feb 30 22:10:47 +0000 2017"},
        {"created_at": ""},
        {"created_at": "2017-10-31 22:10:47+00:00"},
    ]
    path = tmp_path / "twcs.csv"
    path.write_bytes(export([QUESTION | change for change in bad]) + b"1,2\n")
    found = read(path)
    letters = found.dead_letters.sort_by("source_row").to_pylist()
    assert [(row["source_row"], row["reason"], row["column_name"]) for row in letters] == [
        (2, "missing", "event_id"),
        (4, "unknown_event_type", "event_type"),
        (6, "missing", "event_type"),
        (8, "bad_time", "occurred_at"),
        (10, "bad_time", "occurred_at"),
        (12, "missing", "occurred_at"),
        (16, "unreadable", None),
    ]
    assert json.loads(letters[1]["raw"]) == {name: QUESTION[name] for name in TWCS.columns[:4]} | {"inbound": "maybe"}
    assert letters[-1]["raw"] == "1,2"
    assert (found.rows_read, found.events.num_rows) == (8, 1)


def test_one_row_may_make_several_events(tmp_path: Path) -> None:
    """An adapter may make many events of a row, or none; each is told by the row it was made from."""

    def convert(rows: pa.Table) -> pa.Table:
        made_of = np.array([1, 0, 1])
        ids = ["b", "a", None]
        kinds = pa.array(["note"] * 3)
        same = {"channel": kinds, "conversation_id": kinds, "occurred_at": pa.array([0, 1, 2])}
        return pa.table({"event_id": pa.array(ids), "event_type": kinds, SOURCE_ROW: pa.array(made_of), **same})

    adapter = Adapter("tickets", "Tickets.", ("number",), convert)
    (tmp_path / "a.csv").write_bytes(b"number,colour\n5,red\n6,green\n7,blue\n")
    found = read(tmp_path, source=adapter)
    assert found.events.select(["event_id", "source_row"]).to_pylist() == [
        {"event_id": "a", "source_row": 2},
        {"event_id": "b", "source_row": 3},
    ]
    assert found.dead_letters["raw"].to_pylist() == ['{"number": "6"}']


def test_exports_that_are_none(tmp_path: Path) -> None:
    """An unknown source, a column that is missing, a file that is no CSV."""
    path = tmp_path / "a.csv"
    path.write_bytes(export([QUESTION]).replace(b"inbound", b"incoming"))
    with pytest.raises(UserError, match="lacks inbound"):
        read(path)
    with pytest.raises(UserError, match="Expected a source out of twcs"):
        read(path, source="tweets")
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(UserError, match=r"line 1 of .* names none"):
        read(path)
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"{}\n")
    with pytest.raises(UserError, match="Expected CSV for --source twcs"):
        list(read_adapter(list_files([str(path)]), "twcs"))


def test_published_sample() -> None:
    """The published sample of the data: every tweet is an event, in threads that hold together."""
    path = golden.FOLDER.parent / "data" / "twcs_sample.csv"
    if not path.exists():
        pytest.skip("the published sample is not beside the project")
    found = read(path)
    assert (found.rows_read, found.events.num_rows) == (93, 93)
    rows = found.events.to_pylist()
    threads = Counter(row["conversation_id"] for row in rows)
    assert (len(threads), max(threads.values())) == (27, 8)
    assert {row["conversation_id"] for row in rows} <= {row["event_id"] for row in rows}
    assert all(row["account_id"] and not row["account_id"].isdigit() for row in rows if row["event_type"] == REPLY)
    assert all(row["customer_id"].isdigit() for row in rows)
    by_id = {row["event_id"]: row for row in rows}
    assert by_id["119245"]["conversation_id"] == "119246"
    assert by_id["119245"]["customer_id"] == "105836"
