"""Messages of Kafka become rows, whatever they hold; no broker is needed for it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.kafka import messages
from pipelines.kafka.faults import LostOffsets
from pipelines.kafka.messages import read_messages
from pipelines.kafka.settings import KafkaOptions, kafka_options, read_settings
from pipelines.sources import ndjson
from pipelines.sources.blocks import Block
from transforms.errors import UserError
from transforms.events import ParsedEvents, parse_events
from transforms.schema import PARSED_EVENTS, RAW_LIMIT

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample" / "events.ndjson"
OURS = ("source", "source_partition", "source_row")


def event(number: int, **more: Any) -> dict[str, Any]:
    """A sound event."""
    row = {"event_id": f"e{number}", "event_type": "note", "occurred_at": "2026-03-02T00:00:00Z", "channel": "x"}
    return {**row, "conversation_id": f"c{number % 3}", **more}


def dumped(row: object, **options: Any) -> bytes:
    """JSON."""
    return json.dumps(row, ensure_ascii=False, **options).encode()


def parsed(values: list[bytes | None], topic: str = "t", partition: int = 3) -> ParsedEvents:
    """What becomes of messages with offsets 100, 110, 120 …; what always holds is checked."""
    offsets = np.arange(len(values), dtype=np.int64) * 10 + 100
    read = parse_events(read_messages(topic, partition, offsets, values))
    read.events.validate(full=True)
    read.dead_letters.validate(full=True)
    found = [*places(read.events), *places(read.dead_letters)]
    assert len(set(found)) == len(found) == read.rows_read
    assert {place[1] for place in found} <= {partition}
    assert {place[2] for place in found} <= set(offsets.tolist())
    return read


def places(table: pa.Table) -> list[tuple[str, int, int]]:
    """Source, partition and offset of each row."""
    return list(zip(*(table[name].to_pylist() for name in OURS), strict=True))


def letters(read: ParsedEvents) -> dict[tuple[str, int], tuple[str, str]]:
    """Reason and raw text of the dead letters, by source and offset."""
    table = read.dead_letters
    values = zip(places(table), table["reason"].to_pylist(), table["raw"].to_pylist(), strict=True)
    return {(source, offset): (reason, raw) for (source, _, offset), reason, raw in values}


def contents(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without their place, in an order of their own."""
    rows = table.drop_columns(list(OURS)).to_pylist()
    return sorted(rows, key=repr)


def as_lines(lines: bytes) -> ParsedEvents:
    """What the reader of NDJSON makes of lines."""
    return parse_events(ndjson.read(Block("lines", "ndjson", 1, lines)))


def test_one_object_a_message() -> None:
    """Place: topic, partition, offset; there may be gaps between offsets."""
    read = parsed([dumped(event(number)) for number in range(500)])
    assert read.dead_letters.num_rows == 0
    assert places(read.events) == [("t", 3, offset) for offset in range(100, 5_100, 10)]
    assert read.events["event_id"].to_pylist() == [f"e{number}" for number in range(500)]
    assert read.events.schema == PARSED_EVENTS


def test_the_same_as_from_a_file() -> None:
    """The sample, bad rows and all: the same events and dead letters, whatever way the rows came in."""
    lines = SAMPLE.read_bytes().splitlines()
    wanted = as_lines(b"\n".join(lines))
    whole = [row for row in lines if row.startswith(b"{") and row.endswith(b"}")]
    five = [b"[" + b",".join(whole[start : start + 5]) + b"]" for start in range(0, len(whole), 5)]
    for values in (lines, [row for row in lines if row not in set(whole)] + five):
        read = parsed(list(values))
        assert contents(read.events) == contents(wanted.events)
        assert read.rows_read == wanted.rows_read
    read = parsed(list(lines))
    assert contents(read.dead_letters) == contents(wanted.dead_letters)
    assert read.unknown_columns == wanted.unknown_columns


def test_an_array_is_a_row_for_each_element() -> None:
    """They share an offset; from the second one on the source tells which it is."""
    spaced = dumped([event(3), event(4)], indent=2)
    values = [dumped(event(0)), dumped([event(1), event(2)]), spaced, b"[]", b" [ ] ", b"\xef\xbb\xbf[" + spaced[1:]]
    read = parsed(list(values))
    assert read.dead_letters.num_rows == 0
    wanted = [("t", 100), ("t", 110), ("t[2]", 110), ("t", 120), ("t[2]", 120), ("t", 150), ("t[2]", 150)]
    assert [(source, offset) for source, _, offset in places(read.events)] == wanted
    assert read.events["event_id"].to_pylist() == ["e0", "e1", "e2", "e3", "e4", "e3", "e4"]


def test_elements_at_fault() -> None:
    """Each is a dead letter of its own, with its place, and the others are read."""
    array = [event(0), 5, event(1, event_type="nonsense", text="secret"), "x", [event(2)], None, event(3)]
    read = parsed([dumped(array)])
    assert read.events["source"].to_pylist() == ["t", "t[7]"]
    found = letters(read)
    assert {source: reason for (source, _), (reason, _) in found.items()} == {
        "t[2]": "unreadable",
        "t[3]": "unknown_event_type",
        "t[4]": "unreadable",
        "t[5]": "unreadable",
        "t[6]": "unreadable",
    }
    assert found["t[2]", 100][1] == "5"
    assert "secret" not in found["t[3]", 100][1]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b" \r\n\t ",
        b"nonsense",
        b"5",
        b'"text"',
        b"null",
        b"{",
        b"}",
        b"{}{}",
        b"{}\n{}",
        b'{"event_id": "a',
        b'{"event_id": "a\nb"}',
        b'{"event_id": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b"[",
        b"]",
        b"[{}",
        b"[{},",
        b"[{},]",
        b"[,{}]",
        b"[{} {}]",
        b"[{}]x",
        b"[{}]\n[{}]",
        b'[{"event_id": "\xff"}]',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        bytes(300),
    ],
)
def test_poison(value: bytes | None) -> None:
    """It is one unreadable row, with its beginning as it came, and its neighbours are not touched."""
    for neighbours in (0, 1, 40):
        around: list[bytes | None] = [dumped(event(number)) for number in range(neighbours)]
        read = parsed([*around, value, *around])
        assert read.events.num_rows == 2 * neighbours
        raw = (value or b"").decode("utf-8", "replace")[:RAW_LIMIT]
        assert letters(read) == {("t", 100 + 10 * neighbours): ("unreadable", raw)}


def test_only_poison() -> None:
    """Nothing to read at all, or no message."""
    assert parsed([None, None, b""]).dead_letters["raw"].to_pylist() == ["", "", ""]
    assert parsed([]).rows_read == 0


def test_oversized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value over the limit of a line is not parsed; its beginning is kept."""
    monkeypatch.setattr(messages, "MAX_LINE_BYTES", 5_000)
    values = [dumped(event(0)), dumped(event(1, text="é" * 5_000)), dumped([event(2, text="x" * 5_000)])]
    read = parsed([*values, dumped(event(3, text="x" * 4_000))])
    assert read.events["event_id"].to_pylist() == ["e0", "e3"]
    raw = {offset: raw for (_, offset), (_, raw) in letters(read).items()}
    assert raw == {110: values[1].decode()[:RAW_LIMIT], 120: values[2].decode()[:RAW_LIMIT]}


def test_pretty_printed() -> None:
    """Line ends between values are spaces; dead letters and poison tell what came."""
    rows = [event(0), event(1, channel=None, text="secret"), event(2)]
    for end in (b"\n", b"\r\n"):
        values = [dumped(row, indent=2).replace(b"\n", end) for row in rows]
        read = parsed([*values, values[0][:50], dumped(event(3))])
        assert read.events["event_id"].to_pylist() == ["e0", "e2", "e3"]
        found = letters(read)
        assert json.loads(found["t", 110][1]) == {name: v for name, v in rows[1].items() if name != "text"}
        assert found["t", 130] == ("unreadable", values[0][:50].decode())


def test_numbers_keep_their_spelling() -> None:
    """Inside arrays as well: what is written is parsed, not a double of it."""
    exact = b'{"event_id": 12345678901234567890123, "event_type": "note", "occurred_at": 1772409600000.9999, ' + dumped(
        {"channel": "x", "conversation_id": "c"}
    ).removeprefix(b"{")
    long = exact.replace(b"12345678901234567890123", b"1" * 5_000).replace(b".9999", b"")
    read = parsed([exact, b"[%s, %s]" % (exact, exact), b"[%s]" % long])
    wanted = as_lines(exact)
    assert read.events.num_rows == 3
    assert set(read.events["event_id"].to_pylist()) == {"12345678901234567890123"}
    assert set(read.events["occurred_at"].to_pylist()) == set(wanted.events["occurred_at"].to_pylist())
    [reason] = as_lines(long).dead_letters["reason"].to_pylist()
    assert letters(read)["t", 120][0] == reason


def test_large_chunks_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result; a message larger than a block has one of its own."""
    values: list[bytes | None] = [dumped(event(n, text="x" * (n * 37 % 500))) for n in range(300)]
    values[7], values[100], values[250] = None, dumped([event(1_000 + n) for n in range(50)]), b"nonsense"
    whole = parsed(values)
    for size in (1, 1_000, 20_000):
        monkeypatch.setattr(messages, "BLOCK_BYTES", size)
        cut = parsed(values)
        assert cut.events.sort_by("event_id") == whole.events.sort_by("event_id")
        assert letters(cut) == letters(whole)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_EVENTS = st.builds(event, st.integers(0, 99), text=st.text(max_size=9), topic=_VALUES, extra=_VALUES)
_OBJECTS = st.tuples(_EVENTS, st.sampled_from([None, 1, "\t"])).map(lambda given: dumped(given[0], indent=given[1]))
_ARRAYS = st.tuples(st.lists(_EVENTS | _VALUES, max_size=4), st.sampled_from([None, 1]))
_POISON = st.none() | st.binary(max_size=20) | _VALUES.map(dumped)


@given(st.lists(_OBJECTS | _ARRAYS.map(lambda given: dumped(given[0], indent=given[1])) | _POISON, max_size=60))
def test_every_message_is_accounted_for(values: list[bytes | None]) -> None:
    """As many rows as there are, each in one place, the same as each message gives alone."""
    read = parsed(values)
    rows = 0
    for number, value in enumerate(values):
        alone = parse_events(read_messages("t", 3, np.array([100 + 10 * number]), [value]))
        rows += alone.rows_read
        offset = 100 + 10 * number
        ours = {source: row for (source, row), _ in letters(read).items() if row == offset}
        assert ours == {source: row for (source, row), _ in letters(alone).items()}
        try:
            whole = json.loads(value or b"")
        except (ValueError, UnicodeDecodeError):
            continue
        assert alone.rows_read == (len(whole) if isinstance(whole, list) else 1)
    assert read.rows_read == rows


@given(st.lists(_EVENTS.map(dumped), max_size=60))
def test_the_same_as_lines(rows: list[bytes]) -> None:
    """Objects without line ends in them are what the reader of NDJSON makes of the same lines."""
    ours, theirs = parsed(list(rows)), as_lines(b"\n".join(rows))
    assert contents(ours.events) == contents(theirs.events)
    assert contents(ours.dead_letters) == contents(theirs.dead_letters)


# Options and faults


def properties(folder: Path, text: str) -> Path:
    """A file of settings."""
    file = folder / "client.properties"
    file.write_text(text, encoding="utf-8")
    return file


def test_settings(tmp_path: Path) -> None:
    """As Java's properties; the address may be there too, and secrets are not shown."""
    file = properties(
        tmp_path,
        "# TLS and a password\nbootstrap.servers = kafka.example:9093\nsecurity.protocol=SASL_SSL\n"
        "sasl.mechanism: PLAIN\nsasl.username=care\nsasl.password=open\\\\sesame\n",
    )
    options = kafka_options(None, ["a", "b", "a"], file)
    assert (options.bootstrap_servers, options.topics) == ("kafka.example:9093", ("a", "b"))
    assert dict(options.settings)["sasl.password"] == "open\\sesame"
    assert "sesame" not in repr(options) and "sesame" not in str(options)
    assert options.without_secrets("not open\\sesame or so") == "not *** or so"
    assert pickle.loads(pickle.dumps(options)) == options and hash(options)
    assert kafka_options("other:1", ["a"], file).bootstrap_servers == "other:1"
    assert options.pattern is None and kafka_options("h", ["^care-"]).pattern is not None
    assert options.is_read_committed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nosuch.setting=1", "got 'nosuch.setting', which it does not know"),
        ("security.protocol=geheim", "Expected for security.protocol in .* a value that librdkafka takes"),
        ("fetch.wait.max.ms=geheim", r"Expected for fetch\.wait\.max\.ms"),
        ("sasl.jaas.config=geheim", "Java JAAS configuration is not supported"),
        ("ssl.ca.location=/nosuch\nsecurity.protocol=SSL", "ssl.ca.location failed"),
        ("ssl.key.pem=geheim\nsecurity.protocol=SSL", "ssl.key.pem failed"),
        ("auto.offset.reset=latest", "how topics are read is not to be changed"),
        ("error_cb=geheim", "Expected no error_cb"),
        ("geheim", "got 'geheim' without a value"),
        ("sasl.password=\\u12geheim", "write a backslash as two"),
    ],
)
def test_settings_at_fault(tmp_path: Path, text: str, said: str) -> None:
    """One sentence that names the setting and the file, and never tells a value."""
    file = properties(tmp_path, text)
    with pytest.raises(UserError, match=said) as refused:
        kafka_options("h:1", ["a"], file)
    message = str(refused.value)
    assert str(file) in message and message.endswith(".") and "\n" not in message
    assert "geheim" not in message or said.startswith("got 'geheim'")


def test_settings_that_can_not_be_read(tmp_path: Path) -> None:
    """No file, a folder, no text."""
    for path in (tmp_path / "nosuch", tmp_path):
        with pytest.raises(UserError, match="Expected a file of Kafka settings at"):
            read_settings(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="in UTF-8"):
        read_settings(tmp_path / "binary")


@pytest.mark.parametrize(
    ("servers", "topics", "said"),
    [
        (None, ["a"], "Expected the address of Kafka, such as localhost:9092"),
        (" ", ["a"], "Expected the address of Kafka"),
        ("h", [], "Expected a topic to read"),
        ("h", ["^a", "b"], "Expected names of topics or one pattern, got 2"),
        ("h", ["^a("], "Expected a regular expression"),
        ("h", ["a b"], "Expected the name of a topic"),
        ("h", ["a" * 250], "Expected the name of a topic"),
    ],
)
def test_options_at_fault(servers: str | None, topics: list[str], said: str) -> None:
    """Each in one sentence."""
    with pytest.raises(UserError, match=said):
        kafka_options(servers, topics)


def test_what_is_lost_is_told() -> None:
    """Deleted by retention, made anew, or not there at all."""
    start = "Expected offset 5 in partition 1 of topic t, but it "
    assert str(LostOffsets("t", 1, 5, 7, 10)) == start + (
        "has offsets 7 to 9: the others were deleted, by its retention."
    )
    assert str(LostOffsets("t", 1, 5, 0, 3)) == start + "has offsets 0 to 2: it was made anew."
    assert str(LostOffsets("t", 1, 5, 0, 0)) == start + "has no message: it was made anew."
    assert str(LostOffsets("t", 1, 5, 9, 9)) == start + "has no message: the others were deleted, by its retention."
    assert str(LostOffsets("t", 1, 5, None, None)) == start + "is not there any more."
    lost = pickle.loads(pickle.dumps(LostOffsets("t", 1, 5, 7, 10)))
    assert (lost.topic, lost.partition, lost.wanted, lost.low, lost.high) == ("t", 1, 5, 7, 10)


def test_options_say_nothing_of_settings_when_nested() -> None:
    """Neither where they are part of something else that is shown."""
    assert "geheim" not in repr([KafkaOptions("h", ("a",), (("sasl.password", "geheim"),))])
