"""The commit: what readers see before, during and after it, what dead runs leave, and whom it refuses."""

from __future__ import annotations

import errno
import glob
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinks import publish
from sinks.manifest import read_manifest
from sinks.parquet import write_partitioned, write_table
from sinks.publish import LINKS, Snapshot, current_snapshot, open_snapshot
from transforms.errors import UserError
from transforms.schema import TIMESTAMP
from transforms.tables import CONVERSATIONS, KPI_DEFINITIONS, TABLES

PROJECT = Path(__file__).parent.parent


def conversations(rows: int) -> pa.Table:
    """Conversations that start a day apart."""
    at = pa.array(np.arange(rows) * 86_400_000_000).cast(TIMESTAMP)
    constants = {pa.string(): "x", pa.int64(): 1, pa.float64(): 1.0, pa.bool_(): True}
    return pa.table(
        [at if c.type == TIMESTAMP else pa.repeat(pa.scalar(constants[c.type]), rows) for c in CONVERSATIONS.columns],
        schema=CONVERSATIONS.schema,
    )


def stage(snapshot: Snapshot, rows: int) -> None:
    """A small result: some conversations as Parquet, as many in DuckDB."""
    write_partitioned(conversations(rows), snapshot.path / "conversations", CONVERSATIONS, "started_at", "0")
    with duckdb.connect(str(snapshot.path / "care.duckdb")) as warehouse:
        warehouse.execute(f"CREATE TABLE conversations AS SELECT 'x' AS channel FROM range({rows})")


def commit(output: Path, rows: int) -> Path:
    """Publishes a small result."""
    with open_snapshot(output) as snapshot:
        stage(snapshot, rows)
        return snapshot.publish()


def rows_in(result: Path) -> int:
    """Rows of conversations in a whole result; fails unless Parquet, DuckDB and manifest agree and all is there."""
    manifest = json.loads((result / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["tables"]) == [table.name for table in TABLES]
    for name, table in manifest["tables"].items():
        found = {str(p.relative_to(result)): p for p in (result / name).rglob("*.parquet")}
        assert {file["path"] for file in table["files"]} == found.keys() and found
        for file in table["files"]:
            assert file["rows"] == pq.read_metadata(found[file["path"]]).num_rows
            assert file["bytes"] == found[file["path"]].stat().st_size
        assert table["rows"] == sum(file["rows"] for file in table["files"])
    with duckdb.connect(str(result / "care.duckdb"), read_only=True) as warehouse:
        row = warehouse.execute("SELECT count(*) FROM conversations").fetchone()
    assert row == (manifest["tables"]["conversations"]["rows"],)
    return int(row[0])


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_first_commit(tmp_path: Path) -> None:
    """All links lead to one snapshot, numbered from 1; nothing is seen before `publish`."""
    output = tmp_path / "made" / "here"
    with open_snapshot(output) as snapshot:
        assert (snapshot.commit_id, snapshot.previous) == (1, None)
        assert snapshot.path.parent == output / ".snapshots" and snapshot.path.suffix == ".tmp"
        stage(snapshot, 40)
        assert names(output) == [".lock", ".snapshots"] and current_snapshot(output) is None
        final = snapshot.publish({"as_of": "2026-01-01T00:00:00Z"})
    assert names(output) == sorted([".current", ".lock", ".snapshots", *LINKS])
    assert names(output / ".snapshots") == ["000001"] and final == current_snapshot(output)
    assert all((output / name).resolve() == final / name for name in LINKS)
    assert all(not os.path.isabs(os.readlink(output / name)) for name in (*LINKS, ".current"))
    assert rows_in(output) == rows_in(final) == 40
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["commit_id"] == 1 and manifest["as_of"] == "2026-01-01T00:00:00Z"


def test_next_commits_replace_and_keep_one(tmp_path: Path) -> None:
    """Each commit counts on and sees the one before; the last two snapshots are kept."""
    for number in range(1, 5):
        with open_snapshot(tmp_path) as snapshot:
            before = tmp_path / ".snapshots" / f"{number - 1:06}" if number > 1 else None
            assert (snapshot.commit_id, snapshot.previous) == (number, before)
            stage(snapshot, number)
            snapshot.publish()
        assert rows_in(tmp_path) == number
    assert names(tmp_path / ".snapshots") == ["000003", "000004"]


def test_failed_run_changes_nothing(tmp_path: Path) -> None:
    """An error in the run leaves the result as it was, clears the staging folder and frees the output."""
    commit(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with pytest.raises(RuntimeError, match="out of luck"), open_snapshot(tmp_path) as snapshot:
        stage(snapshot, 5)
        raise RuntimeError("out of luck")
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert after.keys() == before.keys()
    assert rows_in(tmp_path) == 3
    assert commit(tmp_path, 4).name == "000002"


def test_needs_a_warehouse(tmp_path: Path) -> None:
    """A result without care.duckdb is not published."""
    with pytest.raises(ValueError, match=r"care\.duckdb to be built"), open_snapshot(tmp_path) as snapshot:
        snapshot.publish()
    assert names(tmp_path / ".snapshots") == []


def test_each_file_is_found_once(tmp_path: Path) -> None:
    """Patterns of Python, DuckDB, pandas and Arrow find the current files once, with older snapshots around."""
    for rows in (70, 80, 90):
        commit(tmp_path / "out", rows)
    found = glob.glob(f"{tmp_path}/**/conversations/**/*.parquet", recursive=True)
    assert len(found) == 3 and pq.ParquetDataset(found).read(["channel"]).num_rows == 90
    assert len(glob.glob(f"{tmp_path}/out/**/*.parquet", recursive=True)) == 3 + len(TABLES) - 1
    sql = f"FROM read_parquet('{tmp_path}/out/conversations/**/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"SELECT count(*), min(started_month), max(started_month) {sql}").fetchall() == [
        (90, "1970-01", "1970-03")
    ]
    one = f"FROM read_parquet('{tmp_path}/out/conversations/*/*.parquet')"
    assert duckdb.sql(f"SELECT count(*) {one}").fetchall() == [(90,)]
    frame = pd.read_parquet(tmp_path / "out" / "conversations")
    assert len(frame) == 90 and frame["started_month"].nunique() == 3
    assert pq.read_table(tmp_path / "out" / "conversations").num_rows == 90
    assert pq.read_table(tmp_path / "out" / "turns").num_rows == 0


def test_output_may_be_a_link_or_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a folder and a relative path work, also when the working folder changes in between."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    with open_snapshot("out") as snapshot:
        monkeypatch.chdir("/")
        stage(snapshot, 2)
        snapshot.publish()
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "disk") == 2
    assert current_snapshot(tmp_path / "out") == tmp_path / "disk" / ".snapshots" / "000001"
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert rows_in(tmp_path / "moved") == 2


def test_reader_keeps_what_it_has_open(tmp_path: Path) -> None:
    """Who has the warehouse or a file open goes on reading the old result, also two commits later."""
    commit(tmp_path, 3)
    old = duckdb.connect(str(tmp_path / "care.duckdb"), read_only=True)
    file = pq.ParquetFile(next((tmp_path / "conversations").rglob("*.parquet")), memory_map=True)
    for rows in (4, 5):
        commit(tmp_path, rows)
        with duckdb.connect(str((tmp_path / "care.duckdb").resolve()), read_only=True) as new:
            assert new.execute("SELECT count(*) FROM conversations").fetchall() == [(rows,)]
        assert old.execute("SELECT count(*) FROM conversations").fetchall() == [(3,)]
    assert file.read(["channel"]).num_rows == 3
    old.close()


def test_writer_in_the_old_warehouse_does_not_disturb(tmp_path: Path) -> None:
    """Somebody who has the warehouse open for writing, and a log that was left, do not reach the new result."""
    commit(tmp_path, 3)
    (tmp_path / "care.duckdb.wal").write_bytes(b"a log of somebody who died")
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1]); c.execute('CREATE TABLE mine AS SELECT 1');"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str((tmp_path / "care.duckdb").resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        commit(tmp_path, 4)
        assert rows_in(tmp_path) == 4
        writer.kill()
    assert rows_in(tmp_path) == 4 and not (tmp_path / "care.duckdb.wal").exists()
    assert commit(tmp_path, 5).name == "000003"


def test_second_run_at_once_is_refused(tmp_path: Path) -> None:
    """While a run goes on another one is told who it is and what to do; afterwards the way is free."""
    with open_snapshot(tmp_path) as snapshot:
        with pytest.raises(UserError, match=rf"process {os.getpid()} is writing to it: wait until"):
            open_snapshot(tmp_path)
        stage(snapshot, 1)
        snapshot.publish()
    assert commit(tmp_path, 2).name == "000002"


def test_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A forked worker that outlives the run, with its copy of the lock, does not bar the next one."""
    with open_snapshot(tmp_path) as snapshot:
        assert snapshot._lock is not None
        copy = os.dup(snapshot._lock)
    commit(tmp_path, 1)
    os.close(copy)


@pytest.mark.parametrize(
    "url", ["gs://bucket/out", "s3://bucket/out", "hdfs://host/x", "file:///tmp/x", "https://a.b/c"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_url_is_refused(url: str, kind: type) -> None:
    """A URL is named as what it is, also after Path has eaten one of its slashes."""
    with pytest.raises(UserError, match="on this machine for the output, got the URL"):
        open_snapshot(kind(url))
    assert not Path(url.split("/")[0]).exists()


def test_file_is_refused(tmp_path: Path) -> None:
    """An output that is a file, or lies below one, is refused with its name."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: choose another name"):
        open_snapshot(tmp_path / "file")
    with pytest.raises(UserError, match=r"Expected to write .*file/below"):
        open_snapshot(tmp_path / "file" / "below")


@pytest.mark.parametrize("name", [*LINKS, ".current", ".snapshots"])
@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_foreign_content_is_left_alone(tmp_path: Path, name: str, what: str) -> None:
    """Something of the user's under a name of ours is refused and not touched."""
    place = tmp_path / name
    if what == "file":
        place.write_text("mine")
    elif what == "folder":
        if name == ".snapshots":
            pytest.skip("an empty folder of that name does no harm")
        (place / "mine").mkdir(parents=True)
    else:
        if name == ".snapshots":
            pytest.skip("snapshots may lie on another disk")
        place.symlink_to("elsewhere")
    before = names(tmp_path)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        open_snapshot(tmp_path)
    assert names(tmp_path) == before


def test_other_content_does_no_harm(tmp_path: Path) -> None:
    """Other files in the output folder and among the snapshots stay."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".snapshots" / "mine").mkdir(parents=True)
    (tmp_path / ".snapshots" / "000000x").mkdir()
    commit(tmp_path, 1)
    commit(tmp_path, 2)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert names(tmp_path / ".snapshots") == ["000000x", "000001", "000002", "mine"]


@pytest.mark.parametrize("left", ["000002-0123abcd.tmp", "000002", "000007", "000007-0123abcd.tmp"])
def test_leftovers_of_dead_runs_are_removed(tmp_path: Path, left: str) -> None:
    """Folders that a dead run staged, or finished without showing them, are gone in the next run."""
    commit(tmp_path, 1)
    (tmp_path / ".snapshots" / left / "conversations").mkdir(parents=True)
    (tmp_path / ".current.tmp").symlink_to("nowhere")
    with open_snapshot(tmp_path) as snapshot:
        assert names(tmp_path / ".snapshots") == ["000001", snapshot.path.name]
        assert names(snapshot.path) == [] and snapshot.previous == tmp_path / ".snapshots" / "000001"
        stage(snapshot, 2)
        snapshot.publish()
    assert rows_in(tmp_path) == 2 and not os.path.lexists(tmp_path / ".current.tmp")


def test_worker_that_outlives_its_run(tmp_path: Path) -> None:
    """What a worker of a dead run writes late is in no result, and is removed in the run after."""
    with open_snapshot(tmp_path) as snapshot:
        late = snapshot.path / "conversations" / "late.parquet"
    with open_snapshot(tmp_path) as snapshot:
        write_table(conversations(9), late, CONVERSATIONS)
        stage(snapshot, 2)
        snapshot.publish()
    assert rows_in(tmp_path) == 2 and not late.exists()


def test_snapshots_that_somebody_deleted(tmp_path: Path) -> None:
    """Without the current snapshot a run begins anew, without a previous result and with the next number."""
    commit(tmp_path, 1)
    for path in sorted((tmp_path / ".snapshots" / "000001").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / ".snapshots" / "000001").rmdir()
    assert current_snapshot(tmp_path) is None
    with open_snapshot(tmp_path) as snapshot:
        assert (snapshot.commit_id, snapshot.previous) == (2, None)
        stage(snapshot, 3)
        snapshot.publish()
    assert rows_in(tmp_path) == 3


@pytest.mark.parametrize("step", ["mkdir", "open", "fsync", "rename", "symlink", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Whatever the system refuses, the user gets a sentence, readers the old result, and the next run works."""
    commit(tmp_path, 3)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"disk is full|Read-only file system"):
        if step == "open":
            patch.setattr(publish.os, step, refuse)
        if step == "mkdir":
            patch.setattr(publish.Path, step, refuse)
        with open_snapshot(tmp_path) as snapshot:
            stage(snapshot, 4)
            patch.setattr(publish.os, step, refuse)
            if step == "symlink":
                (tmp_path / "runs").unlink()
            snapshot.publish()
    assert rows_in(current_snapshot(tmp_path) or tmp_path) == 3
    commit(tmp_path, 5)
    assert rows_in(tmp_path) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    """A folder that may not be written is a sentence that says so."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="change its permissions"):
            open_snapshot(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """Two outputs of the same rows have equal Parquet files, and manifests that say so; DuckDB's bytes are its own."""
    contents: list[dict[str, bytes]] = []
    manifests = []
    for name in ("a", "b"):
        with open_snapshot(tmp_path / name) as snapshot:
            stage(snapshot, 100)
            write_table(
                KPI_DEFINITIONS.schema.empty_table(), snapshot.path / "kpi_definitions" / "x.parquet", KPI_DEFINITIONS
            )
            final = snapshot.publish()
        files = [p for p in final.rglob("*.parquet") if p.is_file()]
        contents.append({str(p.relative_to(final)): p.read_bytes() for p in files})
        manifests.append({p: e for p, e in read_manifest(final).files.items() if p != "care.duckdb"})
    assert contents[0] == contents[1] and len(contents[0]) == 3 + len(TABLES)
    assert manifests[0] == manifests[1] and manifests[0].keys() == contents[0].keys()


DIES = """
import os, sys
from pathlib import Path
sys.path[:0] = [{project!r}, {tests!r}]
from test_publish import stage
from sinks.publish import open_snapshot

output = Path(sys.argv[1])

def publish_and_die(last, rows):
    count = 0

    def die(event, arguments):
        nonlocal count
        if event.startswith(("os.", "open", "shutil.", "fcntl.")) and any(str(output) in str(a) for a in arguments):
            count += 1
            if count == last:
                os._exit(9)

    with open_snapshot(output) as snapshot:
        stage(snapshot, rows)
        sys.addaudithook(die)
        snapshot.publish()

for line in sys.stdin:
    last, rows = map(int, line.split())
    child = os.fork()
    if not child:
        publish_and_die(last, rows)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_death_at_every_step_of_publish(tmp_path: Path) -> None:
    """A run that dies before its n-th touch of the file system, for every n, leaves the old or the new result whole."""
    output = tmp_path / "out"
    commit(output, 1)
    commit(output, 2)
    command = [sys.executable, "-c", DIES.format(project=str(PROJECT), tests=str(PROJECT / "tests")), str(output)]
    seen, shown, last, status = set(), 2, 0, 9
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runs:
        assert runs.stdin is not None and runs.stdout is not None
        while status:
            last += 1
            rows = last + 2
            print(last, rows, file=runs.stdin, flush=True)
            status = int(runs.stdout.readline())
            assert status in (0, 9)
            found = rows_in(output)
            assert found in (shown, rows)
            seen.add((status, found == rows))
            shown = found
        runs.stdin.close()
    # It died before the commit and after it, and at last it came through.
    assert seen == {(9, False), (9, True), (0, True)} and last > 20
    assert len(names(output / ".snapshots")) == 2


LOOPS = """
import sys
from pathlib import Path
sys.path[:0] = [{project!r}, {tests!r}]
import test_duckdb
from test_publish import conversations, stage
from sinks.manifest import read_manifest
from sinks.parquet import write_partitioned
from sinks.publish import open_snapshot
from transforms.tables import CONVERSATIONS

output, whole = Path(sys.argv[1]), sys.argv[2] == "whole"
facts = test_duckdb.facts_of(1, days=3)[:300]
while True:
    with open_snapshot(output) as snapshot:
        if whole:
            rows = conversations(snapshot.commit_id)
            write_partitioned(rows, snapshot.path / "conversations", CONVERSATIONS, "started_at", "0")
            runs = test_duckdb.run_row(snapshot.commit_id)
            test_duckdb.build(
                snapshot.path, facts, "UTC", test_duckdb.NOON, runs=runs, previous=snapshot.previous
            )
        else:
            stage(snapshot, snapshot.commit_id)
        snapshot.publish()
    print(snapshot.commit_id, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kills"), [("small", 15), ("whole", 6)])
def test_killed_at_random_moments(tmp_path: Path, how: str, kills: int) -> None:
    """Readers that look again and again while runs are killed (-9) always find one whole result, never an older one."""
    code = LOOPS.format(project=str(PROJECT), tests=str(PROJECT / "tests"))
    output = tmp_path / "out"
    moments = random.Random(kills)
    shown = looks = 0
    for _ in range(kills):
        command = [sys.executable, "-c", code, str(output), how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            acknowledged = int(run.stdout.readline())
            assert acknowledged > shown
            end = time.monotonic() + moments.uniform(0, 0.8)
            while time.monotonic() < end:
                looks += 1
                shown = look(output, at_least=shown)
            run.kill()
            rest = run.stdout.read().split("\n")
        acknowledged = int(rest[-2]) if len(rest) > 1 else acknowledged
        found = rows_in(output)
        assert found >= acknowledged
        shown = max(shown, found)
        assert len([n for n in names(output / ".snapshots") if not n.endswith(".tmp")]) <= 4
    commit(output, 7)
    assert rows_in(output) == 7 and len(names(output / ".snapshots")) == 2
    assert looks >= kills


def look(output: Path, at_least: int) -> int:
    """Reads the result as it is now, resolved once; a snapshot that is two commits old by now may be gone."""
    while True:
        snapshot = current_snapshot(output)
        assert snapshot is not None
        try:
            found = rows_in(snapshot)
        except (OSError, duckdb.IOException, AssertionError):
            if current_snapshot(output) == snapshot:
                raise
            continue
        assert found == int(snapshot.name) >= at_least
        return found


def test_nothing_to_read_before_the_first_commit(tmp_path: Path) -> None:
    """A run that is under way in a new folder shows nothing at all."""
    with open_snapshot(tmp_path) as snapshot:
        stage(snapshot, 1)
        assert current_snapshot(tmp_path) is None
        assert not any(os.path.lexists(tmp_path / name) for name in LINKS)
