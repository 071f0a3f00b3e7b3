"""`care-kpis rebuild`: what is damaged comes back as it was, the commit stays the same, and nothing is half done."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from results import (
    add_to,
    change,
    copy_of_result,
    files_of,
    parts_of_sample,
    rows_of_tables,
    seal_again,
    snapshot_of,
)
from test_check import CHECKS, DAMAGE, flip, states

from pipelines.cli import main
from sinks.check import check_result
from sinks.manifest import MANIFEST, read_manifest
from sinks.publish import open_snapshot
from sinks.rebuild import rebuild
from transforms.errors import UserError
from transforms.tables import TABLES

MONTHLY = ("conversations", "turns", "kpis", "kpi_statistics")


def inodes(output: Path) -> dict[str, int]:
    """The files of a result, by path below its snapshot."""
    snapshot = snapshot_of(output)
    return {str(path.relative_to(snapshot)): path.stat().st_ino for path in snapshot.rglob("*") if path.is_file()}


def test_a_whole_result_gets_another_warehouse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All else is linked; the commit has its number, the snapshot another, and the next commit goes on from there."""
    output = copy_of_result(tmp_path)
    rows, before = rows_of_tables(output), inodes(output)
    assert main(["rebuild", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Made     care.duckdb from the Parquet files",
        f"Kept     {len(before) - 2} files as they were",
        f"Result   {output}, commit 2 as before",
        f"Next     care-kpis check {output}",
    ]
    assert snapshot_of(output).name == "000002.1"
    assert rows_of_tables(output) == rows
    assert states(check_result(output)) == {"ok": CHECKS}
    after = inodes(output)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {"care.duckdb", MANIFEST}
    rebuild(output)
    assert sorted(path.name for path in (output / ".snapshots").iterdir()) == ["000002.1", "000002.2"]
    with open_snapshot(output) as snapshot:
        assert (snapshot.commit_id, snapshot.path.name[:7]) == (3, "000003-")
        assert snapshot.previous == snapshot_of(output)


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_warehouse(how: str, tmp_path: Path) -> None:
    """It is made from Parquet, with its views, macros and comments."""
    output = copy_of_result(tmp_path)
    rows = rows_of_tables(output)
    with duckdb.connect(str(snapshot_of(output) / "care.duckdb"), read_only=True) as warehouse:
        views = warehouse.execute("FROM kpis_last_28_days").fetchall()
        comments = warehouse.execute("SELECT table_name, comment FROM duckdb_tables() ORDER BY ALL").fetchall()
    DAMAGE[how](snapshot_of(output) / "care.duckdb")
    done = rebuild(output)
    assert (done.commit_id, done.restored, done.is_warehouse_new, done.notes) == (2, (), True, ())
    assert rows_of_tables(output) == rows
    assert states(check_result(output)) == {"ok": CHECKS}
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        assert warehouse.execute("FROM kpis_last_28_days").fetchall() == views
        assert warehouse.execute("SELECT table_name, comment FROM duckdb_tables() ORDER BY ALL").fetchall() == comments


@pytest.mark.parametrize("table", [spec.name for spec in TABLES])
def test_damaged_parquet(table: str, tmp_path: Path) -> None:
    """It is made from the warehouse."""
    output = copy_of_result(tmp_path)
    rows = rows_of_tables(output)
    DAMAGE[random.Random(table).choice(list(DAMAGE))](files_of(output, table)[-1])
    done = rebuild(output)
    assert not done.is_warehouse_new and len(done.restored) == 1 and not done.notes
    assert rows_of_tables(output) == rows
    assert states(check_result(output)) == {"ok": CHECKS}


def test_many_damaged_files(tmp_path: Path) -> None:
    """All Parquet files gone: they come back, and the result goes on growing to what it would have been."""
    output, whole = copy_of_result(tmp_path), copy_of_result(tmp_path / "whole")
    rows = rows_of_tables(output)
    folders = {path.parent for spec in TABLES for path in files_of(output, spec.name)}
    for spec in TABLES:
        shutil.rmtree(snapshot_of(output) / spec.name)
    assert len(rebuild(output).restored) == len(folders)
    assert rows_of_tables(output) == rows
    third = tmp_path / "third.ndjson"
    lines = parts_of_sample()[0].read_text(encoding="utf-8").splitlines()
    third.write_text("\n".join(line.replace('"event_id":"', '"event_id":"again-') for line in lines[:100]) + "\n")
    for place in (output, whole):
        add_to(place, third)
    assert states(check_result(output)) == {"ok": CHECKS}
    # What tells when a commit was made cannot be the same.
    timed = {f"{copy}{name}" for copy in ("parquet_", "warehouse.") for name in ("runs", "kpi_changes", "kpis")}
    timed.add("warehouse.kpi_values")
    grown, expected = rows_of_tables(output), rows_of_tables(whole)
    assert {name: grown[name] for name in grown.keys() - timed} == {n: expected[n] for n in expected.keys() - timed}
    assert grown["parquet_turns"] != rows["parquet_turns"]


@pytest.mark.parametrize("table", MONTHLY)
def test_restored_files_are_those_of_a_run(table: str, tmp_path: Path) -> None:
    """The same rows in the same order, so the same bytes, as long as a month is one file."""
    output = copy_of_result(tmp_path)
    for name in [path.relative_to(snapshot_of(output)) for path in files_of(output, table)]:
        content = (snapshot_of(output) / name).read_bytes()
        (snapshot_of(output) / name).unlink()
        assert rebuild(output).restored == (str(name),)
        assert (snapshot_of(output) / name).read_bytes() == content


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_manifest(how: str, tmp_path: Path) -> None:
    """It is made anew where both copies agree; what nothing vouches for is left out, and said."""
    output = copy_of_result(tmp_path)
    rows = rows_of_tables(output)
    before = read_manifest(snapshot_of(output))
    DAMAGE[how](snapshot_of(output) / MANIFEST)
    done = rebuild(output)
    assert done.commit_id == 2 and done.is_warehouse_new
    assert len(done.notes) == 1 and "the next appending run" in done.notes[0]
    assert rows_of_tables(output) == rows
    assert states(check_result(output)) == {"ok": CHECKS}
    after = read_manifest(snapshot_of(output))
    kept = {path: entry for path, entry in before.files.items() if path.endswith(".parquet")}
    assert {path: entry for path, entry in after.files.items() if path != "care.duckdb"} == kept


def test_damaged_state(tmp_path: Path) -> None:
    """The result is whole without it; appending to it is refused with what to do."""
    output = copy_of_result(tmp_path)
    flip(snapshot_of(output) / "_state" / "state.json")
    (note,) = rebuild(output).notes
    assert "run over all files with --append into a new output folder" in note
    assert states(check_result(output)) == {"ok": CHECKS}
    with pytest.raises(UserError, match="open rows were not kept"):
        add_to(output, parts_of_sample()[0])


def test_files_that_nobody_knows(tmp_path: Path) -> None:
    """They are left out, and named."""
    output = copy_of_result(tmp_path)
    (snapshot_of(output) / "turns" / "mine.txt").touch()
    assert rebuild(output).notes == ("turns/mine.txt is no part of the result and was left out.",)
    assert states(check_result(output)) == {"ok": CHECKS}


def unchanged_after_refusal(output: Path, match: str) -> None:
    """Rebuilding is refused, and the folder shows what it showed."""
    before = inodes(output)
    with pytest.raises(UserError, match=match):
        rebuild(output)
    assert inodes(output) == before and snapshot_of(output).name == "000002"
    assert sorted(path.name for path in (output / ".snapshots").iterdir()) == ["000001", "000002"]


@pytest.mark.parametrize(
    ("table", "way"),
    [
        ("turns", "care.duckdb is damaged: run `care-kpis batch` over all inputs again"),
        ("runs", "move .*output away and run `care-kpis batch` over all inputs again; its history is lost"),
    ],
)
def test_both_copies_damaged(table: str, way: str, tmp_path: Path) -> None:
    """One sentence says what to do."""
    output = copy_of_result(tmp_path)
    flip(snapshot_of(output) / "care.duckdb")
    flip(files_of(output, table)[0])
    unchanged_after_refusal(output, f"Expected Parquet or DuckDB to have {table} whole, but {table}/.*{way}")


def test_a_run_puts_right_what_rebuild_cannot(tmp_path: Path) -> None:
    """A run over all inputs, as the sentence says, with the history that is whole."""
    output = copy_of_result(tmp_path)
    flip(snapshot_of(output) / "care.duckdb")
    flip(files_of(output, "turns")[0])
    add_to(output, *parts_of_sample(), append=False)
    assert states(check_result(output)) == {"ok": CHECKS}
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        assert warehouse.execute("SELECT commit_id, kind FROM runs ORDER BY 1").fetchall() == [
            (1, "batch"),
            (2, "append"),
            (3, "batch"),
        ]


@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_a_run_after_a_damaged_manifest_keeps_the_history(how: str, tmp_path: Path) -> None:
    """The tables that a run goes on from are there without it."""
    output = copy_of_result(tmp_path)
    DAMAGE[how](snapshot_of(output) / MANIFEST)
    add_to(output, *parts_of_sample(), append=False)
    findings = check_result(output)
    assert states(findings) == {"ok": CHECKS}
    assert next(finding for finding in findings if finding.check == "history").found.startswith("3 runs, ")


def test_no_manifest_and_copies_that_differ(tmp_path: Path) -> None:
    """Nothing tells which of them is right."""
    output = copy_of_result(tmp_path)
    change(output, "UPDATE turns SET agent_id = 'other'")
    (snapshot_of(output) / MANIFEST).unlink()
    unchanged_after_refusal(
        output, "to say the same, since manifest.json cannot be read .* but turns differs in agent_id"
    )


# One bit may well be in a part of care.duckdb that has no row.
@pytest.mark.parametrize(
    ("what", "how"), [(what, how) for what in ("care.duckdb", "turns") for how in list(DAMAGE)[what == "care.duckdb" :]]
)
def test_no_manifest_and_a_damaged_copy(what: str, how: str, tmp_path: Path) -> None:
    """Nothing vouches for the other one."""
    output = copy_of_result(tmp_path)
    DAMAGE[how](snapshot_of(output) / what if "." in what else files_of(output, what)[0])
    (snapshot_of(output) / MANIFEST).unlink()
    unchanged_after_refusal(output, "since manifest.json cannot be read")


def test_no_manifest_and_runs_of_another_commit(tmp_path: Path) -> None:
    """A snapshot that somebody renamed is not taken for another commit."""
    output = copy_of_result(tmp_path)
    (snapshot_of(output) / MANIFEST).unlink()
    (output / ".snapshots" / "000002").rename(output / ".snapshots" / "000007")
    (output / ".current").unlink()
    (output / ".current").symlink_to(".snapshots/000007")
    with pytest.raises(UserError, match="to end with commit 7, but the last one is 2"):
        rebuild(output)


def test_files_of_another_version(tmp_path: Path) -> None:
    """Parquet files with other columns cannot become a warehouse of this version."""
    output = copy_of_result(tmp_path)
    path = files_of(output, "turns")[0]
    with duckdb.connect() as session:
        session.execute(f"COPY (SELECT * EXCLUDE (outcome) FROM '{path}') TO '{path}.new' (FORMAT parquet)")
    os.replace(f"{path}.new", path)
    seal_again(output)
    unchanged_after_refusal(
        output, "Expected turns in .* as this version writes it, but turns/.* has no column outcome"
    )


def test_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a result stays as it is."""
    assert main(["rebuild", str(tmp_path)]) == 2
    assert main(["rebuild", str(tmp_path / "nothing")]) == 2
    assert "but there is none: make one with `care-kpis batch`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_not_beside_a_run(tmp_path: Path) -> None:
    """It is refused like a second run."""
    output = copy_of_result(tmp_path)
    with open_snapshot(output), pytest.raises(UserError, match=f"process {os.getpid()} is writing to it"):
        rebuild(output)


def test_the_warehouse_is_open_elsewhere(tmp_path: Path) -> None:
    """Somebody who writes to it bars it from being read; that is no damage."""
    output = copy_of_result(tmp_path)
    files_of(output, "turns")[0].unlink()
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(snapshot_of(output) / "care.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        unchanged_after_refusal(output, "cannot be opened .*close it wherever it is open, and run `care-kpis rebuild`")
        writer.kill()
    assert states(check_result(output))["failed"] == ["files"]
    rebuild(output)
    assert states(check_result(output)) == {"ok": CHECKS}


@pytest.mark.parametrize("step", ["link", "fsync", "rename", "replace"])
def test_the_disk_is_full(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and the result that was there."""
    output = copy_of_result(tmp_path)
    flip(files_of(output, "turns")[0])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, refuse)
        with pytest.raises(UserError, match="the disk is full"):
            rebuild(output)
    assert snapshot_of(output).name == "000002"
    rebuild(output)
    assert states(check_result(output)) == {"ok": CHECKS}


REBUILDS = "import sys; from pathlib import Path; from sinks.rebuild import rebuild; rebuild(Path(sys.argv[1]))"


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Before: the result as it was; after: the whole one. The next rebuild comes through."""
    moments = random.Random(3)
    output = copy_of_result(tmp_path)
    rows = rows_of_tables(output)
    flip(files_of(output, "turns")[0])
    was, began = inodes(output), time.monotonic()
    subprocess.run(
        [sys.executable, "-c", REBUILDS, str(shutil.copytree(output, tmp_path / "try", symlinks=True))], check=True
    )
    longest = time.monotonic() - began
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", REBUILDS, str(output)]) as process:
            time.sleep(moments.uniform(0.3, 1) * longest)
            process.send_signal(signal.SIGKILL)
        if snapshot_of(output).name == "000002":
            assert inodes(output) == was
            continue
        assert rows_of_tables(output) == rows
        assert states(check_result(output)) == {"ok": CHECKS}
    rebuild(output)
    assert rows_of_tables(output) == rows
    assert states(check_result(output)) == {"ok": CHECKS}
    assert len(list((output / ".snapshots").iterdir())) == 2
