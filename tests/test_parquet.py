"""Parquet files: types whatever came in, bytes that depend on rows alone, and what readers of three kinds see."""

from __future__ import annotations

import errno
import glob
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinks import parquet
from sinks.parquet import conform, fill_missing, write_partitioned, write_table, writing
from transforms.errors import UserError
from transforms.schema import TIMESTAMP, WORD, Column
from transforms.tables import HISTOGRAM, KPI_STATISTICS, TABLES, TURNS, Table

MOVES = Table(
    "moves",
    "One row per move.",
    ("conversation_key",),
    (
        Column("conversation_key", pa.string(), "Its key.", False),
        Column("started_at", TIMESTAMP, "Its start.", False),
        Column("channel", pa.string(), "Its channel.", False),
        Column("agent_id", pa.string(), "Its agent."),
        Column("is_late", pa.bool_(), "Too late?"),
        Column("message_count", pa.int64(), "Its messages."),
        Column("wait_seconds", pa.float64(), "Its wait."),
        Column("reply_histogram", HISTOGRAM, "Its replies."),
    ),
)


def moves(rows: int, start: datetime = datetime(2026, 1, 30, tzinfo=UTC), step: int = 3600) -> pa.Table:
    """Rows one step (seconds) apart, with nulls where they may be."""
    return pa.Table.from_pylist(
        [
            {
                "conversation_key": f'["acme","c{i}"]',
                "started_at": start + timedelta(seconds=i * step),
                "channel": ("x", "email", "phone")[i % 3],
                "agent_id": None if i % 5 == 0 else f"agent {i % 7}",
                "is_late": None if i % 4 == 0 else i % 2 == 0,
                "message_count": None if i % 6 == 0 else i,
                "wait_seconds": None if i % 3 == 0 else i / 7,
                "reply_histogram": [{"bucket": b, "count": i + 1} for b in range(i % 3)],
            }
            for i in range(rows)
        ],
        schema=MOVES.schema,
    )


def encoded(table: pa.Table, seed: int, chunks: int) -> pa.Table:
    """The same rows in several chunks, with text under dictionaries that are shuffled and hold words nobody uses."""
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, table.num_rows + 1, chunks - 1))
    parts = []
    for start, end in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
        part = table.slice(start, end - start)
        for place, column in enumerate(MOVES.columns):
            if pa.types.is_string(column.type):
                values = part.column(place).combine_chunks()
                words = pa.array(random.permutation([*values.drop_null().unique().to_pylist(), "unused", "ä"]).tolist())
                codes = pa.compute.index_in(values, words)
                part = part.set_column(place, column.name, pa.DictionaryArray.from_arrays(codes, words))
        parts.append(part)
    return pa.concat_tables(parts)


def says_the_same(found: pa.Schema, meant: pa.Schema) -> bool:
    """Compares types, nullability and sentences; Parquet calls the inside of a list `element`."""
    sentences = [field.metadata for field in found] == [field.metadata for field in meant]
    return found.equals(meant) and sentences and found.metadata == meant.metadata


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 100 rows, so that small tables have several."""
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 100)


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    """What is written is read back equal, and the file says how large it is."""
    table = moves(500)
    written = write_table(table, tmp_path / "a" / "b.parquet", MOVES)
    assert pq.read_table(written.path).equals(table)
    assert (written.rows, written.bytes) == (500, written.path.stat().st_size)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", range(5))
def test_bytes_depend_on_rows_alone(tmp_path: Path, seed: int) -> None:
    """Neither encoding, nor order of a dictionary, nor chunks, nor a second writing change a byte."""
    plain = write_table(moves(350), tmp_path / "plain.parquet", MOVES)
    again = write_table(encoded(moves(350), seed, chunks=seed + 1), tmp_path / "again.parquet", MOVES)
    assert plain.path.read_bytes() == again.path.read_bytes()


@pytest.mark.usefixtures("small_groups")
def test_text_is_text_for_every_reader(tmp_path: Path) -> None:
    """Dictionary-encoded text reads back as strings, instants in UTC, in Arrow, pandas and DuckDB."""
    path = write_table(encoded(moves(250), 1, 3), tmp_path / "moves.parquet", MOVES).path
    assert says_the_same(pq.read_table(path).schema, MOVES.schema)
    frame = pd.read_parquet(path)
    assert isinstance(frame["channel"].dtype, pd.StringDtype) and isinstance(frame["agent_id"].dtype, pd.StringDtype)
    assert frame["started_at"].dtype == pd.DatetimeTZDtype("us", "UTC")
    assert frame["channel"].tolist() == moves(250)["channel"].to_pylist()
    types = duckdb.sql(f"DESCRIBE FROM read_parquet('{path}')").fetchall()
    assert [row[1] for row in types] == [
        "VARCHAR",
        "TIMESTAMP WITH TIME ZONE",
        "VARCHAR",
        "VARCHAR",
        "BOOLEAN",
        "BIGINT",
        "DOUBLE",
        "STRUCT(bucket SMALLINT, count INTEGER)[]",
    ]


@pytest.mark.usefixtures("small_groups")
def test_format_of_the_file(tmp_path: Path) -> None:
    """zstd, statistics, page index, sentences, the order of the rows; dictionaries where they pay and nowhere else."""
    path = write_table(moves(250), tmp_path / "moves.parquet", MOVES, sorted_by=("started_at",)).path
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]
    leaves = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(9)}
    assert {leaf.compression for leaf in leaves.values()} == {"ZSTD"}
    assert all(leaf.is_stats_set and leaf.has_offset_index and leaf.has_column_index for leaf in leaves.values())
    assert {name for name, leaf in leaves.items() if leaf.has_dictionary_page} == {
        "channel",
        "agent_id",
        "message_count",
    }
    histogram = [f"reply_histogram.list.element.{name}" for name in ("bucket", "count")]
    assert all("DELTA_BINARY_PACKED" in leaves[name].encodings for name in ("started_at", *histogram))
    assert leaves["started_at"].statistics.min == datetime(2026, 1, 30, tzinfo=UTC)
    assert [c.column_index for c in metadata.row_group(0).sorting_columns] == [1]
    schema = pq.read_schema(path)
    assert schema.metadata == {b"description": b"One row per move."}
    assert schema.field("agent_id").metadata == {b"description": b"Its agent."}


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_table_without_rows_gives_its_schema(tmp_path: Path, spec: Table) -> None:
    """Every published table can be written empty and says its types and sentences."""
    path = write_table(spec.schema.empty_table(), tmp_path / "none.parquet", spec).path
    assert pq.read_table(path).num_rows == 0
    assert says_the_same(pq.read_schema(path), spec.schema)
    assert duckdb.sql(f"FROM read_parquet('{path}')").fetchall() == []


def test_nulls_and_empty_chunks(tmp_path: Path) -> None:
    """Columns of Arrow's null type, no chunks at all, and nulls hidden in a dictionary come out typed."""
    table = moves(3).set_column(3, "agent_id", pa.nulls(3)).set_column(6, "wait_seconds", pa.nulls(3))
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["x", "y"]))
    table = table.set_column(2, "channel", words)
    back = pq.read_table(write_table(table, tmp_path / "a.parquet", MOVES).path)
    assert back.schema.types == MOVES.schema.types and back["agent_id"].null_count == 3
    assert back["channel"].to_pylist() == ["x", "y", "x"]
    hidden = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["x", None]))
    back = pq.read_table(write_table(moves(3).set_column(3, "agent_id", hidden), tmp_path / "b.parquet", MOVES).path)
    assert back["agent_id"].to_pylist() == ["x", None, "x"]
    none = pa.table(
        [pa.chunked_array([], f.type if f.name != "channel" else WORD) for f in MOVES.schema], MOVES.schema.names
    )
    assert write_table(none, tmp_path / "c.parquet", MOVES).rows == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop_columns(["channel"]), r"missing \['channel'\]"),
        (lambda t: t.append_column("colour", pa.nulls(3)), r"unknown \['colour'\]"),
        (lambda t: t.set_column(2, "channel", pa.array(["x", None, "x"])), "no null in moves.channel, got 1"),
        (
            lambda t: t.set_column(
                2, "channel", pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int32()), pa.array(["x", None]))
            ),
            "no null in moves.channel, got 1",
        ),
        (lambda t: t.set_column(5, "message_count", pa.array([1.5, 2, 3])), "moves.message_count as int64, got double"),
        (lambda t: t.set_column(5, "message_count", pa.array(["a", "b", "c"])), "as int64, got string"),
        (lambda t: pa.table([*t.columns, t["channel"]], [*t.column_names, "channel"]), "9 in all"),
    ],
)
def test_refuses_what_the_specification_does_not_say(change: object, says: str) -> None:
    """Wrong columns, nulls and casts that lose something are errors of the program and name the column."""
    with pytest.raises(ValueError, match=says):
        conform(change(moves(3)), MOVES)  # type: ignore[operator]


def test_casts_without_loss() -> None:
    """Other widths and time units of the same value are taken, in any order of columns."""
    table = moves(3).set_column(5, "message_count", pa.array([1, 2, 3], pa.uint8()))
    table = table.set_column(1, "started_at", table["started_at"].cast(pa.timestamp("ns", "Europe/Berlin")))
    table = table.set_column(2, "channel", table["channel"].cast(pa.large_string()))
    out = conform(table.select(table.column_names[::-1]), MOVES)
    assert out.schema.equals(MOVES.schema, check_metadata=True)
    assert out["started_at"].equals(moves(3)["started_at"])


def test_one_folder_per_utc_month(tmp_path: Path) -> None:
    """Rows go to the UTC month of the column, in order; the month is in the path and not in the file."""
    start = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    table = moves(4, start, step=1)
    table = pa.concat_tables([table, moves(2, datetime(2026, 12, 31, 23, tzinfo=UTC))])
    files = write_partitioned(table, tmp_path / "moves", MOVES, "started_at", "03")
    assert [(str(f.path.relative_to(tmp_path)), f.rows) for f in files] == [
        ("moves/started_month=2026-01/part-03.parquet", 1),
        ("moves/started_month=2026-02/part-03.parquet", 3),
        ("moves/started_month=2026-12/part-03.parquet", 1),
        ("moves/started_month=2027-01/part-03.parquet", 1),
    ]
    assert all("started_month" not in pq.read_schema(f.path).names for f in files)
    assert pa.concat_tables(pq.read_table(f.path, partitioning=None) for f in files).equals(table)
    assert pq.read_metadata(files[0].path).row_group(0).sorting_columns


def test_folder_is_named_after_the_column(tmp_path: Path) -> None:
    """window_start gives window_month; a time before 1970 has a month as well."""
    row = {f.name: [] if pa.types.is_list(f.type) else 0 for f in KPI_STATISTICS.schema}
    row |= {"basis": "opened", "grain": "week", "channel": "x", "window_end": datetime(1970, 1, 5, tzinfo=UTC)}
    row |= {"account_id": None, "window_start": datetime(1969, 12, 29, tzinfo=UTC)}
    table = pa.Table.from_pylist([row], schema=KPI_STATISTICS.schema)
    (file,) = write_partitioned(table, tmp_path, KPI_STATISTICS, "window_start", "0")
    assert file.path == tmp_path / "window_month=1969-12" / "part-0.parquet"


def test_rows_in_disorder_are_gathered(tmp_path: Path) -> None:
    """Unsorted rows are split right too, and the file does not claim an order."""
    table = moves(100, step=86_400)
    order = np.random.default_rng(1).permutation(100)
    files = write_partitioned(table.take(pa.array(order)), tmp_path, MOVES, "started_at", "0")
    assert [f.path.parent.name[-7:] for f in files] == ["2026-01", "2026-02", "2026-03", "2026-04", "2026-05"]
    back = pa.concat_tables(pq.read_table(f.path, partitioning=None) for f in files)
    assert back.sort_by("started_at").equals(table)
    assert not any(pq.read_metadata(f.path).row_group(0).sorting_columns for f in files)
    assert write_partitioned(table.slice(0, 0), tmp_path, MOVES, "started_at", "1") == []


def test_readers_of_a_whole_table(tmp_path: Path) -> None:
    """DuckDB with hive partitions, pandas and Arrow read the folder; the month is text."""
    write_partitioned(moves(100, step=86_400), tmp_path / "moves", MOVES, "started_at", "0")
    months = duckdb.sql(
        f"SELECT started_month, count(*) FROM read_parquet('{tmp_path}/moves/**/*.parquet', hive_partitioning = true) "
        "GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert months == [("2026-01", 2), ("2026-02", 28), ("2026-03", 31), ("2026-04", 30), ("2026-05", 9)]
    frame = pd.read_parquet(tmp_path / "moves")
    assert len(frame) == 100 and sorted(frame["started_month"].unique()) == [month for month, _ in months]
    assert len(pd.read_parquet(tmp_path / "moves", filters=[("started_month", "=", "2026-02")])) == 28


def test_writers_side_by_side(tmp_path: Path) -> None:
    """Several threads write parts of one table into the same folders and no part is lost or mixed."""
    tables = [moves(200, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=i), step=43_200) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda i: write_partitioned(tables[i], tmp_path / "m", MOVES, "started_at", f"{i:02}"), range(8)
        )
        files = [file for part in found for file in part]
    assert len({f.path for f in files}) == len(files) == len(glob.glob(f"{tmp_path}/**/*.parquet", recursive=True))
    assert sum(f.rows for f in files) == 1600
    for i, table in enumerate(tables):
        parts = [pq.read_table(f.path, partitioning=None) for f in files if f.path.name == f"part-{i:02}.parquet"]
        assert pa.concat_tables(parts).equals(table)


def test_missing_tables_are_filled_in(tmp_path: Path) -> None:
    """Every table without a file gets one without rows, in a month where it has months; others are left alone."""
    kept = write_table(TURNS.schema.empty_table(), tmp_path / "turns" / "started_month=2026-01" / "a.parquet", TURNS)
    added = {str(f.path.relative_to(tmp_path)) for f in fill_missing(tmp_path)}
    assert len(added) == len(TABLES) - 1
    assert "conversations/started_month=1970-01/part-0.parquet" in added
    assert "kpis/window_month=1970-01/part-0.parquet" in added and "runs/part-0.parquet" in added
    assert kept.path.exists() and fill_missing(tmp_path) == []
    sql = f"FROM read_parquet('{tmp_path}/conversations/**/*.parquet', hive_partitioning = true)"
    assert "started_month" in duckdb.sql(sql).columns


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_full_disk_is_told_to_the_user(tmp_path: Path) -> None:
    """A device without room gives one sentence with the file and what to do."""
    (tmp_path / "full.parquet").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"the disk is full .*free some space"):
        write_table(moves(1000), tmp_path / "full.parquet", MOVES)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "'Read-only file system': change its permissions"),
        (errno.EACCES, "'Permission denied': change its permissions"),
        (errno.EIO, "'Input/output error'"),
        (errno.ENOTDIR, "'Not a directory'"),
    ],
)
def test_what_the_system_says_is_told_to_the_user(code: int, says: str) -> None:
    """Each refusal of the system becomes a sentence that names the place."""
    with pytest.raises(UserError, match=says) as caught, writing(Path("/place")):
        raise OSError(code, os.strerror(code))
    assert "/place" in str(caught.value) and "\n" not in str(caught.value)


def test_folder_under_a_file_is_told_to_the_user(tmp_path: Path) -> None:
    """A file where a folder has to be gives a sentence, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"Expected to write {tmp_path}/file/x.parquet"):
        write_table(moves(1), tmp_path / "file" / "x.parquet", MOVES)
