"""`care-kpis check`: a whole result passes, and each way to be wrong is found by the check that looks for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from results import change, copy_of_result, files_of, snapshot_of

from pipelines.cli import main
from sinks import agreement
from sinks.agreement import compare_copies
from sinks.arithmetic import EXACT
from sinks.check import Finding, advice, check_result
from sinks.manifest import MANIFEST, read_manifest
from sinks.readings import Reading
from sinks.recount import RECOUNTED
from transforms.definitions import STATISTIC_NAMES
from transforms.errors import UserError
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_STATISTICS,
    KPI_TABLE,
    LATE_EVENTS,
    RUNS,
    TABLES,
    TURNS,
    Table,
)

CHECKS = [
    "links",
    "manifest",
    "files",
    "unknown files",
    "columns",
    "rows",
    "same rows",
    "keys",
    "turns",
    "conservation",
    "history",
    "statistics",
    "bases",
    "grains",
    "kpis",
    "facts",
]


def states(findings: list[Finding]) -> dict[str, list[str]]:
    """The names of the checks by what came of them."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(finding.state, []).append(finding.check)
    return found


def test_a_whole_result_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is ok, the exit code is 0, and nothing in the folder was touched."""
    output = copy_of_result(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    findings = check_result(output)
    assert [finding.check for finding in findings] == CHECKS
    assert states(findings) == {"ok": CHECKS}
    assert advice(findings, output) is None
    assert main(["check", str(output)]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Check", "Result", "Found"]
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:4] == ["history", "ok", "2", "runs,"] for line in lines)


def add_one(table: str, column: str, where: str) -> str:
    """SQL that adds one to a column in some rows."""
    return f"UPDATE {table} SET {column} = {column} + 1 WHERE {where}"


def in_windows_of_one(basis: str, grains: str) -> str:
    """SQL that picks windows of some grains around the first hour in which a conversation opened."""
    start, account, channel = (
        f"(SELECT min_by({name}, (window_start, account_id, channel)) FROM kpi_values "
        "WHERE basis = 'opened' AND grain = 'hour' AND conversation_count > 0 AND account_id IS NOT NULL)"
        for name in ("window_start", "account_id", "channel")
    )
    return (
        f"basis IN ({basis}) AND grain IN ({grains}) AND window_start <= {start} AND window_end > {start} "
        f"AND account_id = {account} AND channel = {channel}"
    )


ALL_GRAINS, BOTH = "'hour', 'day', 'week', 'month'", "'opened', 'activity'"


def in_both_tables(column: str, where: str) -> tuple[str, ...]:
    """SQL that adds one to a count in kpi_statistics and in kpis."""
    return tuple(add_one(table, column, where) for table in ("kpi_statistics", "kpi_values"))


def break_links(output: Path) -> None:
    """Somebody deleted a link."""
    (output / "turns").unlink()


def break_manifest(output: Path) -> None:
    """One digit of the manifest is another one."""
    path = snapshot_of(output) / MANIFEST
    path.write_text(path.read_text().replace('"commit_id": 2', '"commit_id": 3'))


def break_files(output: Path) -> None:
    """One bit of a file that no other check reads is another one."""
    flip(snapshot_of(output) / "_state" / "wakes.npy")


def break_unknown_files(output: Path) -> None:
    """A file more, which a reader of the folder would read."""
    shutil.copy(files_of(output, "turns")[0], snapshot_of(output) / "turns" / "copy.parquet")


def break_columns(output: Path) -> None:
    """A column more in the warehouse."""
    change(output, "ALTER TABLE late_events ADD COLUMN mood VARCHAR")


def break_rows(output: Path) -> None:
    """A manifest that counts a row too many."""
    snapshot = snapshot_of(output)
    content = json.loads((snapshot / MANIFEST).read_text())
    del content["sha256"]
    content["tables"]["turns"]["files"][0]["rows"] += 1
    from sinks.manifest import _digest

    content["sha256"] = _digest(content)
    (snapshot / MANIFEST).write_text(json.dumps(content))


def break_same_rows(output: Path) -> None:
    """One value differs between the copies."""
    change(output, "UPDATE conversations SET topic = 'other' WHERE rowid = (SELECT max(rowid) FROM conversations)")


BROKEN: dict[str, Callable[[Path], None]] = {
    "links": break_links,
    "manifest": break_manifest,
    "files": break_files,
    "unknown files": break_unknown_files,
    "columns": break_columns,
    "rows": break_rows,
    "same rows": break_same_rows,
    "keys": lambda output: change(
        output,
        "UPDATE dead_letters SET source_row = (SELECT min(source_row) FROM dead_letters AS d "
        "WHERE d.source = dead_letters.source) WHERE source = (SELECT min(source) FROM dead_letters)",
        copied=(DEAD_LETTERS,),
    ),
    "turns": lambda output: change(output, "UPDATE turns SET turn_number = 99 WHERE turn_number = 3", copied=(TURNS,)),
    "conservation": lambda output: change(output, add_one("runs", "stray_event_count", "true"), copied=(RUNS,)),
    "history": lambda output: change(
        output, add_one("kpi_values", "revision", "message_count = 3"), copied=(KPI_TABLE,)
    ),
    "statistics": lambda output: change(
        output, add_one("kpi_statistics", "sum_reply_seconds", "answered_turn_count = 2"), copied=(KPI_STATISTICS,)
    ),
    # Messages on the activity basis are counted nowhere else, so nothing but the other basis tells.
    "bases": lambda output: change(
        output,
        *in_both_tables("message_count", in_windows_of_one("'activity'", ALL_GRAINS)),
        copied=(KPI_STATISTICS, KPI_TABLE),
    ),
    "grains": lambda output: change(
        output,
        *in_both_tables("message_count", in_windows_of_one(BOTH, "'week'")),
        copied=(KPI_STATISTICS, KPI_TABLE),
    ),
    "kpis": lambda output: change(
        output,
        "UPDATE kpi_values SET p90_reply_seconds = p90_reply_seconds * 1.02 WHERE rowid = "
        "(SELECT max(rowid) FROM kpi_values WHERE p90_reply_seconds > 0)",
        copied=(KPI_TABLE,),
    ),
    "facts": lambda output: change(
        output,
        *in_both_tables("conversation_count", in_windows_of_one(BOTH, ALL_GRAINS)),
        copied=(KPI_STATISTICS, KPI_TABLE),
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_finds_what_it_looks_for(name: str, tmp_path: Path) -> None:
    """What is broken on purpose fails exactly that check."""
    output = copy_of_result(tmp_path)
    BROKEN[name](output)
    findings = check_result(output)
    assert states(findings).get("failed") == [name], findings
    assert main(["check", str(output)]) == 1


MORE_WRONG = {
    "a turn without conversation": ("turns", "UPDATE turns SET started_at = started_at - INTERVAL 1 SECOND", (TURNS,)),
    "another number of turns": ("turns", add_one("conversations", "turn_count", "turn_count = 2"), (CONVERSATIONS,)),
    "turns of another account": ("turns", "UPDATE turns SET account_id = NULL", (TURNS,)),
    "a lost row": ("conservation", add_one("runs", "rows_read_count", "commit_id = 2"), (RUNS,)),
    "another reason": (
        "conservation",
        "UPDATE dead_letters SET reason = 'missing' WHERE reason = 'bad_time'",
        (DEAD_LETTERS,),
    ),
    "a dead letter less": (
        "conservation",
        "DELETE FROM dead_letters WHERE rowid = (SELECT max(rowid) FROM dead_letters)",
        (DEAD_LETTERS,),
    ),
    "an unknown commit": ("history", "UPDATE kpi_values SET changed_at = changed_at + INTERVAL 1 SECOND", (KPI_TABLE,)),
    "a change that is gone": ("history", "DELETE FROM kpi_changes WHERE rowid < 5", (TABLES[3],)),
    "a histogram with a value less": (
        "statistics",
        "UPDATE kpi_statistics SET reply_histogram = reply_histogram[2:] WHERE len(reply_histogram) > 3",
        (KPI_STATISTICS,),
    ),
    "a histogram of other values": (
        "statistics",
        "UPDATE kpi_statistics SET handle_histogram = "
        "list_transform(handle_histogram, lambda e: {'bucket': e.bucket + 64, 'count': e.count})",
        (KPI_STATISTICS,),
    ),
    "a wrong mean": ("kpis", "UPDATE kpi_values SET avg_csat = avg_csat + 1e-15 * avg_csat", (KPI_TABLE,)),
    "a null percentile": ("kpis", "UPDATE kpi_values SET p50_reply_seconds = NULL", (KPI_TABLE,)),
    "a window less": ("kpis", "DELETE FROM kpi_values WHERE grain = 'month'", (KPI_TABLE,)),
    "a complete window": ("kpis", "UPDATE kpi_values SET is_complete = true", (KPI_TABLE,)),
    "another score": ("facts", "UPDATE conversations SET csat_score = 1 WHERE csat_score = 5", (CONVERSATIONS,)),
    "another wait": ("facts", "UPDATE turns SET wait_seconds = wait_seconds + 1e-6", (TURNS,)),
    "another day": (
        "facts",
        "UPDATE conversations SET opened_at = opened_at + INTERVAL 1 DAY WHERE message_count = 2",
        (CONVERSATIONS,),
    ),
}


@pytest.mark.parametrize("case", MORE_WRONG)
def test_more_that_can_be_wrong(case: str, tmp_path: Path) -> None:
    """The check that looks for it is among those that fail."""
    name, statement, copied = MORE_WRONG[case]
    output = copy_of_result(tmp_path)
    change(output, statement, copied=copied)
    assert name in states(check_result(output))["failed"]


class OneValueOff(Reading):
    """A result whose warehouse says something else in one column of one row."""

    off: tuple[str, str] | None = None

    def of_warehouse(self, spec: Table) -> str:
        """The table, or a view of it with the other value."""
        source = super().of_warehouse(spec)
        if self.off is None or self.off[0] != spec.name:
            return source
        column = self.off[1]
        kind = dict(self.rows(f"SELECT column_name, column_type FROM (DESCRIBE {source})"))[column]
        other = {
            "VARCHAR": f"coalesce({column}, '') || ' '",
            "BOOLEAN": f"{column} IS NOT true",
            "DOUBLE": f"CASE WHEN coalesce({column}, 0) = 0 THEN 5e-324 ELSE {column} * (1 + 2e-16) END",
            "TIMESTAMP WITH TIME ZONE": f"coalesce({column}, make_timestamptz(0)) + INTERVAL 1 MICROSECOND",
        }.get(kind, f"coalesce({column}, 0) + 1")
        if kind.endswith("[]"):
            other = f"list_append({column}, {{'bucket': 1, 'count': 1}})"
        return (
            f"(SELECT * EXCLUDE (place) REPLACE (CASE WHEN place = 1 THEN CAST({other} AS {kind}) ELSE {column} END "
            f"AS {column}) FROM (SELECT *, row_number() OVER () AS place FROM {source}))"
        )


def test_one_value_anywhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever column of whatever table: the last bit of a number, the case of a flag, null or not."""
    snapshot = snapshot_of(copy_of_result(tmp_path))
    with OneValueOff(snapshot, None, {}) as reading:
        assert not compare_copies(reading).problems
        for spec in TABLES:
            if spec == LATE_EVENTS:
                continue
            monkeypatch.setattr(agreement, "TABLES", (spec,))
            for column in spec.schema.names:
                reading.off = spec.name, column
                (problem,) = compare_copies(reading).problems
                assert problem.startswith(
                    f"{spec.name} differs in {column}: 1 rows are in Parquet only, 1 in care.duckdb"
                )


def test_rows_that_change_places_are_found(tmp_path: Path) -> None:
    """Values that two rows swap leave every column as it was, and are found."""
    output = copy_of_result(tmp_path)
    change(
        output,
        "UPDATE kpi_definitions SET label = CASE name WHEN 'reply_count' THEN 'Messages' ELSE 'Replies' END "
        "WHERE name IN ('message_count', 'reply_count')",
    )
    (finding,) = (finding for finding in check_result(output) if finding.state == "failed")
    assert finding.check == "same rows"
    assert finding.found.startswith(
        "kpi_definitions differs: 2 rows are in Parquet only, 2 in care.duckdb only, such as"
    )


def flip(path: Path, place: float = 0.5) -> None:
    """Changes one bit of a file."""
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * place))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def truncate(path: Path) -> None:
    """Takes the second half of a file away."""
    os.truncate(path, path.stat().st_size // 2)


def replace_by_text(path: Path) -> None:
    """Puts something else in the place of a file."""
    path.write_text("this is no such file")


def empty(path: Path) -> None:
    """Takes everything away but the name."""
    os.truncate(path, 0)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "text": replace_by_text,
    "empty": empty,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    ("what", "is_known"),
    [
        ("care.duckdb", True),
        ("kpi_statistics", True),
        ("runs", True),
        (MANIFEST, True),
        ("care.duckdb", False),
        ("turns", False),
    ],
)
def test_damaged_files_are_findings_and_never_tracebacks(how: str, what: str, is_known: bool, tmp_path: Path) -> None:
    """With a manifest that tells, what the damaged file is needed for is not run; without, what can be read is."""
    output = copy_of_result(tmp_path)
    path = snapshot_of(output) / what if "." in what else files_of(output, what)[0]
    DAMAGE[how](path)
    if not is_known:
        (snapshot_of(output) / MANIFEST).unlink(missing_ok=True)
    findings = check_result(output)
    assert [finding.check for finding in findings] == CHECKS
    found = states(findings)
    if not is_known or what == MANIFEST:
        assert "manifest" in found["failed"]
        assert {"files", "unknown files"} <= set(found["not run"])
    else:
        assert found["failed"] == ["files"]
        assert {"rows", "same rows"} <= set(found["not run"])
        (finding,) = (finding for finding in findings if finding.check == "files")
        assert finding.found.startswith(f"{path.relative_to(snapshot_of(output))}: it")
        # What is in both copies is checked in the one that is whole.
        assert {"keys", "turns", "facts"} <= set(found["ok"])
    said = advice(findings, output)
    assert said is not None and said.startswith(f"Next: care-kpis rebuild {output} ")


def test_both_copies_damaged(tmp_path: Path) -> None:
    """What needs a table that neither copy has whole says so."""
    output = copy_of_result(tmp_path)
    for path in (files_of(output, "turns")[0], snapshot_of(output) / "care.duckdb"):
        flip(path)
    findings = {finding.check: finding for finding in check_result(output)}
    assert findings["turns"].state == findings["facts"].state == "not run"
    assert findings["turns"].found == "Parquet files of turns are damaged and care.duckdb is damaged"
    assert findings["keys"].state == "not run"
    assert findings["kpis"].state == findings["bases"].state == "ok"


def test_a_warehouse_that_another_process_writes_to(tmp_path: Path) -> None:
    """A lock on care.duckdb is a sentence, too; Parquet is checked meanwhile."""
    output = copy_of_result(tmp_path)
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(snapshot_of(output) / "care.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        findings = {finding.check: finding for finding in check_result(output)}
        writer.kill()
    assert findings["columns"].state == "failed"
    assert findings["columns"].found.startswith("care.duckdb cannot be opened (IO Error: Could not set lock on file")
    assert findings["same rows"].state == "not run"
    assert findings["files"].state == findings["kpis"].state == findings["facts"].state == "ok"


def test_changes_that_somebody_left_beside_the_warehouse(tmp_path: Path) -> None:
    """A write-ahead log would change what readers see."""
    output = copy_of_result(tmp_path)
    (output / "care.duckdb.wal").write_bytes(b"x")
    (finding,) = (finding for finding in check_result(output) if finding.state != "ok")
    assert (finding.check, finding.state) == ("links", "failed")
    assert "care.duckdb.wal holds changes" in finding.found


def test_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are exit code 2; a result whose snapshot is gone has failed."""
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert main(["check", str(tmp_path)]) == 2
    assert main(["check"]) == 2
    err = capsys.readouterr().err
    assert f"Expected the result of a run in {tmp_path}, but there is none" in err
    output = copy_of_result(tmp_path)
    shutil.rmtree(output / ".snapshots")
    assert main(["check", str(output)]) == 1
    assert "which is not there" in " ".join(capsys.readouterr().out.split())


def test_a_result_that_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings about a result that is no more are no use."""
    import sinks.check

    output = copy_of_result(tmp_path)

    def publish_another(snapshot: Path) -> list[Finding]:
        (output / ".current").unlink()
        (output / ".current").symlink_to(".snapshots/000001")
        return []

    monkeypatch.setattr(sinks.check, "check_snapshot", publish_another)
    with pytest.raises(UserError, match="a run replaced the result: check it again"):
        check_result(output)


def test_what_is_counted_again_is_known() -> None:
    """Statistics that are counted again exist; those that are not are histograms, moves and message times."""
    assert set(RECOUNTED) <= set(STATISTIC_NAMES)
    assert {name for name in EXACT if name not in RECOUNTED} == {
        f"{what}_{way}_count" for what in ("backlog", "waiting") for way in ("in", "out")
    }


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    """Tables, warehouse and state; each with bytes and checksum, and tables with rows."""
    snapshot = snapshot_of(copy_of_result(tmp_path))
    manifest = read_manifest(snapshot)
    files = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}
    assert manifest.files.keys() == files - {MANIFEST}
    assert any(path.startswith("_state/") for path in manifest.files)
    content = json.loads((snapshot / MANIFEST).read_text())
    assert list(content["tables"]) == [spec.name for spec in TABLES]
    for table in content["tables"].values():
        assert table["rows"] == sum(file["rows"] for file in table["files"])
    assert len(content["sha256"]) == 64


def test_the_page_has_every_check() -> None:
    """docs/operating.md explains them in the order in which they are printed."""
    page = (Path(__file__).parents[1] / "docs" / "operating.md").read_text(encoding="utf-8")
    table = page[page.index("| check | what has to hold |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == CHECKS
