"""What windows said before: revisions, kpi_changes and kpis_as_of, against copies kept and a model in plain Python."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_batch import options
from test_docs import CodeBlock, code_blocks, named
from test_duckdb import AS_OF, NOON, build, facts_of, reading, rows_of, run_row
from worlds import clean_world

from pipelines.batch import run
from pipelines.cli import main
from sinks.duckdb import build_warehouse, load_warehouse
from sinks.history import append_run, keep_changes, revise
from sinks.parquet import fill_missing, write_partitioned, write_table
from sinks.publish import current_snapshot
from sinks.revisions import CHANGES_ORDER, UNREVISED, restate
from transforms.errors import UserError
from transforms.schema import WORD
from transforms.tables import (
    DEAD_LETTERS,
    KPI_CHANGES,
    KPI_STATISTICS,
    KPI_TABLE,
    RUNS,
    TABLES,
)

Row = dict[str, Any]
Window = tuple[Any, ...]
WINDOW_KEY = ", ".join(KPI_TABLE.key)
ZONE = ZoneInfo("Asia/Kathmandu")
LATER, LAST = NOON + timedelta(hours=1, microseconds=1), NOON + timedelta(hours=2)


def kpi_rows(**changes: Any) -> pa.Table:
    """Three rows of `kpis` without the commit's columns; changes: column -> three values."""
    rows = [
        {
            "basis": "activity",
            "grain": "day",
            "window_start": NOON + timedelta(days=i),
            "window_end": NOON + timedelta(days=i + 1),
            "account_id": (None, "a", "b")[i],
            "channel": "x",
            "is_complete": True,
            "message_count": i,
            "avg_csat": None if i else 2.5,
            **{name: values[i] for name, values in changes.items()},
        }
        for i in range(3)
    ]
    return pa.Table.from_pylist(rows, schema=UNREVISED.schema)


def commits(table: pa.Table) -> list[tuple[int, datetime]]:
    """What the commits say: revision and changed_at of each row."""
    return list(zip(table["revision"].to_pylist(), table["changed_at"].to_pylist(), strict=True))


def window_of(row: Row) -> Window:
    """The key of a window."""
    return tuple(row[name] for name in KPI_TABLE.key)


NOTHING = KPI_TABLE.schema.empty_table()


# One comparison


def test_what_is_as_it_was_keeps_its_commit() -> None:
    """Same rows keep revision and commit; changed ones, also from or to null, get one more; new ones begin at 1."""
    first, none = restate(NOTHING, kpi_rows(), 1, NOON)
    assert commits(first) == [(1, NOON)] * 3 and first.schema.names == KPI_TABLE.schema.names
    assert none.num_rows == 0 and none.schema == KPI_CHANGES.schema
    second, _ = restate(first, kpi_rows(message_count=[0, 5, 2], avg_csat=[2.5, None, 1.0]), 2, LATER)
    assert commits(second) == [(1, NOON), (2, LATER), (2, LATER)]
    third, _ = restate(second, kpi_rows(message_count=[0, 5, 2], avg_csat=[None, None, 1.0]), 3, LAST)
    assert commits(third) == [(2, LAST), (2, LATER), (2, LATER)]
    moved, _ = restate(second, kpi_rows(account_id=["a", "a", None]), 3, LAST)
    assert commits(moved) == [(1, LAST), (3, LAST), (1, LAST)]


def test_changes_are_the_rows_as_they_were() -> None:
    """Of a window that changed or vanished, every value of before, and the commit that ended it; of no other window."""
    first = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    second = restate(first, kpi_rows(message_count=[7, 1, 2]), 2, LATER).kpis
    _, changes = restate(second, kpi_rows(message_count=[8, 1, 2]).slice(0, 2), 3, LAST)
    before = second.to_pylist()
    assert changes.schema == KPI_CHANGES.schema
    for row in before:
        del row["is_complete"]
    assert changes.to_pylist() == [{"commit_id": 3, "replaced_at": LAST, **before[place]} for place in (0, 2)]
    assert commits(changes) == [(2, LATER), (1, NOON)]


@pytest.mark.parametrize("column", [c.name for c in UNREVISED.columns if c.name not in (*KPI_TABLE.key, "is_complete")])
def test_every_value_counts(column: str) -> None:
    """A row that differs in one column only, to null or by the least that there is, is another row."""
    kind = KPI_TABLE.schema.field(column).type
    before, after = (1.0, 1.0000000000000002) if kind == pa.float64() else (1, 2)
    if pa.types.is_timestamp(kind):
        before, after = LATER, LATER + timedelta(microseconds=1)
    old = restate(NOTHING, kpi_rows(**{column: [before] * 3}), 1, NOON).kpis
    nothing = before if column == "window_end" else None
    restated = restate(old, kpi_rows(**{column: [before, after, nothing]}), 2, LAST)
    expected = [(1, NOON), (2, LAST), (1, NOON) if nothing is not None else (2, LAST)]
    assert commits(restated.kpis) == expected
    assert restated.changes.num_rows == sum(revision == 2 for revision, _ in expected)


@pytest.mark.parametrize("was", [True, False])
def test_becoming_complete_is_no_change(was: bool) -> None:
    """The row that is stored says whether it is complete now; it is not restated by that."""
    first = restate(NOTHING, kpi_rows(is_complete=[was] * 3), 1, NOON).kpis
    second, changes = restate(first, kpi_rows(is_complete=[not was, was, not was]), 2, LATER)
    assert commits(second) == [(1, NOON)] * 3 and changes.num_rows == 0
    assert second["is_complete"].to_pylist() == [not was, was, not was]


def test_windows_go_by_their_key_and_rows_keep_their_order() -> None:
    """Rows in another order, dictionaries with other codes, vanished rows and no rows at all."""
    first = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    again = kpi_rows(message_count=[9, 9, 2]).take(pa.array([2, 0]))
    for name in ("account_id", "channel", "grain"):
        values = again[name].combine_chunks()
        coded = pa.chunked_array([values.slice(place, 1).cast(WORD) for place in (0, 1)])
        again = again.set_column(again.schema.get_field_index(name), name, coded)
    kpis, changes = restate(first, again, 2, LATER)
    assert kpis["account_id"].to_pylist() == ["b", None] and commits(kpis) == [(1, NOON), (2, LATER)]
    assert changes["account_id"].to_pylist() == [None, "a"]
    kpis, changes = restate(first, kpi_rows().slice(0, 0), 2, LATER)
    assert kpis.num_rows == 0 and changes.num_rows == 3
    assert restate(NOTHING, kpi_rows().slice(0, 0), 1, NOON).kpis.num_rows == 0


def test_a_window_that_comes_back_counts_on() -> None:
    """From the last revision that kpi_changes knows of it, whatever other windows and older revisions there are."""
    first = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    second, one = restate(first, kpi_rows(message_count=[9, 9, 2]), 2, LATER)
    third, two = restate(second, kpi_rows().slice(2), 3, LAST)
    earlier = pa.concat_tables([two, one]).select([*KPI_TABLE.key, "revision"])
    back, none = restate(third, kpi_rows(), 4, LAST + timedelta(1), earlier)
    assert commits(back) == [(3, LAST + timedelta(1)), (3, LAST + timedelta(1)), (1, NOON)]
    assert none.num_rows == 0
    # Of a window that is there, its own row is what counts.
    assert commits(restate(back, kpi_rows(message_count=[5, 5, 5]), 5, LAST, earlier).kpis) == [(4, LAST)] * 2 + [
        (2, LAST)
    ]
    assert commits(restate(third, kpi_rows(), 4, LAST).kpis)[0] == (1, LAST)


def random_result(rng: random.Random, before: dict[Window, Row]) -> dict[Window, Row]:
    """What the next run could say: windows of before, some changed or gone, and some others."""
    after = {}
    for window, row in before.items():
        chance = rng.random()
        if chance < 0.6:
            after[window] = row
        elif chance < 0.85:
            after[window] = row | {rng.choice(["message_count", "backlog_change"]): rng.randrange(-2, 3)}
    for _ in range(rng.randrange(12)):
        hours = rng.choice((1, 24))
        start = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=hours * rng.randrange(5))
        row = {
            "basis": rng.choice(("activity", "opened")),
            "grain": "hour" if hours == 1 else "day",
            "window_start": start,
            "window_end": start + timedelta(hours=hours),
            "account_id": rng.choice((None, "a", "null")),
            "channel": rng.choice("xy"),
            "avg_csat": rng.choice((None, 1.5)),
        }
        after.setdefault(window_of(row), row | {"message_count": rng.randrange(3), "backlog_change": rng.randrange(3)})
    return after


def unrevised(result: dict[Window, Row], as_of: datetime, rng: random.Random) -> pa.Table:
    """A result as a table, in no order."""
    rows = [row | {"is_complete": row["window_end"] <= as_of} for row in result.values()]
    rng.shuffle(rows)
    return pa.Table.from_pylist(rows, schema=UNREVISED.schema)


def test_parts_give_the_parts_of_the_whole() -> None:
    """Restating some windows, then the others, gives the same rows and changes as all at once."""
    rng = random.Random(1)
    for _ in range(30):
        old, new = {}, {}
        kpis, earlier = NOTHING, KPI_CHANGES.schema.empty_table()
        for number in range(1, 5):
            at = NOON + timedelta(number)
            old, new = new, random_result(rng, new)
            after = unrevised(new, at, rng)
            whole = restate(kpis, after, number, at, earlier)
            side = {window: rng.random() < 0.5 for window in {**old, **new}}
            parts = []
            for chosen in (False, True):
                sides = [
                    t.filter(pa.array([side[window_of(row)] == chosen for row in t.to_pylist()], pa.bool_()))
                    for t in (kpis, after)
                ]
                parts.append(restate(*sides, number, at, earlier))
            for place, order in ((0, KPI_TABLE.key), (1, CHANGES_ORDER)):
                by_window = [(name, "ascending") for name in order]
                together = pa.concat_tables([part[place] for part in parts]).sort_by(by_window)
                assert together.equals(whole[place].sort_by(by_window))
            places = [[(row[n] is not None, row[n]) for n in CHANGES_ORDER] for row in whole.changes.to_pylist()]
            assert places == sorted(places)
            kpis, earlier = whole.kpis, pa.concat_tables([earlier, whole.changes])


# A whole result and the one before


def published(root: Path, kpis: pa.Table, runs: pa.Table) -> Path:
    """A folder with the two tables that the next commit looks at."""
    write_partitioned(kpis, root / "kpis", KPI_TABLE, "window_start", "0")
    write_table(runs, root / "runs" / "part-0.parquet", RUNS)
    return root


def test_revise_reads_the_result_before(tmp_path: Path) -> None:
    """Its rows, and from kpi_changes the revisions of windows that come back; a result may have no kpi_changes yet."""
    first = revise(kpi_rows(), None, 1, NOON).kpis
    one = published(tmp_path / "1", first, run_row())
    second = revise(kpi_rows(message_count=[0, 5, 2]).slice(1), one, 2, LATER)
    assert commits(second.kpis) == [(2, LATER), (1, NOON)] and second.changes.num_rows == 2
    two = published(tmp_path / "2", second.kpis, run_row(2))
    assert [file.name for file in keep_changes(two, one, second.changes, 2)] == ["part-2.parquet"]
    assert commits(revise(kpi_rows(), two, 3, LAST).kpis) == [(2, LAST), (3, LAST), (1, NOON)]


def test_after_a_kpi_was_added_or_taken_away(tmp_path: Path) -> None:
    """A column that the previous result has not is null there; one that is no more is forgotten. History keeps both."""
    gone = next(c for c in KPI_TABLE.columns if c.name == "csat_rate")
    kpis = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    changes = restate(kpis, kpi_rows(message_count=[1, 1, 1]), 2, LATER).changes
    for spec, table, file in ((KPI_TABLE, kpis, "part-0"), (KPI_CHANGES, changes, "part-2")):
        other = replace(gone, name="csat_rate_of_old")
        columns = (*(c for c in spec.columns if c != gone), other)
        values = pa.array([0.5] * table.num_rows)
        table = table.drop_columns(["csat_rate"]).append_column(other.name, values)
        write_table(table, tmp_path / spec.name / f"{file}.parquet", replace(spec, columns=columns))
    revised = revise(kpi_rows(csat_rate=[None, 0.5, None]), tmp_path, 3, LAST)
    assert commits(revised.kpis) == [(1, NOON), (2, LAST), (1, NOON)]
    assert revised.changes["csat_rate"].to_pylist() == [None]
    keep_changes(tmp_path / "3", tmp_path, revised.changes, 3)
    fourth = restate(revised.kpis, kpi_rows(csat_rate=[None, 0.25, None]), 4, LAST + timedelta(1))
    files = keep_changes(tmp_path / "4", tmp_path / "3", fourth.changes, 4)
    sources = {spec: spec.schema.empty_table() for spec in TABLES} | {KPI_CHANGES: files}
    with reading(load_warehouse(tmp_path / "care.duckdb", sources)) as connection:
        sql = "SELECT commit_id, count(*), count(csat_rate) FROM kpi_changes GROUP BY ALL ORDER BY ALL"
        assert connection.sql(sql).fetchall() == [(2, 2, 0), (3, 1, 0), (4, 1, 1)]
        assert connection.sql("FROM kpi_changes").columns == KPI_CHANGES.schema.names


def test_runs_are_kept_and_complete_windows_are_not_restated(tmp_path: Path) -> None:
    """`runs` has one row per commit, the views go by the latest; where nothing but as_of changed, no window did."""
    roots = [tmp_path / str(number) for number in range(4)]
    kept: list[Kept] = []
    for number in (1, 2, 3):
        roots[number].mkdir()
        as_of = AS_OF + timedelta(days=number)
        runs = run_row(number, as_of, at=NOON + timedelta(hours=number))
        facts = [f for f in facts_of(5) if f[1] <= AS_OF]
        previous = roots[number - 1] if number > 1 else None
        keep(build(roots[number], facts, "UTC", as_of, runs=runs, previous=previous), kept)
    with reading(roots[3] / "care.duckdb") as connection:
        rows = rows_of(connection, "FROM runs ORDER BY commit_id")
        assert [row["as_of"].day for row in rows] == [31, 1, 2]
        assert [row["committed_at"].hour for row in rows] == [13, 14, 15]
        latest = rows_of(connection, "SELECT DISTINCT window_start FROM kpis_latest_day")
        assert latest == [{"window_start": datetime(2026, 4, 1, tzinfo=UTC)}]
        assert rows_of(connection, "SELECT DISTINCT revision, changed_at FROM kpis") == [
            {"revision": 1, "changed_at": NOON + timedelta(hours=1)}
        ]
        assert rows_of(connection, "FROM kpi_changes") == []
    check_history(roots[3] / "care.duckdb", kept)
    # March became complete on the way.
    assert not kept[0].kpis.equals(kept[1].kpis) and not (roots[3] / "kpi_changes").exists()


def test_unreadable_previous_result_is_told(tmp_path: Path) -> None:
    """A previous result that is damaged, gone or of another version is a sentence with the folder and what to do."""
    with pytest.raises(UserError, match=r"kpis is not .*run `care-kpis rebuild`"):
        revise(kpi_rows(), tmp_path / "gone", 2, NOON)
    published(tmp_path, restate(NOTHING, kpi_rows(), 1, NOON).kpis, run_row())
    for spec in (RUNS, KPI_CHANGES):
        (tmp_path / spec.name).mkdir(exist_ok=True)
        (tmp_path / spec.name / "part-1.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="kpi_changes is not"):
        revise(kpi_rows(), tmp_path, 2, NOON)
    with pytest.raises(UserError, match="runs is not"):
        append_run(run_row(), tmp_path)
    (tmp_path / "runs" / "part-1.parquet").unlink()
    older = replace(RUNS, columns=tuple(c for c in RUNS.columns if c.name != "version"))
    write_table(run_row().drop_columns(["version"]), tmp_path / "runs" / "part-0.parquet", older)
    with pytest.raises(UserError, match="to be of this version"):
        append_run(run_row(2), tmp_path)


# Files of kpi_changes


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def three_commits(root: Path) -> list[dict[str, str]]:
    """Three results, the first without a change, one after the other; the digests of kpi_changes after each."""
    found: list[dict[str, str]] = []
    before = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    for number in (1, 2, 3):
        kpis, changes = restate(before, kpi_rows(message_count=[number // 2] * 3), number + 8, NOON + timedelta(number))
        keep_changes(root / str(number), root / str(number - 1) if number > 1 else None, changes, number + 8)
        folder = root / str(number) / "kpi_changes"
        found.append(digests(folder) if folder.exists() else {})
        before = kpis
    return found


def test_files_of_earlier_commits_are_shared(tmp_path: Path) -> None:
    """A commit adds one file; the earlier ones are hard links to what was written once. Numbers sort as numbers."""
    one, two, three = three_commits(tmp_path)
    assert [list(one), list(two)] == [["part-9.parquet"], ["part-10.parquet", "part-9.parquet"]]
    assert one.items() < two.items() and two == three
    files = [tmp_path / str(number) / "kpi_changes" / "part-9.parquet" for number in (1, 2, 3)]
    assert len({file.stat().st_ino for file in files}) == 1 and files[0].stat().st_nlink == 3
    kept = keep_changes(tmp_path / "4", tmp_path / "3", KPI_CHANGES.schema.empty_table(), 12)
    assert [file.name for file in kept] == ["part-9.parquet", "part-10.parquet"]
    fill_missing(tmp_path / "none")
    assert digests(tmp_path / "none" / "kpi_changes").keys() == {"part-0.parquet"}
    assert keep_changes(tmp_path / "next", tmp_path / "none", KPI_CHANGES.schema.empty_table(), 2) == []


def test_files_are_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, as files of their own."""
    linked = three_commits(tmp_path / "linked")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert three_commits(tmp_path / "copied") == linked
    assert (tmp_path / "copied" / "3" / "kpi_changes" / "part-9.parquet").stat().st_nlink == 1


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, when a file of an earlier commit cannot be taken over."""
    three_commits(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="the disk is full"):
        keep_changes(tmp_path / "4", tmp_path / "3", KPI_CHANGES.schema.empty_table(), 12)


def test_a_file_that_others_share_is_never_written(tmp_path: Path) -> None:
    """A commit that has its file already is an error of the program; the file stays as it was."""
    before = three_commits(tmp_path)[-1]
    kpis = restate(NOTHING, kpi_rows(), 1, NOON).kpis
    changes = restate(kpis, kpi_rows(message_count=[5, 5, 5]), 9, LAST).changes
    with pytest.raises(ValueError, match="commit 9 to be a new one"):
        keep_changes(tmp_path / "4", tmp_path / "3", changes, 9)
    assert digests(tmp_path / "3" / "kpi_changes") == before


# kpis_as_of, against copies of kpis that were kept after each commit


@dataclass
class Kept:
    """A commit, and a copy of `kpis` after it."""

    commit_id: int
    committed_at: datetime
    kpis: pa.Table


def shown(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """Rows of a query, with all their values, in the order of their windows."""
    return connection.sql(f"SELECT * FROM ({sql}) ORDER BY {WINDOW_KEY}").to_arrow_table()


def kpis_at(kept: list[Kept], at: datetime) -> pa.Table:
    """The copy of the latest commit made by a moment."""
    made = [one for one in kept if one.committed_at <= at]
    return max(made, key=lambda one: one.commit_id).kpis if made else kept[0].kpis.slice(0, 0)


def check_history(path: Path, kept: list[Kept]) -> None:
    """Compares kpis_as_of with the copies: at every commit, just before and after, between, and before the first."""
    with reading(path) as connection:
        moments = {one.committed_at + timedelta(microseconds=nudge) for one in kept for nudge in (-1, 0, 1)}
        moments |= {one.committed_at + (two.committed_at - one.committed_at) / 2 for one, two in pairwise(kept)}
        moments |= {datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)}
        for at in sorted(moments):
            expected = kpis_at(kept, at)
            for moment in (f"TIMESTAMPTZ '{at.isoformat()}'", f"'{at.astimezone(ZONE).isoformat()}'"):
                found = shown(connection, f"FROM kpis_as_of({moment})")
                assert found.schema == expected.schema and found.equals(expected), moment
        # All commits at once, each moment a column of another table.
        for column in ("committed_at", "runs.committed_at"):
            every = connection.sql(
                f"SELECT commit_id, columns.* FROM runs, kpis_as_of({column}) AS columns ORDER BY {WINDOW_KEY}"
            ).to_arrow_table()
            for one in kept:
                of_one = every.filter(pc.field("commit_id") == one.commit_id).drop_columns("commit_id")
                assert of_one.equals(kpis_at(kept, one.committed_at))


def keep(path: Path, kept: list[Kept]) -> None:
    """Adds a copy of what `kpis` says now."""
    with reading(path) as connection:
        last = connection.sql("SELECT commit_id, committed_at FROM runs ORDER BY commit_id DESC LIMIT 1").fetchall()[0]
        kept.append(Kept(*last, shown(connection, "FROM kpis")))


@pytest.mark.parametrize("seed", range(4))
def test_random_histories(seed: int, tmp_path: Path) -> None:
    """Windows change, vanish and come back, as_of goes on, at times nothing happens, and once the clock is put back.

    Revisions are those of a model in plain Python.
    """
    rng = random.Random(seed)
    kept: list[Kept] = []
    result: dict[Window, Row] = {}
    model: dict[Window, tuple[Row | None, int, datetime]] = {}
    previous, at, as_of = None, NOON, datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(1, 8):
        at += timedelta(minutes=-90) if number == 5 and seed % 2 else timedelta(seconds=rng.randrange(1, 9000))
        at += timedelta(microseconds=1)
        as_of += timedelta(hours=rng.choice((0, 1, 30)))
        result = random_result(rng, result) if rng.random() < 0.8 else result
        root = tmp_path / str(number)
        root.mkdir()
        if previous is not None:
            fill_missing(previous)
        path = build_warehouse(
            root,
            kpis=unrevised(result, as_of, rng),
            kpi_statistics=KPI_STATISTICS.schema.empty_table(),
            dead_letters=DEAD_LETTERS.schema.empty_table(),
            runs=run_row(number, as_of, at=at),
            previous=previous,
        )
        keep(path, kept)
        check_history(path, kept)
        for window in {**model, **result}:
            row, revision, changed_at = model.get(window, (None, 0, at))
            if row != result.get(window):
                changed = (revision + 1, at) if window in result else (revision, changed_at)
                model[window] = (result.get(window), *changed)
        with reading(path) as connection:
            found = {window_of(row): (row["revision"], row["changed_at"]) for row in rows_of(connection, "FROM kpis")}
        assert found == {window: state[1:] for window, state in model.items() if state[0] is not None}
        previous = root
    assert len({one.kpis.num_rows for one in kept}) > 2


def versions(path: Path) -> dict[Window, list[Row]]:
    """Every row that each window had, in order, each with the time at which it was replaced (None: in force)."""
    found: dict[Window, list[Row]] = {}
    with reading(path) as connection:
        rows = rows_of(connection, "FROM kpi_changes")
        rows += [row | {"replaced_at": None} for row in rows_of(connection, "FROM kpi_values")]
    for row in rows:
        found.setdefault(window_of(row), []).append(row)
    for of_window in found.values():
        of_window.sort(key=lambda row: row["revision"])
    return found


def check_versions(path: Path, kept: list[Kept]) -> None:
    """Each version of a window was made by a commit, replaced by a later one, and says something else than the next."""
    made = [one.committed_at for one in kept]
    commit = {"commit_id", "replaced_at", "revision", "changed_at"}
    values = [column.name for column in KPI_CHANGES.columns if column.name not in commit]
    for of_window in versions(path).values():
        assert [row["revision"] for row in of_window] == list(range(1, len(of_window) + 1))
        for row, following in zip(of_window, [*of_window[1:], None], strict=True):
            assert row["changed_at"] in made and row["replaced_at"] in (*made, None)
            assert row["replaced_at"] is None or row["replaced_at"] > row["changed_at"]
            if following is not None:
                is_back = row["replaced_at"] < following["changed_at"]
                assert is_back or row["replaced_at"] == following["changed_at"]
                assert is_back or [row[name] for name in values] != [following[name] for name in values]


def check_files(output: Path) -> None:
    """Parquet and DuckDB have the same kpi_changes, and each file the rows of its commit."""
    snapshot = current_snapshot(output)
    assert snapshot is not None
    stored = []
    for path in (snapshot / "kpi_changes").iterdir():
        rows = pq.read_table(path).to_pylist()
        assert {f"part-{row['commit_id']}.parquet" for row in rows} == {path.name}
        stored += rows
    with reading(output / "care.duckdb") as connection:
        assert sorted(map(repr, rows_of(connection, "FROM kpi_changes"))) == sorted(map(repr, stored))


def steps_of(seed: int) -> list[tuple[str, Callable[[list[bytes]], list[bytes]], dict[str, Any]]]:
    """What a user could do one after the other: name, which rows he gives, and which settings he changes."""
    rng = random.Random(f"steps of {seed}")
    lost = rng.sample(range(1000), 300)
    return [
        ("a third of the rows", lambda lines: lines[: len(lines) // 3], {}),
        ("more of them", lambda lines: lines[: 2 * len(lines) // 3], {}),
        ("all", lambda lines: lines, {}),
        ("all again", lambda lines: lines, {}),
        ("no rows", lambda lines: [], {}),
        ("some rows lost", lambda lines: [line for place, line in enumerate(lines) if place not in lost], {}),
        ("another zone", lambda lines: lines, {"timezone": "Asia/Kathmandu"}),
        ("all as before", lambda lines: lines, {}),
        ("a year later", lambda lines: lines, {"as_of": 4_000_000_000_000_000}),
    ]


@pytest.mark.parametrize("seed", [11, pytest.param(3, marks=pytest.mark.slow)])
def test_runs_one_after_another(seed: int, tmp_path: Path) -> None:
    """Real batch runs into one output folder: what each said can be shown after all the others."""
    lines, settings = clean_world(seed)
    settings = replace(settings, as_of=None)
    output, kept = tmp_path / "out", []
    for number, (name, rows, changes) in enumerate(steps_of(seed), 1):
        inputs = tmp_path / f"{number} {name}.ndjson"
        inputs.write_bytes(b"\n".join(rows(lines)))
        run(options(inputs, output, replace(settings, **changes), max_dead_letter_rate=1.0))
        keep(output / "care.duckdb", kept)
        assert kept[-1].commit_id == number
    check_history(output / "care.duckdb", kept)
    # Only what changed is there: two of these runs changed no window, and one that has none cannot.
    snapshot = current_snapshot(output)
    assert snapshot is not None
    files = {path.stem: pq.read_metadata(path).num_rows for path in (snapshot / "kpi_changes").iterdir()}
    assert {f"part-{number}" for number in (2, 3, 5, 7, 8)} <= files.keys()
    assert files.keys().isdisjoint({f"part-{number}" for number in (0, 1, 4, 6)})
    assert files["part-5"] == kept[3].kpis.num_rows
    check_files(output)
    check_versions(output / "care.duckdb", kept)
    with reading(output / "care.duckdb") as connection:
        runs = rows_of(connection, "FROM runs ORDER BY commit_id")
    assert all(name in row["inputs"] for (name, _, _), row in zip(steps_of(seed), runs, strict=True))
    assert ["Kathmandu" in row["settings"] for row in runs] == [number == 7 for number in range(1, 10)]


def test_appending_runs(tmp_path: Path) -> None:
    """Runs that add to a result, and one over everything after them, leave the same kind of history."""
    lines, settings = clean_world(5)
    settings = replace(settings, as_of=None)
    output, kept = tmp_path / "out", []
    for number in range(5):
        inputs = tmp_path / f"{number}.ndjson"
        inputs.write_bytes(b"\n".join(lines[number::5]))
        run(options(inputs, output, settings, max_dead_letter_rate=1.0, append=True))
        keep(output / "care.duckdb", kept)
    inputs = tmp_path / "all.ndjson"
    inputs.write_bytes(b"\n".join(lines[::2]))
    run(options(inputs, output, settings, max_dead_letter_rate=1.0))
    keep(output / "care.duckdb", kept)
    check_history(output / "care.duckdb", kept)
    assert [one.commit_id for one in kept] == [1, 2, 3, 4, 5, 6]
    check_versions(output / "care.duckdb", kept)
    check_files(output)


def test_moments_of_every_kind(tmp_path: Path) -> None:
    """Timestamps, dates and ISO text; without a zone that of the session counts; null is never."""
    path = build(tmp_path, facts_of(1)[:20], "UTC", AS_OF, runs=run_row(at=NOON))
    with reading(path) as connection:
        all_rows = connection.sql("FROM kpis").to_arrow_table().num_rows

        def rows(moment: str) -> int:
            return int(connection.sql(f"FROM kpis_as_of({moment})").to_arrow_table().num_rows)

        # Noon in UTC is 08:30 in the session's St. John's.
        for moment in ("'2026-03-01T12:00:00Z'", "'2026-03-01 13:00+01'", "TIMESTAMPTZ '2026-03-01 12:00:00+00'"):
            assert rows(moment) == all_rows
        for moment in ("'2026-03-01T08:30:00'", "TIMESTAMP '2026-03-01 08:30:00'", "DATE '2026-03-02'", "now()"):
            assert rows(moment) == all_rows
        for moment in ("'2026-03-01T11:59:59.999999Z'", "'2026-03-01T08:29:59.999999'", "DATE '2026-03-01'", "NULL"):
            assert rows(moment) == 0
        assert rows("(SELECT committed_at FROM runs)") == all_rows
        per_run = connection.sql("SELECT commit_id, count(*) FROM runs, kpis_as_of(committed_at) GROUP BY ALL")
        assert per_run.fetchall() == [(1, all_rows)]
        with pytest.raises(duckdb.ConversionException, match="yesterday"):
            rows("'yesterday'")


# docs/history.md


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the commands of the page."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in code_blocks("sh", "docs/history.md"):
            for line in block.text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
    return folder / "output" / "care.duckdb"


@pytest.mark.parametrize("block", named(code_blocks("sql", "docs/history.md")))
def test_queries_of_the_page(described: Path, block: CodeBlock) -> None:
    """Every query gives rows; where an answer is shown, that one."""
    with duckdb.connect(str(described), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        assert warehouse.sql(block.text).fetchall()
        if block.following is not None:
            assert str(warehouse.sql(block.text)).rstrip() == block.following.rstrip()
