"""docs/schedule: the systemd units, the crontab line and the Airflow DAG say the same, are well made, and run."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from crontab import CronTab
from environments import environment

from fixtures.generate import write_events
from pipelines.cli import care_kpis
from pipelines.exits import AUDIT_FAILED, DONE, IN_USE, NO_FILES, NOT_DELIVERED, WRONG

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "schedule"
UNITS = ("care-kpis.service", "care-kpis.timer")
PROGRAM = "/opt/care-kpis/.venv/bin/care-kpis"
DATA = "/srv/care"
DAG = FOLDER / "care_kpis_daily.py"


def command_of_service() -> list[str]:
    """What the service starts."""
    text = (FOLDER / "care-kpis.service").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return shlex.split(line.removeprefix("ExecStart="))


def command_of_crontab() -> str:
    """What cron gives to the shell."""
    [job] = CronTab(tab=(FOLDER / "crontab").read_text(encoding="utf-8"))
    return str(job.command)


def constant(name: str) -> list[str]:
    """A tuple of the DAG's module."""
    for node in ast.parse(DAG.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"{name} is not in {DAG.name}")


def test_all_three_start_the_same_command() -> None:
    """And it is one that care-kpis has, with options that it has."""
    program, *arguments = command_of_service()
    assert program == PROGRAM
    assert command_of_crontab() == f"cd {DATA} && {shlex.join([program, *arguments]).replace(chr(34), chr(39))}"
    assert ["daily", *constant("OPTIONS")] == arguments
    assert care_kpis.commands["daily"].make_context("daily", arguments[1:]).params["inputs"]


def test_what_is_tried_again() -> None:
    """A scheduler tries again what may pass, and leaves the rest to a person."""
    text = (FOLDER / "care-kpis.service").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("RestartPreventExitStatus=")]
    codes = [int(code) for code in line.split("=")[1].split()]
    assert codes == constant("FOR_A_PERSON") == [WRONG, AUDIT_FAILED]


def test_the_crontab_line() -> None:
    """Cron can read it, it is due once a day, and it has no % (which is a line break to cron)."""
    [job] = CronTab(tab=(FOLDER / "crontab").read_text(encoding="utf-8"))
    assert job.is_valid() and job.is_enabled() and job.frequency_per_day() == 1
    assert "%" not in job.command


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Where the program and the folder are there, systemd has nothing to say about them."""
    for name in UNITS:
        text = (FOLDER / name).read_text(encoding="utf-8").replace(PROGRAM, "/bin/true").replace(DATA, str(tmp_path))
        (tmp_path / name).write_text(text, encoding="utf-8")
    units = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as the schedules expect it, with a file of yesterday, and the program."""
    yesterday = (datetime.now(ZoneInfo("Europe/Berlin")) - timedelta(days=1)).date()
    [made] = write_events(tmp_path / "made", events=500, start=yesterday, days=1)
    (tmp_path / "data").mkdir()
    made.rename(tmp_path / "data" / f"{yesterday}.parquet")
    shutil.copy(ROOT / "fixtures" / "sample" / "care.toml", tmp_path)
    program = tmp_path / "care-kpis"
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    run = f"PYTHONPATH={ROOT} {sys.executable} -c '{code}' \"$@\" >>'{tmp_path}/printed' 2>&1"
    # Any failure is one for a person here: Airflow would wait a quarter of an hour before it tried again.
    program.write_text(f"#!/bin/sh\n{run} || exit {WRONG}\n", encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def printed(place: Path) -> str:
    """What the program printed."""
    path = place / "printed"
    return path.read_text(encoding="utf-8") if path.exists() else "It was not started."


@pytest.mark.slow
def test_cron_runs_the_line(place: Path) -> None:
    """As cron would, by /bin/sh: a result and a report of yesterday are there afterwards."""
    command = command_of_crontab().replace(PROGRAM, str(place / "care-kpis")).replace(DATA, str(place))
    done = subprocess.run(["/bin/sh", "-c", command], env={"PATH": os.defpath}, timeout=600, check=False)
    assert done.returncode == 0, printed(place)
    assert (place / "output" / "care.duckdb").exists()
    assert [path.suffix for path in sorted((place / "reports").glob("care-kpis-*.html"))] == [".html"]


@pytest.fixture(scope="module")
def airflow() -> Path:
    """The programs of a real Airflow."""
    return environment("airflow", ROOT / "tests" / "airflow.lock")


def airflow_settings(home: Path, dags: Path) -> dict[str, str]:
    """The process environment of an Airflow that has nothing but our DAG."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    return own | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.mark.slow
def test_airflow_runs_the_dag(airflow: Path, place: Path) -> None:
    """A real Airflow loads it without an error, and `airflow dags test` runs it once to its end."""
    settings = airflow_settings(place / "airflow", FOLDER)
    settings |= {"CARE_KPIS_PROGRAM": str(place / "care-kpis"), "CARE_KPIS_FOLDER": str(place)}

    def run(*arguments: str) -> str:
        command = [str(airflow / "airflow"), *arguments]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + printed(place)
        return done.stdout

    run("db", "migrate")
    run("dags", "test", "care_kpis_daily")
    assert "No data found" in run("dags", "list-import-errors")
    assert (place / "output" / "care.duckdb").exists() and list((place / "reports").glob("care-kpis-*.html"))


CALLS = """
import os, sys
sys.path.insert(0, os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
import care_kpis_daily as module
module.get_current_context = lambda: {"params": {"date": "2026-01-14"}}
for code in sys.argv[1:]:
    os.environ["CODE"] = code
    try:
        module.daily.function()
        print(code, "success", flush=True)
    except Exception as error:
        print(code, type(error).__name__, flush=True)
"""


@pytest.mark.slow
def test_airflow_understands_the_exit_codes(airflow: Path, tmp_path: Path) -> None:
    """What is for a person fails at once, all else is tried again; a day that is asked for is passed on."""
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$*" >> asked\nexit "$CODE"\n', encoding="utf-8")
    program.chmod(0o755)
    settings = airflow_settings(tmp_path, FOLDER)
    settings |= {"CARE_KPIS_PROGRAM": str(program), "CARE_KPIS_FOLDER": str(tmp_path)}
    codes = (DONE, 1, WRONG, AUDIT_FAILED, IN_USE, NOT_DELIVERED, NO_FILES)
    python = [str(airflow / "python"), "-c", CALLS, *map(str, codes)]
    printed = subprocess.run(python, env=settings, capture_output=True, text=True, timeout=120, check=True).stdout
    again, fails = "AirflowException", "AirflowFailException"
    expected = dict(zip(codes, ("success", again, fails, fails, again, again, again), strict=True))
    assert [line for line in printed.splitlines() if line[0].isdigit()] == [f"{c} {e}" for c, e in expected.items()]
    [asked] = set((tmp_path / "asked").read_text(encoding="utf-8").splitlines())
    assert asked == " ".join(["daily", *constant("OPTIONS"), "--date", "2026-01-14"])
