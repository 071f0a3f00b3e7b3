"""`care-kpis sql` and `care-kpis shell`: answers in each form, errors in a sentence, statements over several lines."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from results import copy_of_result, snapshot_of
from rich.console import Console

from pipelines.cli import main
from pipelines.prompt import is_complete, line_reader, talk
from pipelines.queries import open_warehouse


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the sample, in Europe/Berlin."""
    return copy_of_result(tmp_path_factory.mktemp("result"))


Asked = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(output: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    """Runs `care-kpis sql` and gives its code and what it printed."""

    def run(query: str, *options: str, folder: Path = output) -> tuple[int, str, str]:
        code = main(["sql", str(folder), query, *options])
        return code, *capsys.readouterr()

    return run


VALUES = (
    "SELECT NULL AS nothing, 1234567 AS whole, 1/3 AS part, true AS yes, TIMESTAMPTZ '2026-01-05 12:00:00+00' AS at, "
    "'=1+1' AS formula, 'a' || chr(27) || '[2J' || chr(10) || 'b' AS odd, DATE '2026-01-05' AS day, "
    "[{'bucket': 1, 'count': 2}] AS histogram, -1.5 AS minus"
)


def test_a_table(ask: Asked) -> None:
    """Names, null as such, times in the zone of the run, and nothing that moves the cursor."""
    code, out, _ = ask(VALUES)
    names, _, row, count = out.splitlines()
    assert code == 0 and names.split()[:5] == ["nothing", "whole", "part", "yes", "at"]
    assert row.split()[:4] == ["null", "1234567", "0.333333", "true"]
    assert "2026-01-05 13:00:00+01:00" in row and r"a\x1b[2J\nb" in row and "\x1b" not in out
    assert count == "1 row"


def test_no_row_and_many(ask: Asked) -> None:
    """No row has the names and says so; of many rows some are shown, and how many are not."""
    assert ask("SELECT 1 AS a WHERE false")[1].splitlines()[-1] == "0 rows"
    _, out, _ = ask("SELECT range AS n FROM range(120_000)")
    assert out.splitlines()[-1] == "120,000 rows; 119,800 of them not shown" and len(out.splitlines()) < 210


def test_a_wide_row_on_a_narrow_terminal(output: Path) -> None:
    """One row that is too wide has a line for each column; many rows lose columns, which are named."""
    screen = io.StringIO()
    console = Console(file=screen, width=60, force_terminal=True, color_system=None)
    lines = iter(["FROM kpis_between('2026-01-01', '2026-02-01');", "FROM kpis;"])
    with open_warehouse(output) as warehouse:
        talk(warehouse, reader_of(lines), console)
    text = screen.getvalue()
    assert "p90_reply_seconds" in text and "more columns: " in text
    assert all(len(line.rstrip()) <= 60 for line in text.splitlines() if "more columns" not in line)


def test_csv(ask: Asked) -> None:
    """Null is empty, times are ISO 8601, and no spreadsheet takes text for a formula; a negative number stays one."""
    code, out, _ = ask(VALUES, "--csv")
    [row] = csv.DictReader(io.StringIO(out))
    assert code == 0 and (row["nothing"], row["whole"], row["minus"]) == ("", "1234567", "-1.5")
    assert (row["at"], row["formula"], row["day"]) == ("2026-01-05T13:00:00+01:00", "'=1+1", "2026-01-05")
    assert json.loads(row["histogram"]) == [{"bucket": 1, "count": 2}]
    assert row["odd"] == "a\x1b[2J\nb"


def test_json(ask: Asked) -> None:
    """An array of objects, also without rows; what is no number is null."""
    code, out, _ = ask(VALUES + ", 'nan'::DOUBLE AS nan", "--json")
    [row] = json.loads(out)
    assert code == 0 and (row["nothing"], row["part"], row["yes"], row["nan"]) == (None, 1 / 3, True, None)
    assert (row["at"], row["formula"]) == ("2026-01-05T13:00:00+01:00", "=1+1")
    assert json.loads(ask("SELECT 1 AS a WHERE false", "--json")[1]) == []
    assert len(json.loads(ask("FROM kpis", "--json")[1])) > 500


def test_parquet(ask: Asked, output: Path, tmp_path: Path) -> None:
    """The file has all rows and types; a query that fails on the way leaves none."""
    file = tmp_path / "kpis.parquet"
    code, out, _ = ask("FROM kpis ORDER BY ALL", "--parquet", str(file))
    with open_warehouse(output) as warehouse:
        meant = warehouse.sql("FROM kpis ORDER BY ALL").to_arrow_table()
    assert code == 0 and out == f"{meant.num_rows:,} rows in {file}\n"
    assert pq.read_table(file).cast(meant.schema).equals(meant)
    bad = tmp_path / "bad.parquet"
    code, _, err = ask("SELECT error('no ' || range) FROM range(100_000) WHERE range > 90_000", "--parquet", str(bad))
    assert code == 2 and "no 90001" in err and list(tmp_path.iterdir()) == [file]
    code, _, err = ask("SELECT 1", "--parquet", str(tmp_path / "nowhere" / "a.parquet"))
    assert code == 2 and err.startswith("Error: Expected to write ")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELCT 1", 'syntax error at or near "SELCT"'),
        ("FROM nowhere", "Table with name nowhere does not exist!"),
        ("SELECT nothing FROM runs", 'Referenced column "nothing" not found'),
        ("DELETE FROM runs", "read-only"),
        ("CREATE TABLE mine (a INTEGER)", "read-only"),
        ("SELECT CAST('x' AS INTEGER)", "Could not convert"),
        ("FROM kpis_between('2026-01-01', 'x')", "invalid timestamp"),
        ("", "nothing to run"),
    ],
)
def test_what_is_no_query(ask: Asked, query: str, said: str) -> None:
    """One sentence on standard error and exit code 2; nothing is written."""
    code, out, err = ask(query)
    assert (code, out) == (2, "")
    assert err.startswith("Error: Expected SQL ") and said in err and err.count("\n") == 1


def test_other_mistakes(ask: Asked, tmp_path: Path) -> None:
    """Two forms at once, no result, and a file that is none."""
    assert "several" in ask("SELECT 1", "--csv", "--json")[2]
    code, _, err = ask("SELECT 1", folder=tmp_path)
    assert code == 2 and "there is no care.duckdb" in err
    (tmp_path / "care.duckdb").write_text("no database")
    code, _, err = ask("SELECT 1", folder=tmp_path)
    assert code == 2 and "care-kpis check" in err and err.count("\n") == 1


def test_a_query_from_standard_input(output: Path) -> None:
    """A dash reads it; several statements answer with the last."""
    command = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", "sql"]
    done = subprocess.run(
        [*command, str(output), "-", "--csv"],
        input="SELECT 1 AS a;\nSELECT 2 AS b;\n",
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout) == (0, "b\n2\n")


def test_a_pipe_that_closes_early(output: Path) -> None:
    """`| head -1` gets its line, and no traceback follows."""
    program = f"{sys.executable} -c 'import sys; from pipelines.cli import main; sys.exit(main())'"
    done = subprocess.run(
        f"{program} sql {output} 'SELECT * FROM range(500000)' --csv | head -1",
        shell=True,
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == "range\n" and "Traceback" not in done.stderr


# The shell


def reader_of(lines: Iterable[str]) -> Callable[[str], str]:
    """Reads prepared lines; KeyboardInterrupt where one is ^C."""
    given = iter(lines)

    def read(_: str) -> str:
        line = next(given, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    return read


def session(output: Path, *lines: str) -> str:
    """What the shell prints for some lines."""
    screen = io.StringIO()
    with open_warehouse(output) as warehouse:
        talk(warehouse, reader_of(lines), Console(file=screen, width=300))
    return screen.getvalue()


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("SELECT 1;", True),
        ("SELECT 1", False),
        ("SELECT 1 ;  -- done", True),
        ("SELECT 1 -- not yet ;", False),
        ("SELECT ';", False),
        ("SELECT ';\n' AS \"é;\";", True),
        ('SELECT 1 AS "a;', False),
        ("SELECT $$ ;", False),
        ("/* SELECT 1;", False),
        (";", True),
        ("", False),
    ],
)
def test_where_a_statement_ends(text: str, whole: bool) -> None:
    """At a semicolon, but in no text, name or comment."""
    assert is_complete(text) is whole


def test_statements_over_lines(output: Path) -> None:
    """Lines come together up to the semicolon; the last one needs none; an error ends nothing; ^C drops lines."""
    out = session(output, "SELECT 1", "  + 1 AS two", ";", "", "FROM nowhere;", "SELECT 5", "^C", "SELECT 3 AS three")
    assert "two" in out and "three" in out and "Error: Expected SQL" in out and "5" not in out


def test_commands(output: Path) -> None:
    """.tables and .macros list what there is, .help explains, .quit ends, and what is unknown is said."""
    out = session(output, ".tables", ".macros", ".help", ".nothing", ".quit", "SELECT 'never';")
    for word in ("conversations", "waiting_now", "kpis_by_team(", ".quit", "There is no .nothing"):
        assert word in out
    assert "never" not in out


def test_lines_from_a_pipe(output: Path) -> None:
    """Without a terminal it reads standard input."""
    command = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", "shell"]
    done = subprocess.run(
        [*command, str(output)],
        input="SELECT count(*) > 0 AS some\nFROM runs;\n.quit\n",
        text=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0 and done.stdout.split() == ["some", "─" * 4, "true", "1", "row"]


def test_a_terminal(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are typed are read and kept as history, for the user alone; where nothing can be kept it goes on."""
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        with open_warehouse(output) as warehouse:
            read = line_reader(warehouse)
            typed.send_text("SELECT 1;\n")
            assert read("care> ") == "SELECT 1;"
    history = tmp_path / "care-kpis" / "history"
    assert "SELECT 1;" in history.read_text() and history.stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        with open_warehouse(output) as warehouse:
            typed.send_text("SELECT 2;\n")
            assert line_reader(warehouse)("care> ") == "SELECT 2;"


def test_the_result_stays_while_another_is_published(output: Path) -> None:
    """Whoever reads keeps what was opened; several may read at once."""
    with open_warehouse(output) as one, open_warehouse(output) as other:
        path = snapshot_of(output) / "care.duckdb"
        kept = path.read_bytes()
        path.unlink()
        assert one.sql("SELECT count(*) FROM kpis").fetchall() == other.sql("SELECT count(*) FROM kpis").fetchall()
        path.write_bytes(kept)
