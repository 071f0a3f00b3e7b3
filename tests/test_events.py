"""Parsing and validation: each rule of the contract's input section as rows of a table."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from transforms import schema
from transforms.events import ParsedEvents, parse_events
from transforms.raw_rows import RawRows, Unreadable
from transforms.schema import EVENT_COLUMNS, PARSED_EVENTS, TIMESTAMP
from transforms.tables import DEAD_LETTERS
from transforms.times import parse_times
from transforms.values import as_flags, as_numbers, as_text, as_words, codes_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SOUND = {
    "event_id": ["a"],
    "event_type": ["message"],
    "occurred_at": ["2026-03-02T00:00:00Z"],
    "channel": ["x"],
    "conversation_id": ["c"],
    "customer_id": ["u"],
}


class Rows:
    """Gives rows back as their place."""

    def restate(self, rows: np.ndarray) -> list[str]:
        """The place of each row."""
        return [str(row) for row in rows]


def raw_rows(columns: dict[str, Any], **more: Any) -> RawRows:
    """Rows from lists or arrays."""
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    count = len(next(iter(arrays.values())))
    return RawRows("f", arrays, np.arange(1, count + 1), Rows(), **more)


def parse(columns: dict[str, Any], **more: Any) -> ParsedEvents:
    """Parses one part and checks what always holds."""
    parsed = parse_events([raw_rows(columns, **more)])
    parsed.events.validate(full=True)
    assert parsed.events.schema == PARSED_EVENTS
    assert parsed.dead_letters.schema == DEAD_LETTERS.schema
    assert parsed.rows_read == parsed.events.num_rows + parsed.dead_letters.num_rows
    return parsed


def fault(change: dict[str, Any], **more: Any) -> tuple[str, str | None] | None:
    """Reason and column of one row that is sound but for the change; None where it is an event."""
    letters = parse(SOUND | change, **more).dead_letters.to_pylist()
    return (letters[0]["reason"], letters[0]["column_name"]) if letters else None


def micros(text: str) -> int:
    """Microseconds since the epoch of a time in ISO 8601."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


NIGHT = micros("2026-03-02T00:00:00Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-02T00:00:00Z", NIGHT),
        ("2026-03-02 00:00:00Z", NIGHT),
        ("2026-03-02T00:00Z", NIGHT),
        ("2026-03-02T01:00:00+01:00", NIGHT),
        ("2026-03-02T01:00+0100", NIGHT),
        ("2026-03-02T01:00:00+01", NIGHT),
        ("2026-03-01T23:30:00-00:30", NIGHT),
        ("2026-03-02T00:00:00.5Z", NIGHT + 500_000),
        ("2026-03-02T00:00:00.1234567899Z", NIGHT + 123_456),
        ("2026-03-02T00:00:00.9999999+00:00", NIGHT + 999_999),
        ("2024-02-29T00:00:00Z", micros("2024-02-29T00:00:00Z")),
        ("2000-02-29T00:00:00.1234567Z", micros("2000-02-29T00:00:00.123456Z")),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("", None),
    ],
)
@pytest.mark.parametrize("company", [[], ["2026-03-02T00:00:00.1234567Z"], ["no time"], [None]])
def test_times_in_text(text: str, expected: int | None, company: list[str | None]) -> None:
    """Text is read alike whether the column goes through Arrow's parser or through the patterns."""
    times = parse_times(pa.array([text, *company], pa.string()))
    assert times.wrong_type is None
    assert times.bad_time is None or not times.bad_time[0]
    assert times.values.cast(pa.int64())[0].as_py() == expected
    assert times.values.type == TIMESTAMP


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-02T00:00:00",
        "2026-03-02",
        "2026-03-02Z",
        "2026-03-02T00Z",
        "2026-03-02T00+01:00",
        "2026-03-02T24:00:00Z",
        "2026-03-02T00:60:00Z",
        "2026-03-02T00:00:60Z",
        "2026-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-03-00T00:00:00Z",
        "2026-03-02T00:00:00.Z",
        "2026-03-02T00:00:00,5Z",
        "2026-03-02t00:00:00z",
        "2026-03-02T00:00:00 Z",
        " 2026-03-02T00:00:00Z",
        "2026-03-02T00:00:00Z\n",
        "2026-03-02T00:00:00+24:00",
        "2026-03-02T00:00:00+01:60",
        "20260302T000000Z",
        "2026-3-2T00:00:00Z",
        "1772409600000",
        "yesterday",
    ],
)
@pytest.mark.parametrize("company", [[], ["2026-03-02T00:00:00Z"], [None]])
def test_text_that_is_no_time(text: str, company: list[str | None]) -> None:
    """What is not an ISO 8601 date and time with an offset is a bad time, and only that row."""
    times = parse_times(pa.array([*company, text], pa.string()))
    assert times.bad_time is not None
    assert times.bad_time.tolist() == [False] * len(company) + [True]
    assert times.values[-1].as_py() is None


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([NIGHT // 1000, None]), NIGHT),
        (pa.array([NIGHT // 1000], pa.uint64()), NIGHT),
        (pa.array([0], pa.int8()), 0),
        (pa.array([NIGHT / 1000]), NIGHT),
        (pa.array([NIGHT / 1000 + 0.5]), NIGHT + 500),
        (pa.array([float(f"{NIGHT // 1000}.001")]), NIGHT + 1),
        (pa.array([4_133_980_799_999.999]), schema.MAX_OCCURRED_AT - 1),
        (pa.array([Decimal(NIGHT // 1000)]), NIGHT),
        (pa.array([NIGHT * 1000 + 999], pa.timestamp("ns", "UTC")), NIGHT),
        (pa.array([NIGHT], pa.timestamp("us", "Europe/Berlin")), NIGHT),
        (pa.array([NIGHT // 1000], pa.timestamp("ms", "UTC")), NIGHT),
        (pa.array([NIGHT // 1_000_000, None], pa.timestamp("s", "+01:00")), NIGHT),
        (pa.array(["2026-03-02T00:00:00Z"]).dictionary_encode(), NIGHT),
        (pa.array(["2026-03-02T00:00:00Z"], pa.large_string()), NIGHT),
    ],
)
def test_times_of_other_types(array: pa.Array, expected: int) -> None:
    """Numbers are epoch milliseconds, timestamps with a zone are instants; finer than 1 µs is cut off."""
    times = parse_times(array)
    assert (times.wrong_type, times.bad_time) == (None, None)
    assert times.values.cast(pa.int64()).to_pylist() == [expected, None][: len(array)]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (pa.array([-1]), "out_of_range"),
        (pa.array([4_133_980_800_000]), "out_of_range"),
        (pa.array([2**63 - 1]), "out_of_range"),
        (pa.array([2**64 - 1], pa.uint64()), "out_of_range"),
        (pa.array([math.nan]), "out_of_range"),
        (pa.array([-math.inf]), "out_of_range"),
        (pa.array([-0.001]), "out_of_range"),
        (pa.array([4_133_980_800_000.0]), "out_of_range"),
        (pa.array(["1969-12-31T23:59:59.999999Z"]), "out_of_range"),
        (pa.array(["2101-01-01T00:00:00Z"]), "out_of_range"),
        (pa.array(["1970-01-01T00:00:00+00:01"]), "out_of_range"),
        (pa.array([2**62], pa.timestamp("s", "UTC")), "out_of_range"),
        (pa.array([-1], pa.timestamp("ns", "UTC")), "out_of_range"),
        (pa.array([datetime(2026, 3, 2)]), "bad_time"),
        (pa.array([date(2026, 3, 2)]), "bad_time"),
        (pa.array([True]), "wrong_type"),
        (pa.array([[1]]), "wrong_type"),
        (pa.array([b"2026-03-02T00:00:00Z"]), "wrong_type"),
        (pa.array([timedelta(1)]), "wrong_type"),
        (pa.array([None]), "missing"),
        (pa.array([""]), "missing"),
    ],
)
def test_faulty_times(array: pa.Array, reason: str) -> None:
    """Each way to be no usable time has its reason."""
    assert fault({"occurred_at": array}) == (reason, "occurred_at")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (str(NIGHT // 1000), NIGHT),
        (f"{NIGHT // 1000}.0", NIGHT),
        (f"{NIGHT // 1000}.", NIGHT),
        (f"{NIGHT // 1000}.0009", NIGHT),
        (f"{NIGHT // 1000}.9999", NIGHT + 999),
        ("1.7724096e12", NIGHT),
        ("2026-03-02T00:00:00Z", NIGHT),
        ("-1", -1),
        ("99999999999999999999", -1),
    ],
)
@pytest.mark.parametrize("company", [[], ["5"], ["5.5"], ["2026-03-02T00:00:00Z"]])
def test_digits_are_numbers_in_csv(text: str, expected: int, company: list[str]) -> None:
    """In CSV, digits are epoch milliseconds, cut (not rounded) to the microsecond."""
    times = parse_times(pa.array([text, *company]), digits_are_numbers=True)
    assert times.bad_time is None
    assert times.values.cast(pa.int64())[0].as_py() == expected


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        *((column.name, None, "missing") for column in EVENT_COLUMNS if not column.nullable),
        *((column.name, "", "missing") for column in EVENT_COLUMNS if not column.nullable),
        *((column.name, 1.5, "wrong_type") for column in EVENT_COLUMNS if column.type == pa.string()),
        *((column.name, True, "wrong_type") for column in EVENT_COLUMNS if column.type == pa.string()),
        *((column.name, ["a"], "wrong_type") for column in EVENT_COLUMNS if column.type == pa.string()),
        *((column.name, {"a": 1}, "wrong_type") for column in EVENT_COLUMNS),
        *((column.name, b"a", "wrong_type") for column in EVENT_COLUMNS),
        *((column.name, None, None) for column in EVENT_COLUMNS if column.nullable),
        *((column.name, "", None) for column in EVENT_COLUMNS if column.nullable),
        ("event_id", 7, None),
        ("event_type", 7, "unknown_event_type"),
        ("event_type", "Message", "unknown_event_type"),
        ("event_type", " message", "unknown_event_type"),
        ("author_type", 7, "unknown_author_type"),
        ("author_type", "Customer", "unknown_author_type"),
        ("author_type", "customer", None),
        ("author_type", "agent", "author_type_not_allowed"),
        ("author_type", "bot", "author_type_not_allowed"),
        ("author_type", "system", "author_type_not_allowed"),
        ("is_automated", 1, "wrong_type"),
        ("is_automated", "true", "wrong_type"),
        ("is_automated", True, None),
        ("sentiment", "0.5", "wrong_type"),
        ("sentiment", True, "wrong_type"),
        ("sentiment", 1, None),
        ("sentiment", -1.0, None),
        ("sentiment", 1.0000001, "out_of_range"),
        ("sentiment", math.nan, "out_of_range"),
        ("score", 5, None),
        ("score", 0.99, "out_of_range"),
        ("score", 5.01, "out_of_range"),
        ("score", math.inf, "out_of_range"),
        ("score", Decimal("4.5"), None),
        ("duration_seconds", 0, None),
        ("duration_seconds", -0.001, "out_of_range"),
        ("duration_seconds", schema.MAX_DURATION_SECONDS, None),
        ("duration_seconds", schema.MAX_DURATION_SECONDS * 1.001, "out_of_range"),
        ("text", 7, None),
    ],
)
def test_faults_of_single_values(column: str, value: Any, reason: str | None) -> None:
    """One row, sound but for one value: its reason and column, or none."""
    assert fault({column: pa.array([value])}) == (reason and (reason, column))


@pytest.mark.parametrize(
    ("event_type", "author_type", "reason"),
    [
        ("reply", "customer", "author_type_not_allowed"),
        *(("reply", author, None) for author in ("agent", "bot", "system", None)),
        *(("note", author, None) for author in (*schema.AUTHOR_TYPES, None)),
    ],
)
def test_authors(event_type: str, author_type: str | None, reason: str | None) -> None:
    """A reply comes from the brand; other events than message and reply may come from anybody."""
    found = fault({"event_type": [event_type], "author_type": pa.array([author_type], pa.string())})
    assert found == (reason and (reason, "author_type"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"conversation_id": [None], "customer_id": [None]}, ("missing", "customer_id")),
        ({"conversation_id": [""], "customer_id": [""]}, ("missing", "customer_id")),
        ({"conversation_id": [None], "customer_id": ["u"]}, None),
        ({"conversation_id": [None], "customer_id": [1.5]}, ("wrong_type", "customer_id")),
        ({"conversation_id": [1.5]}, ("wrong_type", "conversation_id")),
        ({"event_type": ["rating"]}, ("missing", "score")),
        ({"event_type": ["rating"], "score": ["high"]}, ("wrong_type", "score")),
        ({"event_type": ["rating"], "score": [math.nan]}, ("out_of_range", "score")),
        ({"event_type": ["rating"], "score": [5]}, None),
        ({"event_type": ["wrap_up"]}, ("missing", "duration_seconds")),
        ({"event_type": ["wrap_up"], "duration_seconds": [0]}, None),
        ({"event_type": ["?"], "occurred_at": [True], "event_id": [None]}, ("missing", "event_id")),
        ({"event_type": ["?"], "occurred_at": [True]}, ("unknown_event_type", "event_type")),
        ({"channel": [None], "occurred_at": ["?"]}, ("bad_time", "occurred_at")),
        ({"text": [1.5], "score": [9]}, ("out_of_range", "score")),
    ],
)
def test_rules_across_columns(change: dict[str, Any], expected: tuple[str, str] | None) -> None:
    """What one column needs of another; and the first faulty column in the contract's order is the one named."""
    assert fault(change) == expected


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("is_automated", "true", True),
        ("is_automated", "FALSE", False),
        ("is_automated", "True", True),
        ("is_automated", "1", True),
        ("is_automated", "0", False),
        ("is_automated", "", None),
        ("is_automated", "yes", "wrong_type"),
        ("is_automated", " true", "wrong_type"),
        ("sentiment", "-0.5", -0.5),
        ("sentiment", "1e-1", 0.1),
        ("sentiment", "+.5", 0.5),
        ("sentiment", "", None),
        ("sentiment", "nan", "out_of_range"),
        ("sentiment", "-Infinity", "out_of_range"),
        ("sentiment", "2", "out_of_range"),
        ("sentiment", "0,5", "wrong_type"),
        ("sentiment", " 0.5", "wrong_type"),
        ("sentiment", "good", "wrong_type"),
        ("event_id", "007", "007"),
        ("topic", " x ", " x "),
    ],
)
@pytest.mark.parametrize("company", ["", "?"])
def test_text_of_csv(column: str, text: str, expected: Any, company: str) -> None:
    """In CSV all values are text and are parsed to the column's type; a bad neighbour changes nothing."""
    columns = {name: values * 2 for name, values in SOUND.items()} | {column: [text, company]}
    parsed = parse(columns, all_text=True)
    letters = {row["source_row"]: row["reason"] for row in parsed.dead_letters.to_pylist()}
    events = {row["source_row"]: row[column] for row in parsed.events.to_pylist()}
    assert letters.get(1, events.get(1)) == expected


def test_output_types_and_places() -> None:
    """Codes for types and authors, dictionaries for words, and where each row came from."""
    columns = {
        "event_id": [1, 2, 3],
        "event_type": ["reply", "shout", "message"],
        "occurred_at": [NIGHT // 1000] * 3,
        "channel": ["x", "x", "email"],
        "customer_id": [5, 6, 7],
        "author_type": ["bot", None, None],
        "topic": ["", "a", "b"],
        "text": ["secret"] * 3,
    }
    parsed = parse(columns, partition=4)
    rows = parsed.events.to_pylist()
    assert [row["event_id"] for row in rows] == ["1", "3"]
    assert [row["event_type"] for row in rows] == [schema.REPLY, schema.MESSAGE]
    assert [row["author_type"] for row in rows] == [schema.BOT, None]
    assert [row["topic"] for row in rows] == [None, "b"]
    assert [row["customer_id"] for row in rows] == ["5", "7"]
    assert [(row["source"], row["source_partition"], row["source_row"]) for row in rows] == [("f", 4, 1), ("f", 4, 3)]
    assert parsed.dead_letters.to_pylist() == [
        {
            "source": "f",
            "source_partition": 4,
            "source_row": 2,
            "stage": "parse",
            "reason": "unknown_event_type",
            "column_name": "event_type",
            "raw": "1",
        }
    ]


def test_no_rows() -> None:
    """Nothing in, nothing out, in the right types."""
    for parts in ([], [raw_rows({name: [] for name in SOUND})]):
        parsed = parse_events(parts)
        assert parsed.events.schema == PARSED_EVENTS
        assert parsed.dead_letters.schema == DEAD_LETTERS.schema
        assert (parsed.events.num_rows, parsed.dead_letters.num_rows, parsed.rows_read) == (0, 0, 0)


def test_parts_add_up() -> None:
    """Parts with other types and other words come together in one table; unreadable rows count as rows."""
    unreadable = Unreadable(np.array([9]), ("{",))
    first = raw_rows(SOUND, unreadable=unreadable, unknown_columns=("b", "a"))
    second = raw_rows(SOUND | {"event_id": [7], "channel": ["email"]}, unknown_columns=("a",))
    parsed = parse_events([first, second])
    assert parsed.events["event_id"].to_pylist() == ["a", "7"]
    assert parsed.events["channel"].to_pylist() == ["x", "email"]
    assert parsed.unknown_columns == ("a", "b")
    assert parsed.rows_read == 3
    assert parsed.dead_letters.select(["source_row", "stage", "reason", "column_name", "raw"]).to_pylist() == [
        {"source_row": 9, "stage": "read", "reason": "unreadable", "column_name": None, "raw": "{"}
    ]


def test_faults_of_the_reader() -> None:
    """What the reader found at fault takes its place in the order of the columns."""
    faults = {("topic", "wrong_type"): np.array([True]), ("channel", "wrong_type"): np.array([True])}
    assert fault({"topic": [None], "channel": [None]}, faults=faults) == ("wrong_type", "channel")
    assert fault({"topic": [None], "channel": [None], "event_id": [""]}, faults=faults) == ("missing", "event_id")


@pytest.mark.parametrize(
    "words",
    [
        pa.array(["a", None, "", "b", "a"]),
        pa.array(["a", None, "", "b", "a"], pa.large_string()),
        pa.array(["a", None, "", "b", "a"], pa.string_view()),
        pa.array(["a", None, "", "b", "a"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int8()), pa.array(["a", None, "", "b", "a"])),
        pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 2, 0], pa.uint16()), pa.array(["a", "", "b", "z"])),
        pa.array(["z", "a", None, "", "b", "a", "z"]).dictionary_encode().slice(1, 5),
    ],
)
def test_words(words: pa.Array) -> None:
    """Words come as codes into a dictionary of distinct words, whatever they were; empty ones are null."""
    found, wrong = as_words(words)
    assert wrong is None
    assert found.type == schema.WORD
    assert found.to_pylist() == ["a", None, None, "b", "a"]
    assert len(found.dictionary.unique()) == len(found.dictionary)
    assert as_text(words)[0].to_pylist() == ["a", None, None, "b", "a"]
    assert codes_of(found, ("b", "c")).tolist() == [254, 255, 255, 0, 254]


def test_whole_numbers_are_text() -> None:
    """Integers and decimals without a fraction are ids; dictionaries of them as well."""
    for array in (pa.array([12, None]), pa.array([Decimal(12), None]), pa.array([12, None]).dictionary_encode()):
        values, wrong = as_text(array)
        assert (values.to_pylist(), wrong) == (["12", None], None)
    assert as_text(pa.array([Decimal("1.5")]))[1] is not None


def test_dictionaries_of_numbers_and_flags() -> None:
    """A dictionary is no type of its own: its values count."""
    assert as_numbers(pa.array([0.5, None, 0.5]).dictionary_encode())[0].to_pylist() == [0.5, None, 0.5]
    assert as_numbers(pa.array(["0.5"]).dictionary_encode())[1] is not None
    flags = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array([False, True]))
    assert as_flags(flags)[0].to_pylist() == [True, False]


def test_many_rows_with_few_faults() -> None:
    """Masks hit the right rows of a large batch."""
    count = 10_000
    columns = {name: values * count for name, values in SOUND.items()}
    columns["event_id"] = [str(row) for row in range(count)]
    columns["sentiment"] = [2.0 if row % 1000 == 7 else 0.0 for row in range(count)]
    columns["channel"] = [None if row % 5000 == 7 else "x" for row in range(count)]
    parsed = parse(columns)
    letters = parsed.dead_letters.to_pylist()
    assert [row["source_row"] for row in letters] == list(range(8, count, 1000))
    assert [row["reason"] for row in letters] == ["missing", *["out_of_range"] * 4] * 2
    assert [json.loads(row["raw"]) for row in letters] == list(range(7, count, 1000))
    assert parsed.events.num_rows == count - 10
