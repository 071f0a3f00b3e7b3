"""Finding files, cutting them into blocks and reading the blocks: every format, and what can be wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import golden
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import reference
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources import ahead, delimited, files, lines, ndjson, tables
from pipelines.sources import blocks as blocks_module
from pipelines.sources.ahead import read_ahead, taken
from pipelines.sources.blocks import Block
from pipelines.sources.files import InputFile, list_files
from pipelines.sources.formats import blocks, estimate_rows, read_block
from transforms.errors import UserError
from transforms.events import ParsedEvents, parse_events
from transforms.schema import PARSED_EVENTS

Row = dict[str, Any]

ROWS: list[Row] = [
    {
        "event_id": f"e{number}",
        "event_type": "message" if number % 2 else "reply",
        "occurred_at": datetime(2026, 3, 2, 0, 0, number, 250_000, tzinfo=UTC),
        "channel": "x",
        "account_id": None if number % 3 else "acme",
        "conversation_id": f"c{number % 5}",
        "is_automated": [True, False, None][number % 3],
        "sentiment": [0.5, None, -1.0][number % 3],
        "text": 'Größe "L",\nplease',
    }
    for number in range(1, 31)
]


def as_table() -> pa.Table:
    """ROWS as an Arrow table."""
    return pa.Table.from_pylist(ROWS)


def as_ndjson(rows: list[Row] = ROWS) -> bytes:
    """Rows as NDJSON."""
    return b"".join(json.dumps(row, default=datetime.isoformat).encode() + b"\n" for row in rows)


def as_csv() -> bytes:
    """ROWS as CSV, quoted where needed."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows([{name: "" if value is None else value for name, value in row.items()} for row in ROWS])
    return text.getvalue().encode()


def as_parquet(table: pa.Table | None = None, **options: Any) -> bytes:
    """A table (ROWS) as a Parquet file of small row groups."""
    sink = pa.BufferOutputStream()
    pq.write_table(as_table() if table is None else table, sink, **{"row_group_size": 7, **options})
    return sink.getvalue().to_pybytes()


def as_arrow(table: pa.Table | None = None, stream: bool = False, codec: str | None = None) -> bytes:
    """A table (ROWS) as an Arrow IPC file or stream of small record batches."""
    table = as_table() if table is None else table
    sink = pa.BufferOutputStream()
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opened(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


def zstd(content: bytes) -> bytes:
    """Content compressed by Zstandard, as the command-line tool does."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def parsed(path: Path | str, format: str | None = None) -> ParsedEvents:
    """Everything in one file, and what always holds."""
    [file] = list_files([str(path)], format)
    found = [parse_events(read_block(block)) for block in blocks(file)]
    events = pa.concat_tables([PARSED_EVENTS.empty_table(), *(one.events for one in found)])
    letters = pa.concat_tables([parse_events([]).dead_letters, *(one.dead_letters for one in found)])
    events.validate(full=True)
    letters.validate(full=True)
    unknown = sorted({name for one in found for name in one.unknown_columns})
    read = ParsedEvents(events, letters, sum(one.rows_read for one in found), tuple(unknown))
    assert read.rows_read == events.num_rows + letters.num_rows
    return read


def content(read: ParsedEvents, *names: str) -> list[tuple[Any, ...]]:
    """Values of the events, by place; without the name of the source unless asked for."""
    names = names or tuple(name for name in PARSED_EVENTS.names if name != "source")
    return sorted(zip(*(read.events[name].to_pylist() for name in ("source_row", *names)), strict=True))


def letters(read: ParsedEvents) -> list[tuple[int, str, str | None]]:
    """Place, reason and column of the dead letters, by place."""
    columns = (read.dead_letters[name].to_pylist() for name in ("source_row", "reason", "column_name"))
    return sorted(zip(*columns, strict=True))


def written(folder: Path, name: str, content: bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


SOUND = (
    b'{"event_id": "a", "event_type": "note", "occurred_at": "2026-03-02T00:00:00Z", "channel": "x",'
    b' "conversation_id": "c"}'
)
HEADER = b"event_id,event_type,occurred_at,channel,conversation_id,text\n"
RECORD = b"a,note,2026-03-02T00:00:00Z,x,c,\n"


# Every format


@pytest.mark.parametrize(
    ("name", "content_of", "rows_a_unit"),
    [
        ("a.ndjson", as_ndjson, 1),
        ("a.jsonl.gz", lambda: gzip.compress(as_ndjson()), 1),
        ("a.json.zst", lambda: zstd(as_ndjson()), 1),
        ("a.ndjson.gz", lambda: gzip.compress(as_ndjson(ROWS[:11])) + gzip.compress(as_ndjson(ROWS[11:])), 1),
        ("a.csv", as_csv, 2),
        ("a.csv.gz", lambda: gzip.compress(as_csv()), 2),
        ("a.csv.zstd", lambda: zstd(as_csv()), 2),
        ("a.parquet", as_parquet, 1),
        ("a.pq", lambda: as_parquet(compression="zstd", use_dictionary=False), 1),
        ("a.arrow", as_arrow, 1),
        ("a.feather", lambda: as_arrow(codec="lz4"), 1),
        ("a.arrows", lambda: as_arrow(stream=True), 1),
        ("a.arrows.gz", lambda: gzip.compress(as_arrow(stream=True)), 1),
        ("no_suffix", as_parquet, 1),
        ("no_suffix_either", as_csv, 2),
        ("nor_here", lambda: gzip.compress(as_ndjson()), 1),
    ],
)
def test_same_events_in_every_format(
    tmp_path: Path, name: str, content_of: Callable[[], bytes], rows_a_unit: int
) -> None:
    """One content, many formats and compressions: the same events with their places."""
    read = parsed(written(tmp_path, name, content_of()))
    assert read.dead_letters.num_rows == 0
    assert read.unknown_columns == ()
    first = 2 if rows_a_unit == 2 else 1
    assert read.events["source_row"].to_pylist() == [first + rows_a_unit * row for row in range(len(ROWS))]
    names = [name for name in ROWS[0] if name not in ("text", "event_type")]
    assert read.events.select(names).to_pylist() == [{name: row[name] for name in names} for row in ROWS]
    assert set(read.events["source"].to_pylist()) == {str(tmp_path / name)}


def test_blocks_can_be_sent(tmp_path: Path) -> None:
    """Blocks are pickled where steps are not fused; what is read from them stays the same."""
    for name, content_of in {
        "a.ndjson": as_ndjson,
        "a.csv": as_csv,
        "a.parquet": as_parquet,
        "a.arrow": as_arrow,
    }.items():
        [file] = list_files([str(written(tmp_path, name, content_of()))])
        for block in blocks(pickle.loads(pickle.dumps(file))):
            sent = read_block(pickle.loads(pickle.dumps(block)))
            assert parse_events(sent).events == parse_events(read_block(block)).events


@pytest.mark.parametrize(
    ("name", "content_of"),
    [
        ("a.ndjson", as_ndjson),
        ("a.csv", lambda: as_csv().replace(b",\nplease", b", please")),
        ("a.parquet", as_parquet),
        ("a.arrow", as_arrow),
        ("a.ndjson.gz", lambda: gzip.compress(as_ndjson())),
    ],
)
def test_estimate_of_rows(tmp_path: Path, name: str, content_of: Callable[[], bytes]) -> None:
    """A look at the beginning tells about how many rows there are."""
    [file] = list_files([str(written(tmp_path, name, content_of()))])
    assert len(ROWS) <= estimate_rows(file) <= 2 * len(ROWS) + 2


@pytest.mark.parametrize("case", golden.cases() or [None], ids=lambda case: case and f"{case.parent.name}/{case.name}")
def test_golden_dead_letters(case: Path | None) -> None:
    """The golden cases: rows read, and dead letters by reason (conflicting duplicates are found later)."""
    if case is None:
        pytest.skip("the golden cases are not beside the project")
    expected = json.loads((case / "counts.json").read_text())
    read = parsed(case / "events.ndjson")
    reasons = Counter(expected["dead_letters_by_reason"])
    del reasons["conflicting_duplicate"]
    assert Counter(read.dead_letters["reason"].to_pylist()) == reasons
    assert read.rows_read == expected["rows_read"]


def test_real_sample() -> None:
    """Real conversations in the contract's format: every row is an event."""
    path = golden.FOLDER.parent / "data" / "ibm_care_dev.ndjson"
    if not path.exists():
        pytest.skip("the real sample is not beside the project")
    read = parsed(path)
    assert (read.rows_read, read.events.num_rows) == (1211, 1211)
    assert read.unknown_columns == ("in_reply_to",)


# Files


def test_files_of_a_folder(tmp_path: Path) -> None:
    """A folder is taken with all that is in it, sorted; hidden and unfinished files are left out."""
    for name in ("b/2.ndjson", "a.ndjson", "b/1.csv", "b/c/3.parquet", "b/.c/4.ndjson"):
        written(tmp_path, name, as_csv() if name.endswith("csv") else as_parquet() if "parq" in name else as_ndjson())
    for name in (".a.ndjson", "_SUCCESS", "b/x.ndjson.tmp", "_temporary/1.ndjson", "x.ndjson~", "y.parquet.crdownload"):
        written(tmp_path, name, b"\x00")
    found = list_files([str(tmp_path)])
    assert [os.path.relpath(file.path, tmp_path) for file in found] == [
        "a.ndjson",
        "b/1.csv",
        "b/2.ndjson",
        "b/c/3.parquet",
    ]
    assert [file.format for file in found] == ["ndjson", "csv", "ndjson", "parquet"]
    assert found[0].size == len(as_ndjson())


def test_each_file_once(tmp_path: Path) -> None:
    """However many patterns, spellings or links lead to it."""
    path = written(tmp_path, "d/a.ndjson", as_ndjson())
    (tmp_path / "link.ndjson").symlink_to(path)
    patterns = [
        str(path),
        f"file://{path}",
        str(tmp_path / "d"),
        f"{tmp_path}/d/../d/a.ndjson",
        f"{tmp_path}/**/*.ndjson",
    ]
    assert [file.path for file in list_files([*patterns, str(tmp_path)])] == [str(path)]
    assert [file.path for file in list_files(patterns[3:4])] == [str(path)]


def test_globs(tmp_path: Path) -> None:
    """A glob finds files and folders; a file that is named in full is taken whatever its name."""
    written(tmp_path, "2026-01/a.ndjson", as_ndjson())
    written(tmp_path, "2026-02/a.ndjson", as_ndjson())
    written(tmp_path, "2025-12/a.ndjson", as_ndjson())
    assert len(list_files([f"{tmp_path}/2026-*"])) == 2
    assert len(list_files([f"{tmp_path}/2026-*/*.ndjson"])) == 2
    hidden = written(tmp_path, "_a[1].ndjson", as_ndjson())
    assert [file.path for file in list_files([str(hidden)])] == [str(hidden)]
    with pytest.raises(UserError, match="matches none"):
        list_files([f"{tmp_path}/_*.ndjson"])


@pytest.mark.parametrize("pattern", ["nothing", "no*thing", "empty", "deep"])
def test_nothing_found(tmp_path: Path, pattern: str) -> None:
    """A path that leads to no file is an error, never an empty run."""
    (tmp_path / "empty").mkdir()
    written(tmp_path, "deep/.hidden", b"")
    with pytest.raises(UserError, match=r"^Expected .*(does not exist|matches none).*check the path"):
        list_files([str(written(tmp_path, "a.ndjson", SOUND)), f"{tmp_path}/{pattern}"])
    with pytest.raises(UserError, match="at least one input path"):
        list_files([])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", as_ndjson(), "looks like ndjson"),
        ("a.parquet", as_ndjson(), "looks like ndjson"),
        ("a.parquet", b"hello", "looks like something else"),
        ("a.arrow", as_parquet(), "looks like parquet"),
        ("a.ndjson", as_csv(), "looks like csv"),
        ("a.ndjson", as_arrow(), "looks like arrow"),
        ("a.json", as_arrow(stream=True), "looks like arrow"),
        ("a.json", b'[\n{"event_id": "a"}]', "JSON array"),
        ("a", b"[1, 2]", "JSON array"),
        ("a.txt", b"hello\n", "cannot be told"),
        ("README", b"\x89PNG", "cannot be told"),
        ("a.ndjson.gz", as_ndjson(), "content says none"),
        ("a.ndjson.zst", gzip.compress(as_ndjson()), "content says gz"),
        ("a.ndjson.bz2", b"BZh91AY", "is bzip2"),
        ("a.zip", b"PK\x03\x04", "is zip"),
        ("a.ndjson", "{}".encode("utf-16"), "is UTF-16"),
        ("a.csv.gz", gzip.compress(as_csv().decode().encode("utf-16")), "is UTF-16"),
        ("a.parquet.gz", gzip.compress(as_parquet()), "no compression around"),
        ("a.arrow.zst", zstd(as_arrow()), "no compression around"),
        ("a.parquet", b"", "is empty"),
        ("a.arrow", b"", "is empty"),
        ("a.ndjson.gz", gzip.compress(as_ndjson())[:10], "cannot be read at its beginning"),
    ],
)
def test_formats_that_cannot_be_told(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """Content and name contradict each other, or tell nothing: an error that names the file."""
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=said) as caught:
        list_files([str(path)])
    assert str(path) in str(caught.value)


def test_given_format(tmp_path: Path) -> None:
    """A given format stands in for the name; content that is plainly something else is still an error."""
    path = written(tmp_path, "a.txt", b"broken\n" + SOUND)
    assert list_files([str(path)], "ndjson")[0].format == "ndjson"
    assert letters(parsed(path, "ndjson")) == [(1, "unreadable", None)]
    with pytest.raises(UserError, match="--format says"):
        list_files([str(written(tmp_path, "a.parquet", as_parquet()))], "csv")
    with pytest.raises(UserError, match="Expected a format out of"):
        list_files([str(path)], "xml")


@pytest.mark.parametrize("content", [b"", b"\n", b" \t\r\n\n  ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["a.ndjson", "a.csv", "a"])
def test_empty_text_files(tmp_path: Path, name: str, content: bytes) -> None:
    """An empty file, or one of blank lines, has no rows; it is no error."""
    read = parsed(written(tmp_path, name, content))
    assert (read.rows_read, read.events.num_rows) == (0, 0)
    assert parsed(written(tmp_path, f"{name}.gz", gzip.compress(content))).rows_read == 0


def test_file_that_went_away(tmp_path: Path) -> None:
    """A file that cannot be opened any more is an error of one sentence."""
    path = written(tmp_path, "a.ndjson", SOUND)
    [file] = list_files([str(path)])
    path.unlink()
    with pytest.raises(UserError, match="can be opened"):
        list(blocks(file))


def test_addresses_with_a_scheme() -> None:
    """Beam's file systems are asked for what has a scheme: exact names, globs and folders."""
    from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem

    stored = {
        "care://bucket/in/a.ndjson": as_ndjson(),
        "care://bucket/in/b.parquet": as_parquet(),
        "care://bucket/in/_SUCCESS": b"",
        "care://bucket/in/deep/c.csv.gz": gzip.compress(as_csv()),
        "care://bucket/other.ndjson": as_ndjson(),
    }

    class CareFileSystem(FileSystem):
        """Files in memory."""

        @classmethod
        def scheme(cls) -> str:
            """Of the addresses."""
            return "care"

        def join(self, basepath: str, *paths: str) -> str:
            """Puts an address together."""
            return "/".join([basepath, *paths])

        def split(self, path: str) -> tuple[str, str]:
            """Folder and name."""
            folder, _, name = path.rpartition("/")
            return folder, name

        def has_dirs(self) -> bool:
            """Object stores have none."""
            return False

        def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
            for path, content in stored.items():
                if path.startswith(dir_or_prefix):
                    yield FileMetadata(path, len(content))

        def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> io.BytesIO:
            """A stored file."""
            assert compression_type == CompressionTypes.UNCOMPRESSED
            return io.BytesIO(stored[path])

        def _refuse(self, *args: Any) -> Any:
            raise NotImplementedError

        mkdirs = create = copy = rename = size = last_updated = checksum = delete = _refuse

        def metadata(self, path: str) -> FileMetadata:
            """Of a stored file."""
            return FileMetadata(path, len(stored[path]))

        def exists(self, path: str) -> bool:
            """Whether it is stored."""
            return path in stored

    CareFileSystem.__abstractmethods__ = frozenset()
    inside = ["care://bucket/in/a.ndjson", "care://bucket/in/b.parquet", "care://bucket/in/deep/c.csv.gz"]
    for pattern in ("care://bucket/in", "care://bucket/in/", "care://bucket/in/**"):
        assert [file.path for file in list_files([pattern])] == inside
    assert [file.path for file in list_files(["care://bucket/*.ndjson"])] == ["care://bucket/other.ndjson"]
    for path in inside:
        assert parsed(path).events.num_rows == len(ROWS)
    with pytest.raises(UserError, match="matches none"):
        list_files(["care://bucket/nothing"])
    with pytest.raises(UserError, match="can be listed"):
        list_files(["nosuch://bucket/a"])


# Damaged files


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["a.ndjson", "a.csv"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compression(tmp_path: Path, compress: Callable[[bytes], bytes], name: str, damage: str) -> None:
    """A file that breaks off, or does not fit its checksum, ends the run with its name and the place."""
    rows = b"".join(b"%d" % number + RECORD for number in range(300_000))
    text = HEADER + rows if name == "a.csv" else as_ndjson([dict(ROWS[0], occurred_at=n) for n in range(60_000)])
    packed = bytearray(compress(text))
    if damage == "cut":
        del packed[-50:]
    else:
        packed[len(packed) // 2] ^= 0xFF
    path = written(tmp_path, name + (".gz" if compress is gzip.compress else ".zst"), bytes(packed))
    with pytest.raises(UserError, match=r"cannot be read at byte [\d,]+ of its content") as caught:
        parsed(path)
    assert str(path) in str(caught.value)


def test_damaged_parquet(tmp_path: Path) -> None:
    """A broken footer or page names file and place."""
    path = written(tmp_path, "a.parquet", as_parquet()[:-4])
    with pytest.raises(UserError, match="its footer"):
        parsed(path)
    content = bytearray(as_parquet(compression="gzip"))
    start = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    written(tmp_path, "a.parquet", bytes(content))
    with pytest.raises(UserError, match="row group 3"):
        parsed(path)


@pytest.mark.parametrize("stream", [False, True])
def test_damaged_arrow(tmp_path: Path, stream: bool) -> None:
    """A file or stream that breaks off names the place."""
    path = written(tmp_path, "a.arrow", as_arrow(stream=stream)[:-900])
    with pytest.raises(UserError, match=r"record batch \d"):
        parsed(path)


# NDJSON


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the size of a block of text."""

    def set_size(size: int) -> None:
        monkeypatch.setattr(lines, "BLOCK_BYTES", size)
        monkeypatch.setattr(delimited, "BLOCK_BYTES", size)

    return set_size


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_lines_have_their_numbers(
    tmp_path: Path, small_blocks: Callable[[int], None], size: int, ending: bytes
) -> None:
    """Blank lines, byte order marks and line ends of either kind count as lines and nothing else."""
    small_blocks(size)
    text = ending.join(
        [b"\xef\xbb\xbf" + SOUND, b"", b"  \t", SOUND, b"{", b"", b" " + SOUND + b" ", b"\xef\xbb\xbf" + SOUND]
    )
    read = parsed(written(tmp_path, "a.ndjson", text))
    assert read.events["source_row"].to_pylist() == [1, 4, 7, 8]
    assert letters(read) == [(5, "unreadable", None)]


def test_raw_rows_of_dead_letters(tmp_path: Path) -> None:
    """The row as it came, without its text; an unreadable line is cut."""
    bad = [
        b'{"event_id": null, "colour":  "red"}',
        b'{"event_id": "", "text": "secret", "colour": "r\xc3\xb6t"}',
        b'{"event_id": "", "t\\u0065xt": "secret", "n": [1, {"text": "kept"}]}',
        b"{" + b"x" * 2_000,
        b'{"event_id": "\xff"}',
        b"\xe2\x82",
    ]
    for company in (0, 2_000):
        read = parsed(written(tmp_path, "a.ndjson", b"\n".join(bad + [SOUND] * company)))
        raw = read.dead_letters.sort_by("source_row")["raw"].to_pylist()
        assert raw[0] == '{"event_id": null, "colour":  "red"}'
        assert json.loads(raw[1]) == {"event_id": "", "colour": "röt"}
        assert json.loads(raw[2]) == {"event_id": "", "n": [1, {"text": "kept"}]}
        assert raw[3] == "{" + "x" * 999
        assert raw[4] == '{"event_id": "\ufffd"}'
        assert raw[5] == "\ufffd"
        assert [reason for _, reason, _ in letters(read)] == ["missing"] * 3 + ["unreadable"] * 3
        assert company or read.unknown_columns == ("colour", "n")


def line_with(**change: Any) -> bytes:
    """A sound line but for some values; bytes are put in as they are."""
    row = json.loads(SOUND)
    marks = {f"@{name}@": value for name, value in change.items() if isinstance(value, bytes)}
    row |= {name: f"@{name}@" if isinstance(value, bytes) else value for name, value in change.items()}
    line = json.dumps(row).encode()
    for mark, value in marks.items():
        line = line.replace(json.dumps(mark).encode(), value)
    return line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (line_with(sentiment=b"NaN"), "out_of_range"),
        (line_with(sentiment=b"-NaN"), "out_of_range"),
        (line_with(sentiment=b"Infinity"), "out_of_range"),
        (line_with(sentiment=b"-Inf"), "out_of_range"),
        (line_with(sentiment=b"1e999"), "out_of_range"),
        (line_with(sentiment=b"9" * 400), "out_of_range"),
        (line_with(occurred_at=b"NaN"), "out_of_range"),
        (line_with(occurred_at=b"1e999"), "out_of_range"),
        (line_with(occurred_at=b"9" * 5_000), "out_of_range"),
        (line_with(occurred_at="1772409600000"), "bad_time"),
        (line_with(other=b"Inf"), None),
        (line_with(other=b"-NaN"), None),
        (line_with(other="Inf, NaN \\"), None),
        (line_with(other=b"9" * 5_000), None),
        (line_with(other=b"[" * 5_000 + b"]" * 5_000), None),
        *(
            (line_with(other=b"[" * deep + b"]" * deep, sentiment=7, text="a"), "out_of_range")
            for deep in range(900, 1_000, 9)
        ),
        (line_with(other=b"inf"), "unreadable"),
        (line_with(other=b"01"), "unreadable"),
        (line_with(other=b"'a'"), "unreadable"),
        (line_with(other=b'"\x01"'), "unreadable"),
        (line_with(other=b'"\xff"'), "unreadable"),
        (line_with(other=b'"\\ud83d"'), None),
        (line_with(text=b'"cut \\ud83d"'), None),
        (line_with(topic=b'"\\ud83d"'), "unreadable"),
        (line_with(topic=b'"\\ud83d\\ude00"'), None),
        (line_with(topic=b'"a\\u0000b"'), None),
        (line_with(event_id=10**30), None),
        (line_with(event_id=b"-0"), None),
        (line_with(event_id=b"1e3"), "wrong_type"),
        (line_with(topic={"a": 1}), "wrong_type"),
        (line_with(text=1.5), "wrong_type"),
        (line_with(text=7), None),
        (line_with(text=None), None),
        (SOUND.replace(b"{", b'{"event_id": null, '), None),
        (SOUND.replace(b"}", b', "event_id": null}'), "missing"),
        (SOUND + SOUND, "unreadable"),
        (SOUND + b",", "unreadable"),
        (SOUND[:-1], "unreadable"),
        (b"{}", "missing"),
        (b"null", "unreadable"),
        (b'"{}"', "unreadable"),
        (b"{}{}", "unreadable"),
        (b"[{}]", "unreadable"),
    ],
)
@pytest.mark.parametrize("company", [0, 1, 1_000])
def test_odd_lines(tmp_path: Path, line: bytes, expected: str | None, company: int) -> None:
    """One odd line is read alike alone, beside another one, and amid so many that Arrow parses the rest."""
    read = parsed(written(tmp_path, "a.ndjson", b"\n".join([SOUND] * company + [line] + [SOUND] * company)), "ndjson")
    assert [(place, reason) for place, reason, _ in letters(read)] == ([(company + 1, expected)] if expected else [])
    assert read.rows_read == 2 * company + 1


@pytest.mark.parametrize(
    "written_time", ["1772409600000.0009", "1772409600000.9999", "1772409600000.5", "1.7724096e12"]
)
def test_fractions_of_milliseconds_are_cut(tmp_path: Path, written_time: str) -> None:
    """A time as a number counts as it is written, not as the nearest double."""
    line = line_with(occurred_at=written_time.encode())
    expected = reference.parse(line)
    assert expected is not None
    for text in (line, b"\n".join([line] * 1_000), b"\n".join([SOUND] * 1_000 + [line])):
        read = parsed(written(tmp_path, "a.ndjson", text))
        assert read.events["occurred_at"].cast(pa.int64())[-1].as_py() == expected["occurred_at"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(
        [
            "",
            "a",
            "message",
            "reply",
            "rating",
            "wrap_up",
            "agent",
            "bot",
            "2026-03-02T00:00Z",
            "2026-03-02",
            "NaN",
            "1",
        ]
    ),
    st.integers(0, 4_200_000_000_000),
    st.floats(-2, 6),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from([*reference.COLUMNS, "other"])
JSON_LINES = st.one_of(
    st.dictionaries(NAMES, VALUES).map(lambda change: json.dumps(json.loads(SOUND) | change).encode()),
    st.sampled_from([b"", b" ", b"{", b"[1]", b"\xff", SOUND, SOUND, SOUND + b" ", line_with(event_id=7)]),
)


def told_by_reference(text: list[bytes]) -> tuple[list[tuple[Any, ...]], list[tuple[int, str, str | None]]]:
    """Events (places and content) and dead letters of some lines, by the reference."""
    events, dead = [], []
    for number, line in enumerate(text, 1):
        try:
            row = reference.parse(line)
        except reference.Refused as refused:
            dead.append((number, refused.reason, refused.column))
        else:
            if row is not None:
                events.append((number, *(row[name] for name in reference.CONTENT)))
    return events, dead


def read_events(read: list[ParsedEvents]) -> list[tuple[Any, ...]]:
    """Events (places and content) in the words of the reference."""
    found = []
    for one in read:
        columns = []
        for name in ("source_row", *reference.CONTENT):
            values = one.events[name]
            if name == "occurred_at":
                values = values.cast(pa.int64())
            kinds = {"event_type": reference.TIE_ORDER, "author_type": reference.AUTHOR_TYPES}.get(name)
            columns.append([kinds[v] if kinds and v is not None else v for v in values.to_pylist()])
        found += zip(*columns, strict=True)
    return sorted(found)


@given(st.lists(JSON_LINES, max_size=30), st.sampled_from([1, 40, 1_000, 1 << 20]), st.sampled_from([1, 2, 256]))
def test_ndjson_as_the_reference_reads_it(text: list[bytes], block: int, singly: int) -> None:
    """Any lines, cut in any way, give the events and dead letters of the reference."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lines, "BLOCK_BYTES", block)
        patched.setattr(ndjson, "FEW_LINES", singly)
        patched.setattr(lines, "read_chunks", chunks_of(b"\n".join(text)))
        read = [parse_events(read_block(one)) for one in blocks(InputFile("f", 0, "ndjson"))]
    events, dead = told_by_reference(text)
    assert sorted(letter for one in read for letter in letters(one)) == dead
    assert read_events(read) == events


def chunks_of(text: bytes) -> Callable[[InputFile, int], Iterator[bytes]]:
    """A stand-in for the chunks of a file."""
    return lambda file, size: (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("size", [100, 250, 1_000])
def test_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, size: int) -> None:
    """A line past the limit is one unreadable row; what comes after it is read, with the right numbers."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", size)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 5_000)
    text = [SOUND] * 40
    at = {"first": 0, "middle": 20, "last": 39}[place]
    text[at] = line_with(other="x" * 10_000)
    read = parsed(written(tmp_path, "a.ndjson", b"\n".join(text)))
    assert letters(read) == [(at + 1, "unreadable", None)]
    assert read.dead_letters["raw"].to_pylist() == [text[at][:1_000].decode()]
    assert read.events["source_row"].to_pylist() == [row + 1 for row in range(40) if row != at]


def test_line_of_50_megabytes(tmp_path: Path) -> None:
    """A very long line is read whole."""
    text = b"\n".join([SOUND, line_with(text="x" * 50_000_000), SOUND])
    assert blocks_module.MAX_LINE_BYTES > 50_000_000
    read = parsed(written(tmp_path, "a.ndjson", text))
    assert read.events["source_row"].to_pylist() == [1, 2, 3]


# CSV


@pytest.mark.parametrize("size", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_csv_records(tmp_path: Path, small_blocks: Callable[[int], None], size: int, ending: bytes) -> None:
    """Quotes, line breaks in quotes, blank lines, missing and surplus fields: each record with its first line."""
    small_blocks(size)
    record = RECORD.strip()
    text = ending.join(
        [
            b"\xef\xbb\xbf" + HEADER.strip(),
            record,
            b"",
            b" \t",
            b'"a ""1""","note","2026-03-02T00:00:00Z","x","c","one',
            b"",
            b'three, ""four"""',
            b"a,note",
            record + b",surplus",
            b'a"b",note,2026-03-02T00:00:00Z,x,c"c,',
            b'"a"b,note,2026-03-02T00:00:00Z,x,c,"two\rlines"',
            record.replace(b"c", b"\xff"),
            b'"",note,2026-03-02T00:00:00Z,x,c,',
            record,
        ]
    )
    read = parsed(written(tmp_path, "a.csv", text))
    assert letters(read) == [
        (8, "unreadable", None),
        (9, "unreadable", None),
        (12, "unreadable", None),
        (13, "missing", "event_id"),
    ]
    assert content(read, "event_id", "conversation_id") == [
        (2, "a", "c"),
        (5, 'a "1"', "c"),
        (10, 'a"b"', 'c"c'),
        (11, "ab", "c"),
        (14, "a", "c"),
    ]


def test_raw_records_of_dead_letters(tmp_path: Path) -> None:
    """A faulty record as JSON of its texts, without `text`; an unreadable one as it came, cut."""
    text = b',note,0,x,c,"secret,\nof two lines"\n' + b"a," + b"x" * 2_000 + b"\n"
    read = parsed(
        written(
            tmp_path,
            "a.csv",
            b",colour,"
            + HEADER
            + b"".join(b"0,red," + line + b"\n" for line in text.split(b"\n", 1)[:0])
            + b"0,red,"
            + text,
        )
    )
    raw = read.dead_letters.sort_by("source_row")["raw"].to_pylist()
    assert json.loads(raw[0]) == {
        "": "0",
        "colour": "red",
        "event_id": "",
        "event_type": "note",
        "occurred_at": "0",
        "channel": "x",
        "conversation_id": "c",
    }
    assert raw[1] == "a," + "x" * 998
    assert read.unknown_columns == ("colour",)


def test_bare_carriage_return(tmp_path: Path) -> None:
    """A carriage return outside quotes ends no line; the record that has it is unreadable, its neighbours are not."""
    text = HEADER + RECORD * 3 + b"a,note,2026-03-02T00:00:00Z,x\r,c,\n" + RECORD + b'a,note,0,x,"c\rd",\n'
    read = parsed(written(tmp_path, "a.csv", text))
    assert letters(read) == [(5, "unreadable", None)]
    assert [place for place, _ in content(read, "event_id")] == [2, 3, 4, 6, 7]


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_quote_that_never_closes(tmp_path: Path, small_blocks: Callable[[int], None], size: int) -> None:
    """The line that opens it is unreadable; the lines after it are read."""
    small_blocks(size)
    text = HEADER + RECORD + b'a,note,0,x,c,"open\n' + RECORD * 2 + b"b" + RECORD.strip()
    read = parsed(written(tmp_path, "a.csv", text))
    assert letters(read) == [(3, "unreadable", None)]
    assert read.dead_letters["raw"].to_pylist() == ['a,note,0,x,c,"open']
    assert [place for place, _ in content(read, "event_id")] == [2, 4, 5, 6]


def test_record_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record past the limit is given up; reading goes on with the line after its first."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 100)
    monkeypatch.setattr(delimited, "MAX_LINE_BYTES", 2_000)
    text = HEADER + RECORD * 5 + b"a,note,0,x,c," + b"y" * 5_000 + b"\n" + RECORD * 5
    read = parsed(written(tmp_path, "a.csv", text))
    assert letters(read) == [(7, "unreadable", None)]
    assert [place for place, _ in content(read, "event_id")] == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    text = HEADER + RECORD + b'a,note,0,x,c,"open\n' + RECORD * 200
    read = parsed(written(tmp_path, "a.csv", text))
    assert letters(read) == [(3, "unreadable", None)]
    assert read.events.num_rows == 201


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (RECORD, "line 1 .* names none"),
        (b"\n\nfoo,bar\n", "line 3 .* names none"),
        (b"\xff" + HEADER, "names none"),
        (b"event_id;event_type;channel\n", "names none"),
        (b"channel,event_id,channel\n", "names channel twice"),
        (b'"event_id', "names none"),
    ],
)
def test_csv_without_header(tmp_path: Path, header: bytes, said: str) -> None:
    """A header row is required; the error never shows what a line holds."""
    with pytest.raises(UserError, match=said):
        parsed(written(tmp_path, "a.csv", header + RECORD), "csv")


def test_csv_with_header_only(tmp_path: Path) -> None:
    """A header and no records: no rows. A column that is not there is null."""
    assert parsed(written(tmp_path, "a.csv", HEADER.strip())).rows_read == 0
    read = parsed(written(tmp_path, "a.csv", b"event_id\na\n"))
    assert letters(read) == [(2, "missing", "event_type")]


def test_csv_values(tmp_path: Path) -> None:
    """Values are parsed to their column's type."""
    text = b"event_id,event_type,occurred_at,channel,customer_id,is_automated,sentiment\n"
    text += b"1,reply,1772409600000,x,7,TRUE,-.5\n" + b"2,reply,1772409600000.5,x,8,,\n" + b"3,reply,12 May,x,9,no,\n"
    read = parsed(written(tmp_path, "a.csv", text))
    night = datetime(2026, 3, 2, tzinfo=UTC)
    assert content(read, "occurred_at", "customer_id", "is_automated", "sentiment") == [
        (2, night, "7", True, -0.5),
        (3, night.replace(microsecond=500), "8", None, None),
    ]
    assert letters(read) == [(4, "bad_time", "occurred_at")]


def records_of(text: str) -> list[tuple[int, list[str]]]:
    """Records and their first lines, by Python's csv module."""
    reader = csv.reader(io.StringIO(text, newline=""))
    found, line = [], 1
    for fields in reader:
        found.append((line, fields))
        line = reader.line_num + 1
    return found


@given(st.text(alphabet='a",\n', max_size=60), st.integers(1, 70))
def test_csv_as_python_reads_it(text: str, block: int) -> None:
    """Any text whose quotes close, cut anywhere: the records of Python's csv module with their lines."""
    closed = not delimited._record_ends(text.encode())[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(delimited, "BLOCK_BYTES", block)
        patched.setattr(delimited, "read_chunks", chunks_of(b"event_id,topic\n" + text.encode()))
        read = [delimited.read_fields(one, ("event_id", "topic")) for one in blocks(InputFile("f", 0, "csv"))]
    rows = [
        (place - 1, [first, second])
        for one in read
        for place, first, second in zip(
            one.positions.tolist(), one.columns["event_id"].to_pylist(), one.columns["topic"].to_pylist(), strict=True
        )
    ]
    bad = sorted(place - 1 for one in read for place in one.unreadable.positions.tolist())
    if closed:
        expected = [(line, fields) for line, fields in records_of(text) if fields]
        assert sorted(rows) == [(line, fields) for line, fields in expected if len(fields) == 2]
        assert bad == [line for line, fields in expected if len(fields) != 2]
    else:
        assert bad


# Tables


def test_parquet_row_groups(tmp_path: Path) -> None:
    """One block a row group; places count through the file."""
    [file] = list_files([str(written(tmp_path, "a.parquet", as_parquet()))])
    found = list(blocks(file))
    assert [(block.row_group, block.first_row) for block in found] == [(0, 1), (1, 8), (2, 15), (3, 22), (4, 29)]
    assert parsed(written(tmp_path, "b.parquet", as_parquet(as_table().slice(0, 0)))).rows_read == 0


def test_large_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large row group or record batch is taken in parts; nothing else changes."""
    for name, content_of in {"a.parquet": as_parquet, "a.arrow": as_arrow}.items():
        path = written(tmp_path, name, content_of())
        whole = content(parsed(path))
        with monkeypatch.context() as patched:
            patched.setattr(tables, "PART_ROWS", 2)
            patched.setattr(tables, "BLOCK_ROWS", 10)
            assert content(parsed(path)) == whole


def test_types_of_a_parquet_file(tmp_path: Path) -> None:
    """Types that text formats do not have: what they stand for, and what is wrong of them."""
    night = datetime(2026, 3, 2, tzinfo=UTC)
    table = pa.table(
        {
            "event_id": pa.array([1, 2, None], pa.int64()),
            "event_type": pa.array(["note"] * 3).dictionary_encode(),
            "occurred_at": pa.array([night, night, night], pa.timestamp("ms", "Europe/Berlin")),
            "channel": pa.array(["x", "y", "x"], pa.large_string()),
            "customer_id": pa.array([5, 6, 7], pa.uint8()),
            "topic": pa.array([None, "a", None], pa.string_view()),
            "subtopic": pa.array([None, 1.5, None]),
            "score": pa.array([1, None, 2], pa.int8()),
            "text": pa.array([["a"], None, None]),
            "colour": pa.array(["red"] * 3),
        }
    )
    for name, content_of in {"a.parquet": as_parquet, "a.arrow": as_arrow}.items():
        read = parsed(written(tmp_path, name, content_of(table)))
        assert letters(read) == [(1, "wrong_type", "text"), (2, "wrong_type", "subtopic"), (3, "missing", "event_id")]
        raw = [json.loads(text) for text in read.dead_letters.sort_by("source_row")["raw"].to_pylist()]
        assert raw[1]["topic"] == "a"
        assert raw[1]["occurred_at"] == "2026-03-02 00:00:00.000Z"
        assert "text" not in raw[0]
        assert read.unknown_columns == ("colour",)
        table_without = table.drop_columns(["text", "subtopic"]).slice(0, 2)
        read = parsed(written(tmp_path, name, content_of(table_without)))
        names = ("event_id", "occurred_at", "channel", "customer_id", "topic", "score")
        assert content(read, *names) == [(1, "1", night, "x", "5", None, 1.0), (2, "2", night, "y", "6", "a", None)]


def test_text_in_tables_that_is_not_utf8(tmp_path: Path) -> None:
    """Arrow does not look at text when it reads a file; such rows are unreadable."""
    table = as_table()
    for name in ("event_id", "account_id"):
        values = [b"\xff" if row == 3 else b"ok" for row in range(len(ROWS))]
        text = pa.array(values, pa.binary()).view(pa.string())
        changed = table.set_column(table.schema.get_field_index(name), name, text)
        for path in (
            written(tmp_path, "a.parquet", as_parquet(changed)),
            written(tmp_path, "a.arrow", as_arrow(changed)),
        ):
            read = parsed(path)
            assert letters(read) == [(4, "unreadable", None)]
            assert json.loads(read.dead_letters["raw"][0].as_py())[name] == "\ufffd"
            assert [row for row, _ in content(read, "event_id")] == [row for row in range(1, 31) if row != 4]


def test_raw_values_that_json_lacks(tmp_path: Path) -> None:
    """NaN in a dead letter of a table is text, so that its JSON can be read by anybody."""
    table = as_table().slice(0, 2).set_column(7, "sentiment", pa.array([math.nan, None]))
    read = parsed(written(tmp_path, "a.parquet", as_parquet(table)))
    assert letters(read) == [(1, "out_of_range", "sentiment")]
    assert json.loads(read.dead_letters["raw"][0].as_py(), parse_constant=pytest.fail)["sentiment"] == "nan"


@pytest.mark.parametrize("content_of", [as_parquet, as_arrow])
def test_tables_of_something_else(tmp_path: Path, content_of: Callable[[pa.Table], bytes]) -> None:
    """A table with none of the required columns, or one column twice, is an error."""
    with pytest.raises(UserError, match="has none of them"):
        parsed(written(tmp_path, "a", content_of(pa.table({"a": [1]}))))
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["event_id", "event_id"])
    with pytest.raises(UserError, match="event_id more than once"):
        parsed(written(tmp_path, "b", content_of(twice)))


def test_small_record_batches_are_put_together(tmp_path: Path) -> None:
    """Many small record batches make few blocks; dictionaries may change on the way."""
    parts = [as_table().slice(start, 1) for start in range(30)]
    coded = [
        part.set_column(3, "channel", pa.array([f"ch{row}"]).dictionary_encode()) for row, part in enumerate(parts)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, coded[0].schema) as writer:
        for part in coded:
            writer.write_table(part)
    path = written(tmp_path, "a.arrows", sink.getvalue().to_pybytes())
    [file] = list_files([str(path)])
    assert len(list(blocks(file))) == 1
    assert [channel for _, channel in content(parsed(path), "channel")] == [f"ch{row}" for row in range(30)]


def test_unreadable_file_formats_are_listed() -> None:
    """Every format that a file can have can be cut and read."""
    assert files.FORMATS == ("ndjson", "csv", "parquet", "arrow")
    assert isinstance(read_block(Block("f", "ndjson", 1, SOUND)), list)


def test_the_first_blocks_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is given once, and read no second time; later ones, and those that cannot be read, are left alone."""
    for name in ("a", "b", "c"):
        pq.write_table(as_table(), tmp_path / f"{name}.parquet", row_group_size=10)
    every = [block for file in list_files([str(tmp_path)]) for block in blocks(file)]
    read: list[Block] = []
    reading = threading.Event()

    def noted(block: Block) -> list[Any]:
        read.append(block)
        if len(read) == 5:
            reading.wait(10)
        return read_block(block)

    monkeypatch.setattr(ahead, "read_block", noted)
    assert taken(every[0]) is None
    with read_ahead([str(tmp_path)], None):
        while len(read) < 5:
            time.sleep(0.001)
        threading.Timer(0.05, reading.set).start()
        for block in every[:5]:
            rows = taken(block)
            assert rows is not None
            assert rows[0].columns["event_id"].equals(read_block(block)[0].columns["event_id"])
        assert taken(every[0]) is None and taken(every[5]) is None
    assert len(read) == 5 and not ahead._ahead
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really PAR1")
    with read_ahead([str(tmp_path)], None):
        assert taken(every[0]) is None
    with read_ahead([str(tmp_path / "nothing")], None):
        assert taken(every[0]) is None
