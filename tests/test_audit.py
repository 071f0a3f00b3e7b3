"""The audit: broken results of every kind are not published, odd ones carry a mark, and nothing leaves the machine."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from results import (
    SAMPLE,
    add_to,
    change,
    copy_of_result,
    files_of,
    parts_of_sample,
    seal_again,
    snapshot_of,
)
from worlds import world

import pipelines.commit
from pipelines.audit.measures import broken_rows
from pipelines.audit.results import AuditResult, Outcome, read_mark
from pipelines.audit.rules import RULES
from pipelines.audit.run import FOLDER, KEPT, RESULT, SENTENCES, _kept, _remove_leftovers, audit_result
from pipelines.audit.volume import volume_frame
from pipelines.batch import run
from pipelines.cli import main
from pipelines.options import BatchOptions
from pipelines.report.build import write_report
from sinks.check import check_snapshot
from sinks.readings import Reading
from transforms.definitions import KPIS
from transforms.errors import UserError
from transforms.settings import Settings
from transforms.tables import (
    CONVERSATIONS,
    DEAD_LETTERS,
    KPI_DEFINITIONS,
    KPI_STATISTICS,
    KPI_TABLE,
    RUNS,
    TABLES,
    TURNS,
)

HOSTILE = '<script>alert("state")</script>'


def outcomes_of(result: AuditResult) -> dict[str, Outcome]:
    """What does not hold, by the name of the check."""
    return {outcome.check: outcome for outcome in result.problems}


# What the suites are made of


def test_every_kpi_and_column_has_its_rule() -> None:
    """Suites follow from the definitions: who adds a KPI or a column adds its rule."""
    assert set(RULES) == {table.name for table in TABLES} | {"order"}
    ranges = {rule.column: rule for rule in RULES[KPI_TABLE.name] if rule.kind == "range"}
    for kpi in KPIS:
        if kpi.kind == "running":
            assert f"kpis: {kpi.name}" in {rule.column for rule in RULES["order"]}
        else:
            assert (kpi.name in ranges) == (kpi.kind != "change"), kpi.name
        if kpi.unit == "rate":
            assert (ranges[kpi.name].low, ranges[kpi.name].high) == (0, 1)
    for table in TABLES:
        known = {rule.column for rule in RULES[table.name] if rule.kind == "known"}
        assert known == {column.name for column in table.columns if not column.nullable}


@pytest.mark.parametrize("seed", range(6))
def test_no_rule_is_broken_by_what_is_right(seed: int, tmp_path: Path) -> None:
    """Random worlds full of ties, copies and silences keep every rule."""
    lines, settings = world(seed)
    (tmp_path / "events.ndjson").write_bytes(b"".join(line + b"\n" for line in lines))
    try:
        run(BatchOptions((str(tmp_path / "events.ndjson"),), tmp_path / "o", settings, max_dead_letter_rate=1.0))
    except UserError:
        pytest.skip("as_of of this world lies before an event")
    with Reading(snapshot_of(tmp_path / "o"), None, {}) as reading:
        for rules in RULES.values():
            for rule in rules:
                assert broken_rows(reading, rule) == (0, ()), rule


def test_every_check_of_the_files_and_rows_has_its_sentence(tmp_path: Path) -> None:
    """The audit asks what `care-kpis check` asks, and says what it means."""
    findings = check_snapshot(snapshot_of(copy_of_result(tmp_path)))
    assert {finding.check for finding in findings} == set(SENTENCES)


# Broken results


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    """The audit of a result that is broken in many ways, as if a run had made it so."""
    output = copy_of_result(tmp_path_factory.mktemp("broken"))
    change(
        output,
        "UPDATE kpi_values SET response_rate = 1.5 WHERE rowid = (SELECT min(rowid) FROM kpi_values)",
        "UPDATE kpi_values SET p90_reply_seconds = p50_reply_seconds / 2 WHERE rowid = "
        "(SELECT min(rowid) FROM kpi_values WHERE p50_reply_seconds > 9)",
        "UPDATE kpi_values SET backlog_change = backlog_change - 500 WHERE rowid = "
        "(SELECT min(rowid) FROM kpi_values WHERE backlog_change IS NOT NULL)",
        f"UPDATE conversations SET state = '{HOSTILE}' WHERE rowid = (SELECT min(rowid) FROM conversations)",
        "UPDATE kpi_values SET avg_csat = 'nan'::DOUBLE WHERE rowid = (SELECT max(rowid) FROM kpi_values)",
        "UPDATE turns SET turn_ended_at = turn_started_at - INTERVAL 1 HOUR WHERE rowid = "
        "(SELECT max(rowid) FROM turns WHERE turn_ended_at IS NOT NULL)",
        "INSERT INTO turns SELECT * FROM turns ORDER BY rowid LIMIT 1",
        "UPDATE runs SET rows_read_count = rows_read_count + 7 WHERE commit_id = 2",
        "UPDATE kpi_statistics SET message_count = message_count + 1 WHERE rowid = "
        "(SELECT min(rowid) FROM kpi_statistics WHERE basis = 'opened' AND grain = 'hour')",
        "UPDATE dead_letters SET reason = 'a whim' WHERE rowid = (SELECT min(rowid) FROM dead_letters)",
        copied=(KPI_TABLE, CONVERSATIONS, TURNS, RUNS, KPI_STATISTICS, DEAD_LETTERS),
    )
    # (DuckDB refuses a null here; a file does not.)
    (file,) = files_of(output, KPI_DEFINITIONS.name)
    rows = pq.read_table(file, partitioning=None)
    labels = pa.array([None, *rows["label"].to_pylist()[1:]], pa.string())
    pq.write_table(rows.drop_columns("label").add_column(1, "label", labels), file)
    seal_again(output)
    return audit_result(snapshot_of(output), 2, output / FOLDER), output


@pytest.mark.parametrize(
    ("check", "count", "named"),
    [
        ("kpis: response_rate (range)", 1, "response_rate 1.5"),
        ("conversations: state (set)", 1, f"state {HOSTILE}"),
        ("kpis: avg_csat (range)", 1, "avg_csat nan"),
        ("kpi_definitions: label (known)", 1, "name message_count, label null"),
        ("order: turns: turn_ended_at - turn_started_at", 1, "-3600.0"),
        ("order: kpis: p90_reply_seconds - p50_reply_seconds", 1, "account_id"),
        ("order: kpis: backlog_count", None, "backlog_count -"),
        ("dead_letters: reason (set)", 1, "reason a whim"),
        ("agreement: keys", None, "turns has 2 rows with conversation_key"),
        ("agreement: conservation", None, "commit 2 read "),
        ("agreement: bases", None, "message_count differs in 1 accounts, such as account "),
        ("agreement: grains", None, "message_count of all days is not that of all hours, such as opened basis, "),
        ("agreement: kpis", None, "windows does not follow, such as "),
        ("agreement: facts", None, "days by account and channel is not what they tell"),
    ],
)
def test_what_is_broken_is_found_and_its_rows_are_named(
    broken: tuple[AuditResult, Path], check: str, count: int | None, named: str
) -> None:
    """Each kind of damage fails its own check, critical all of them."""
    result, _ = broken
    found = outcomes_of(result)
    assert found[check].severity == "critical"
    assert count is None or found[check].count == count
    assert any(named in row for row in found[check].rows), found[check]


def test_a_failed_audit_is_kept_and_shows_no_value_as_html(broken: tuple[AuditResult, Path]) -> None:
    """Data Docs of their own ask no server for anything, run nothing, and name the rows."""
    result, output = broken
    assert result.verdict == "failed"
    assert result.docs == output / FOLDER / "000002-failed"
    assert json.loads((result.docs / RESULT).read_text())["verdict"] == "failed"
    pages = list(result.docs.rglob("*.html"))
    assert len(pages) == 2 * (len(TABLES) + 3) + 1
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "Content-Security-Policy" in text, page
        assert not any(f'{attribute}="http' in text for attribute in ("src", "action")), page
        assert "<link" not in "".join(line for line in text.splitlines() if "http" in line), page
    first = (result.docs / "index.html").read_text(encoding="utf-8")
    assert "not published" in first and "&lt;script&gt;alert(&quot;state&quot;)" in first
    assert any("&lt;script&gt;alert" in page.read_text() for page in (result.docs / "validations").rglob("*.html"))


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["ALTER TABLE turns DROP COLUMN wait_seconds"], "turns in care.duckdb has no column wait_seconds"),
        (["DELETE FROM turns WHERE turn_number = 2"], "turns has "),
    ],
)
def test_the_command_says_that_a_published_result_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statements: list[str], words: str
) -> None:
    """`care-kpis audit` prints what does not hold and ends with 3; a table that cannot be used ends it well."""
    output = copy_of_result(tmp_path)
    change(output, *statements)
    assert main(["audit", str(output)]) == 3
    out = capsys.readouterr().out
    assert out.startswith("failed")
    assert words in out.replace("\n", " ")


def test_a_warehouse_that_is_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is a failed check, not a crash."""
    output = copy_of_result(tmp_path)
    (snapshot_of(output) / "care.duckdb").write_bytes(b"nothing")
    seal_again(output)
    assert main(["audit", str(output)]) == 3
    assert "care.duckdb cannot be opened" in capsys.readouterr().out.replace("\n", " ")


# In a run


def broken_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs make four rows of kpis that cannot be."""
    build = pipelines.commit.build_warehouse

    def build_wrongly(root: Path, *, kpis: pa.Table, **more: Any) -> None:
        place = kpis.schema.get_field_index("message_count")
        counts = [-1] * 4 + kpis["message_count"].to_pylist()[4:]
        build(root, kpis=kpis.set_column(place, kpis.schema.field(place), pa.array(counts, pa.int64())), **more)

    monkeypatch.setattr(pipelines.commit, "build_warehouse", build_wrongly)


def test_what_fails_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, a message with check, count and row; readers have the earlier result, the next run is as ever."""
    first, _ = parts_of_sample()
    output = tmp_path / "out put"
    add_to(output, first, append=False)
    before = snapshot_of(output)
    arguments = ["batch", "--audit", "--input", str(first), "--output", str(output)]
    arguments += ["--config", str(SAMPLE / "care.toml")]
    with monkeypatch.context() as patch:
        broken_build(patch)
        assert main(arguments) == 3
    said = capsys.readouterr().err
    assert "kpis: message_count (range) (4): message_count is 0 or more. Not so: basis " in said
    assert "and 1 more" in said and f"{FOLDER}/000002-failed/index.html" in said
    assert "Nothing was published" in said and "Traceback" not in said
    assert snapshot_of(output) == before and main(["check", str(output)]) == 0
    assert main(arguments) == 0
    assert "audit: all" in capsys.readouterr().out.replace("\n", " ")
    assert snapshot_of(output).name == "000002"
    mark = read_mark(snapshot_of(output))
    assert mark is not None and mark.verdict == "passed" and mark.check_count > 300
    assert sorted(path.name for path in (output / FOLDER).iterdir()) == ["000002", "000002-failed"]


@pytest.fixture(scope="module")
def warned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of nine weeks whose last day has far fewer messages than usual, and none in one channel."""
    folder = tmp_path_factory.mktemp("warned")
    lines = []
    for day in range(64):
        at = datetime(2026, 1, 5, 8, tzinfo=UTC) + timedelta(days=day)
        for number in range(40 if day < 63 else 6):
            event = {
                "event_id": "1",
                "event_type": "message",
                "channel": "chat" if number % 2 and day < 63 else "email",
                "conversation_id": f"{day}-{number}",
                "occurred_at": (at + timedelta(minutes=number)).isoformat(),
            }
            lines.append(json.dumps(event))
    end = {**event, "conversation_id": "end", "event_type": "note", "occurred_at": "2026-03-10T00:00:00Z"}
    (folder / "events.ndjson").write_text("\n".join([*lines, json.dumps(end)]) + "\n", encoding="utf-8")
    arguments = ["batch", "--append", "--audit", "--input", str(folder / "events.ndjson")]
    assert main([*arguments, "--output", str(folder / "output")]) == 0
    return folder / "output"


def test_a_warning_is_published_with_its_mark(warned: Path) -> None:
    """The manifest keeps what does not hold, and which days."""
    mark = read_mark(snapshot_of(warned))
    assert mark is not None and mark.verdict == "warning"
    (problem,) = mark.problems
    assert (problem["check"], problem["severity"], problem["count"]) == ("volume: not below usual", "warning", 2)
    assert problem["rows"] == [
        "messages on 2026-03-09: 6, usual is 21.0263 to 58.9737",
        "messages on 2026-03-09 in channel chat: 0, usual is at least 1",
    ]


@pytest.mark.parametrize(
    ("locale", "words"),
    [("en_GB", "published with a warning"), ("de_DE", "mit Warnung veröffentlicht"), ("zh_CN", "已发布但有警告")],
)
def test_the_report_shows_the_mark(warned: Path, tmp_path: Path, locale: str, words: str) -> None:
    """Page, text, CSV file and workbook."""
    written = write_report(warned, tmp_path, locale=locale)
    paths = {path.suffix: path for path in written.paths}
    assert written.audit == "warning" and words in written.text
    page = paths[".html"].read_text(encoding="utf-8")
    assert page.count(words) == 2 and "messages on 2026-03-09 in channel chat" in page
    with paths[".csv"].open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "audit"]
    assert rows[0]["key"] == "volume: not below usual" and len(rows) == 4
    with zipfile.ZipFile(io.BytesIO(paths[".xlsx"].read_bytes())) as book:
        assert "volume: not below usual" in book.read("xl/sharedStrings.xml").decode()


def test_a_report_on_what_was_not_audited_says_so(tmp_path: Path) -> None:
    """In its data health; the short text stays short."""
    written = write_report(copy_of_result(tmp_path), tmp_path / "reports")
    assert written.audit == "none" and "udit" not in written.text
    assert "No audit of this result is on record." in written.paths[-1].read_text(encoding="utf-8")


def test_the_mark_outlives_compact_rebuild_upload_and_load(warned: Path, tmp_path: Path) -> None:
    """They make no other result; an appending run without an audit does, and has no mark."""
    mark = read_mark(snapshot_of(warned))
    for arguments in (["compact"], ["rebuild"]):
        assert main([*arguments, str(warned)]) == 0
        assert read_mark(snapshot_of(warned)) == mark
    assert main(["upload", str(warned), str(tmp_path / "there")]) == 0
    assert main(["load", str(tmp_path / "there"), "--output", str(tmp_path / "copy")]) == 0
    assert read_mark(snapshot_of(tmp_path / "copy")) == mark
    event = {"event_id": "9", "event_type": "message", "occurred_at": "2026-03-10T01:00:00Z", "channel": "email"}
    (tmp_path / "more.ndjson").write_text(json.dumps({**event, "conversation_id": "new"}) + "\n", encoding="utf-8")
    options = BatchOptions((str(tmp_path / "more.ndjson"),), tmp_path / "copy", Settings(), append=True)
    with pytest.raises(UserError, match="begun with --append"):
        run(options)
    assert main(["batch", "--append", "--input", str(tmp_path / "more.ndjson"), "--output", str(warned)]) == 0
    assert read_mark(snapshot_of(warned)) is None


def test_volume_knows_runs_before(tmp_path: Path) -> None:
    """Dead letters against earlier runs, conversations against the result before."""
    output = copy_of_result(tmp_path)
    change(
        output,
        "INSERT INTO runs SELECT * REPLACE (commit_id + 2 AS commit_id) FROM runs",
        "UPDATE runs SET dead_letter_count = 1, rows_read_count = 1000, conversation_count = 500 WHERE commit_id < 4",
        "UPDATE runs SET dead_letter_count = 25, rows_read_count = 1000 WHERE commit_id = 4",
    )
    found = volume_frame(snapshot_of(output)).set_index("what")
    assert found.loc["dead letters in 100 rows", ["value", "high"]].tolist() == [2.5, 1.0]
    value, low = found.loc["conversations", ["value", "low"]]
    assert low == 450 and value < low


def test_what_killed_audits_left_is_removed(tmp_path: Path) -> None:
    """After a day; another audit may be going on."""
    for name, age in ((".making-old", 90_000), (".making-new", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    _remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".making-new"]


def test_only_the_last_audits_are_kept(tmp_path: Path) -> None:
    """Data Docs do not fill the disk."""
    for commit in range(1, KEPT + 4):
        made = tmp_path / f".making-{commit}" / "docs"
        made.mkdir(parents=True)
        _kept(AuditResult(commit, datetime.now(UTC), [Outcome("a: b", "critical", "", True)], made), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == [f"{commit:06d}" for commit in range(4, KEPT + 4)]


# What it must not do


def test_nothing_leaves_the_machine(tmp_path: Path) -> None:
    """No connection is made and no name is looked up while an audit runs."""
    output = copy_of_result(tmp_path)
    code = (
        "import socket, sys\n"
        "asked = []\n"
        "def refuse(*args, **more):\n"
        "    asked.append(args)\n"
        "    raise OSError('refused')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from pipelines.cli import main\n"
        f"code = main(['audit', {str(output)!r}])\n"
        "print(code, asked, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert done.stdout.startswith("passed")


def test_a_run_without_an_audit_does_not_import_great_expectations(tmp_path: Path) -> None:
    """It takes three seconds and a quarter of a gigabyte."""
    first, _ = parts_of_sample()
    arguments = ["batch", "--input", str(first), "--output", str(tmp_path / "output")]
    code = (
        f"import sys; from pipelines.cli import main; main({arguments!r}); print('great_expectations' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False"


def test_without_the_package_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the run begins."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["batch", "--audit", "--input", "x", "--output", str(tmp_path)]) == 2
    assert "pip install 'care-kpis[audit]'" in capsys.readouterr().err
