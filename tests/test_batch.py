"""The batch pipeline end to end: real files in, a published result out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from drivers import as_rows
from golden import cases, compare, expected, settings_of
from worlds import clean_world

from fixtures.generate import write_events
from pipelines.batch import run
from pipelines.cycle import shard_count
from pipelines.options import BatchOptions
from sinks.publish import current_snapshot
from transforms.errors import UserError
from transforms.settings import Settings

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample" / "events.ndjson"
TABLES = ("conversations", "turns", "kpis", "kpi_statistics", "dead_letters", "late_events", "kpi_definitions")


def options(inputs: Path | list[Path], output: Path, settings: Settings | None = None, **more: object) -> BatchOptions:
    """Options of a run."""
    files = inputs if isinstance(inputs, list) else [inputs]
    return BatchOptions(tuple(map(str, files)), output, settings or Settings(), **more)  # type: ignore[arg-type]


def read_parquet(output: Path, table: str) -> list[dict[str, object]]:
    """Rows of a table as its Parquet files have them."""
    folder = (current_snapshot(output) or output) / table
    return [row for file in sorted(folder.rglob("*.parquet")) for row in as_rows(pq.ParquetFile(file).read())]


def read_duckdb(output: Path, table: str) -> list[dict[str, object]]:
    """Rows of a table as DuckDB has them."""
    with duckdb.connect(str(output / "care.duckdb"), read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        return as_rows(warehouse.sql(f"FROM {table}").to_arrow_table())


def digests(output: Path) -> dict[str, str]:
    """A digest of every Parquet file of the result, those of `runs` apart."""
    root = current_snapshot(output)
    assert root is not None
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.parquet"))
        if path.parent.name != "runs"
    }


def check_golden(case: Path, output: Path) -> None:
    """Runs a case and compares Parquet, DuckDB and the counts."""
    summary = run(options(case / "events.ndjson", output, settings_of(case), max_dead_letter_rate=1.0))
    for read in (read_parquet, read_duckdb):
        tables = {name: read(output, name) for name in ("conversations", "turns", "kpis")}
        assert compare(tables, case) == []
    want = expected(case)["counts"]
    assert summary.rows_read_count == want["rows_read"]
    assert summary.events_kept_count == want["events_kept"]
    assert summary.exact_duplicate_count == want["exact_duplicates"]
    assert summary.dead_letters_by_reason == want["dead_letters_by_reason"]
    assert summary.stray_event_count == want["stray_events"]


@pytest.mark.skipif(not cases(), reason="the golden cases are not beside the project")
@pytest.mark.parametrize("case", cases()[::20], ids=lambda case: case.name)
def test_golden_case(case: Path, tmp_path: Path) -> None:
    """Some golden cases, from file to tables."""
    check_golden(case, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not cases(), reason="the golden cases are not beside the project")
def test_every_golden_case(tmp_path: Path) -> None:
    """All of them, one after another into one output: each replaces the one before."""
    for case in cases():
        check_golden(case, tmp_path)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the sample."""
    output = tmp_path_factory.mktemp("sample")
    run(options(SAMPLE, output))
    return output


def test_parquet_and_duckdb_say_the_same(sample: Path) -> None:
    """Row for row, whichever a reader opens; the running sums are DuckDB's."""
    for table in TABLES:
        ours, theirs = read_parquet(sample, table), read_duckdb(sample, table)
        shown = [{name: row[name] for name in ours[0]} for row in theirs] if ours else theirs
        assert sorted(map(repr, ours)) == sorted(map(repr, shown)), table


def test_a_second_run_changes_nothing(sample: Path, tmp_path: Path) -> None:
    """The same input twice: equal bytes, nothing counted twice, one more row in runs."""
    run(options(SAMPLE, tmp_path))
    first = digests(tmp_path)
    time.sleep(0.01)
    run(options(SAMPLE, tmp_path))
    assert digests(tmp_path) == first
    assert [row["commit_id"] for row in read_duckdb(tmp_path, "runs")] == [1, 2]
    kpis = {name for name in first if name.startswith(("kpis/", "runs/"))}
    assert {n: d for n, d in first.items() if n not in kpis} == {
        n: d for n, d in digests(sample).items() if n not in kpis
    }


def test_formats_and_files_change_nothing(tmp_path: Path) -> None:
    """The same events as NDJSON, CSV, Parquet and Arrow, plain and compressed, in one file or several."""
    results = []
    for place, (kind, compression, files) in enumerate(
        [("ndjson", None, 1), ("ndjson", "gzip", 3), ("csv", "zstd", 2), ("parquet", None, 4), ("arrow", None, 1)]
    ):
        folder, output = tmp_path / f"in{place}", tmp_path / f"out{place}"
        write_events(folder, events=6_000, seed=3, format=kind, compression=compression, files=files)
        run(options(folder, output))
        results.append(
            {t: sorted(map(repr, read_parquet(output, t))) for t in ("conversations", "turns", "kpi_statistics")}
        )
    assert all(result == results[0] for result in results[1:])


def test_many_shards_change_nothing(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is only a portion of the work."""
    monkeypatch.setattr("pipelines.cycle.shard_count", lambda rows: 7)
    run(options(SAMPLE, tmp_path))
    for table in ("conversations", "turns", "kpi_statistics", "dead_letters"):
        assert sorted(map(repr, read_parquet(tmp_path, table))) == sorted(map(repr, read_parquet(sample, table)))


@pytest.mark.parametrize(("rows", "shards"), [(0, 1), (199_999, 1), (200_000, 2), (2_800_000, 2), (2_800_001, 4)])
def test_number_of_shards(rows: int, shards: int) -> None:
    """One for little; else even, so that two threads end together."""
    assert shard_count(rows) == shards


def test_repeat_contacts_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A customer's conversations lie in several shards; what a repeat contact undoes is undone in all tables."""
    import reference

    monkeypatch.setattr("pipelines.cycle.shard_count", lambda rows: 5)
    found = 0
    for seed in range(8):
        lines, settings = clean_world(seed)
        settings = replace(settings, repeat_contact=settings.repeat_contact or 3_600_000_000)
        path = tmp_path / f"{seed}.ndjson"
        path.write_bytes(b"\n".join(lines))
        run(options(path, tmp_path / f"out{seed}", settings, max_dead_letter_rate=1.0))
        want = reference.run(lines, settings).tables
        ours = {t: read_duckdb(tmp_path / f"out{seed}", t) for t in want}
        from golden import compare_tables

        assert compare_tables(ours, want) == [], seed
        found += sum(row["is_first_contact_resolution"] is False for row in ours["conversations"])
    assert found


def test_no_rows_is_a_result_too(tmp_path: Path) -> None:
    """An empty file gives every table, without rows."""
    (tmp_path / "empty.ndjson").touch()
    summary = run(options(tmp_path / "empty.ndjson", tmp_path / "out"))
    assert summary.rows_read_count == 0 and summary.as_of is None
    for table in ("conversations", "turns", "kpis", "dead_letters"):
        assert read_duckdb(tmp_path / "out", table) == []
        assert (tmp_path / "out" / table).exists()


def test_too_many_dead_letters_publish_nothing(tmp_path: Path) -> None:
    """The run fails with the commonest reasons, and the old result stays."""
    good, bad, output = tmp_path / "good.ndjson", tmp_path / "bad.ndjson", tmp_path / "out"
    good.write_bytes(SAMPLE.read_bytes())
    bad.write_text('{"event_id": "1"}\n{broken\n{broken\n', encoding="utf-8")
    run(options(good, output))
    before = digests(output)
    with pytest.raises(
        UserError, match=r"got 3 of 3 \(100\.0%\): unreadable 2, missing 1; one is row 1 of .*bad\.ndjson"
    ):
        run(options(bad, output))
    assert digests(output) == before
    assert run(options(bad, output, max_dead_letter_rate=1.0)).dead_letter_count == 3


def test_dead_letters_tell_their_place(sample: Path) -> None:
    """Source, row, column, reason and the row as it came, but for its text."""
    lines = SAMPLE.read_bytes().splitlines()
    letters = read_duckdb(sample, "dead_letters")
    assert letters
    for letter in letters:
        assert letter["source"] == str(SAMPLE)
        raw = str(letter["raw"])
        line = lines[int(str(letter["source_row"])) - 1]
        if letter["reason"] != "unreadable":
            assert json.loads(raw).get("event_id") == json.loads(line).get("event_id")
            assert "text" not in json.loads(raw)


def test_as_of_before_an_event_is_refused(tmp_path: Path) -> None:
    """as_of may lie after the latest event, never before it."""
    with pytest.raises(UserError, match=r"as_of: expected a moment not before the latest event"):
        run(options(SAMPLE, tmp_path, Settings(as_of=1_000_000)))
    assert current_snapshot(tmp_path) is None


def test_as_of_is_the_latest_event_kept(tmp_path: Path) -> None:
    """Where the very latest row is a copy that lost to an earlier one, as_of is the latest of the others."""
    event = {"event_type": "message", "channel": "x", "conversation_id": "c"}
    moments = {"a": "2026-03-02T00:00:00Z", "b": "2026-03-02T00:01:00Z"}
    rows = [{"event_id": name, "occurred_at": at, **event} for name, at in moments.items()]
    rows.append({"event_id": "a", "occurred_at": "2026-03-05T00:00:00Z", **event})
    path = tmp_path / "events.ndjson"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    summary = run(options(path, tmp_path / "out", max_dead_letter_rate=1.0))
    assert summary.as_of is not None and summary.as_of.isoformat() == "2026-03-02T00:01:00+00:00"
    assert summary.dead_letters_by_reason == {"conflicting_duplicate": 1}
    assert summary.rows_read_count == 3 and summary.events_kept_count == 2
    day = [row for row in read_duckdb(tmp_path / "out", "kpis") if row["grain"] == "day"]
    assert [row["is_complete"] for row in day] == [False, False]
    assert read_duckdb(tmp_path / "out", "turns")[0]["message_count"] == 2


def test_a_damaged_file_fails_the_run(tmp_path: Path) -> None:
    """What a worker raises comes out as the one sentence it is."""
    path = tmp_path / "events.ndjson.gz"
    path.write_bytes(gzip.compress(SAMPLE.read_bytes())[:-3000])
    with pytest.raises(UserError, match=r"events\.ndjson\.gz"):
        run(options(path, tmp_path / "out"))
    assert current_snapshot(tmp_path / "out") is None


def care_kpis(*arguments: object) -> list[str]:
    """The command line as a process."""
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_the_command_as_a_user_types_it(tmp_path: Path) -> None:
    """Both ways in; a user's mistake is one sentence on stderr and exit code 2."""
    done = subprocess.run(
        care_kpis("batch", "--input", SAMPLE, "--output", tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1,948 events" in done.stdout and "Traceback" not in done.stderr
    module = [sys.executable, "-m", "pipelines.batch", "--input", "nowhere.ndjson", "--output", str(tmp_path)]
    failed = subprocess.run(module, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("Error: ") and "nowhere.ndjson" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_two_runs_at_once(tmp_path: Path) -> None:
    """The second one says who is writing and leaves everything alone."""
    write_events(tmp_path / "in", events=150_000, seed=1, format="ndjson")
    first = subprocess.Popen(
        care_kpis("batch", "--input", tmp_path / "in", "--output", tmp_path / "out"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        lock = tmp_path / "out" / ".lock"
        for _ in range(400):
            if lock.exists() and lock.read_text():
                break
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"process {first.pid} is writing"):
            run(options(SAMPLE, tmp_path / "out"))
    finally:
        assert first.wait() == 0
    assert read_duckdb(tmp_path / "out", "runs")[0]["rows_read_count"] == 150_000


@pytest.fixture
def big(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An input that takes a few seconds, and an output with an older result in it."""
    write_events(tmp_path / "in", events=300_000, seed=2, format="parquet", files=3)
    run(options(SAMPLE, tmp_path / "out"))
    yield tmp_path / "in", tmp_path / "out"


@pytest.mark.slow
def test_killed_at_any_moment(big: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed with -9 at random moments: a reader has the old result or the new one, and the next run puts all right."""
    inputs, output = big
    run(options(inputs, tmp_path / "undisturbed"))
    undisturbed, old = digests(tmp_path / "undisturbed"), digests(output)
    history = ("kpis/", "kpi_changes/")
    facts = {name for name in undisturbed if not name.startswith(history)}
    rng = random.Random(1)
    command = care_kpis("batch", "--input", inputs, "--output", output)
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    length = time.monotonic() - began
    run(options(SAMPLE, output))
    killed = 0
    for _ in range(30):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(length * rng.uniform(0.2, 1.0))
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        found = digests(output)
        assert {n for n in found if not n.startswith(history)} in (
            set(n for n in old if not n.startswith(history)),
            facts,
        )
        for table in ("conversations", "turns"):
            assert len(read_duckdb(output, table)) == len(read_parquet(output, table))
    assert killed >= 10
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert {n: d for n, d in digests(output).items() if n in facts} == {n: undisturbed[n] for n in facts}
    leftovers = [path.name for path in (output / ".snapshots").iterdir() if path.name.endswith(".tmp")]
    assert leftovers == []
