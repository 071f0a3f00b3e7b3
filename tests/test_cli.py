"""The command line: what each command does with its options, and how it says what is wrong."""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from test_summary import summary

from fixtures.generate import write_events
from pipelines.cli import main
from pipelines.commands.generate import generate
from pipelines.options import BatchOptions
from pipelines.parameters import FORMATS
from pipelines.progress import Progress
from pipelines.sources.files import FORMATS as READABLE
from pipelines.summary import RunSummary
from transforms.errors import UserError
from transforms.settings import HOUR, ChannelSettings, Settings

HEAVY = {"apache_beam", "pyarrow", "duckdb", "pandas", "numpy", "great_expectations"}
Runs = list[BatchOptions]


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[BatchOptions, Progress], RunSummary]) -> None:
    """Puts another function in the place of the batch pipeline."""
    module = types.ModuleType("pipelines.batch")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.batch", module)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The options of each batch run, which reads 1,211 rows of the channels x and email."""
    seen: Runs = []

    def run(options: BatchOptions, progress: Progress) -> RunSummary:
        seen.append(options)
        progress.stage("Reading events", 1_211)
        progress.advance(1_211)
        return summary()

    pretend(monkeypatch, run)
    return seen


def test_batch_with_nothing_but_files(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All else has defaults; the summary is on standard output, the stages on standard error."""
    assert main(["batch", "--input", "a.csv", "--output", str(tmp_path)]) == 0
    assert runs == [BatchOptions(("a.csv",), tmp_path, Settings())]
    out, err = capsys.readouterr()
    assert out.startswith("Read     1,211 rows from 1 file")
    assert "Reading events: 1,211 rows, " in err
    assert "\x1b" not in out + err


def test_batch_with_every_option(runs: Runs, tmp_path: Path) -> None:
    """Ours and Beam's, several inputs in the order given, a pattern that the shell took apart."""
    config = tmp_path / "care.toml"
    config.write_text('timezone = "Asia/Tokyo"\n[channel.x]\ngap = "3h"\n')
    code = main(
        f"batch --input a.csv b.csv --config={config} --input c*.csv --output {tmp_path} --timezone Europe/Berlin "
        "--as-of 1970-01-01T02:00:00+01:00 --format csv --max-dead-letter-rate 0.5 --append --grown-files reread "
        "--runner=FlinkRunner --flink_master localhost:8081".split()
    )
    assert code == 0
    settings = Settings(channels={"x": ChannelSettings(gap=3 * HOUR)}, timezone="Europe/Berlin", as_of=HOUR)
    beam_args = ("--runner=FlinkRunner", "--flink_master", "localhost:8081")
    inputs = ("a.csv", "c*.csv", "b.csv")
    expected = BatchOptions(inputs, tmp_path, settings, "csv", None, 0.5, True, "reread", beam_args)
    assert runs == [expected]


def test_a_channel_that_no_event_has_is_noted(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt channel in care.toml changes nothing, and a user should know."""
    config = tmp_path / "care.toml"
    config.write_text('[channel.x]\ngap = "3h"\n[channel.emial]\ngap = "3h"\n')
    assert main(["batch", "--input", "a", "--output", str(tmp_path), "--config", str(config)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "no conversation" in line]
    assert notes == [f"Note: no conversation has the channel 'emial' of {config}."]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("batch", "Error: Missing option '--input'.\nTry: care-kpis batch --help\n"),
        ("batch --input a", "Error: Missing option '--output'.\nTry: care-kpis batch --help\n"),
        ("batch --input a --output o --format xml", "'xml' is not one of 'ndjson', 'csv', 'parquet', 'arrow'."),
        ("batch --input a --output o --max-dead-letter-rate 10", "10.0 is not in the range 0<=x<=1."),
        ("batch --input a --output o --timezone berlin", "Error: --timezone: expected an IANA time zone, got 'berlin'"),
        ("batch --input a --output o --as-of 2026-01-01", "got 2026-01-01T00:00:00; add Z or an offset.\n"),
        ("batch --input a --output o --as-of noon", "Error: --as-of: expected a date and time with an offset"),
        ("batch --input a --output o --config missing.toml", "Error: missing.toml: expected a readable TOML file"),
        ("batch --input a --output o --source nobody", "Error: --source: expected "),
        ("batch --input a --output o --timezon UTC", "Error: Unknown option --timezon; did you mean --timezone?"),
        ("batch --input a --output o --flnk_master=x", "Error: Unknown option --flnk_master; did you mean --flink_m"),
        ("batch --input a --output o --streaming b", "Error: Expected an option, got 'b'; if it is an input, put it"),
        ("bach", "Error: No such command 'bach'. (Did you mean one of: 'batch', 'watch'?)\nTry: care-kpis --help\n"),
        ("config --confg x", "Error: No such option '--confg'."),
        ("check", "Error: Missing argument 'OUTPUT'.\nTry: care-kpis check --help\n"),
        (
            "check nowhere",
            "Error: Expected the result of a run in nowhere, but there is none: name its --output folder.",
        ),
        ("rebuild", "Error: Missing argument 'OUTPUT'.\nTry: care-kpis rebuild --help\n"),
        ("rebuild nowhere", "nowhere, but there is none: make one with `care-kpis batch`.\n"),
        ("generate --output o --events 0", "Error: Invalid value for '--events': 0 is not in the range x>=1."),
        ("generate --output o --start 1.1.2026", "Error: Invalid value for '--start'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    runs: Runs, arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with exit code 2, and no run begins."""
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert "Traceback" not in err
    assert (out, runs) == ("", [])


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(UserError("no!"), 2, "Error: no!\n"), (KeyboardInterrupt(), 130, "Stopped.\n")],
)
def test_how_a_run_may_end(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    """What the user can mend is 2, an interrupted run is 130."""

    def run(options: BatchOptions, progress: Progress) -> RunSummary:
        raise error

    pretend(monkeypatch, run)
    assert main(["batch", "--input", "a", "--output", str(tmp_path)]) == code
    assert capsys.readouterr().err.endswith(told)


def test_what_nobody_foresaw_stays_an_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its traceback is what a report of it needs."""

    def run(options: BatchOptions, progress: Progress) -> RunSummary:
        raise ZeroDivisionError

    pretend(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        main(["batch", "--input", "a", "--output", str(tmp_path)])


def test_config_shows_values_and_origins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the defaults, and of a channel only what differs from them."""
    config = tmp_path / "care.toml"
    config.write_text('timezone = "Asia/Tokyo"\n[default]\ngap = 3600\n[channel.x]\nsplit_threads = true\n')
    assert main(["config", "--config", str(config), "--timezone", "Europe/Berlin"]) == 0
    lines = [line.split(None, 2) for line in capsys.readouterr().out.replace("the latest event", "latest").splitlines()]
    shown = {line[0]: line[1] for line in lines if len(line) == 3}
    assert shown == {
        "Setting": "Value",
        "timezone": "Europe/Berlin",
        "as_of": "latest",
        "repeat_contact": "off",
        "default.gap": "1h",
        "default.max_idle": "30d",
        "default.max_open": "365d",
        "default.split_threads": "false",
        "default.infer_resolution": "false",
        "default.has_life_cycle": "true",
        "channel.x.split_threads": "true",
    }
    origins = {line[0]: line[2].strip() for line in lines if len(line) == 3}
    assert origins["timezone"] == "command line"
    assert origins["default.max_idle"] == "default"


def test_generate_writes_files_and_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options reach the generator, and its files are the ones that are told."""
    output = tmp_path / "it's"
    code = main(
        f"generate --output {output} --events 200 --format ndjson --files 2 --seed 7 "
        "--start 2025-03-01 --days 3 --accounts 1 --bad-rate 0".split()
    )
    assert code == 0
    again = write_events(
        tmp_path / "again", 200, 7, "ndjson", files=2, start=date(2025, 3, 1), days=3, accounts=1, bad_rate=0
    )
    made = sorted(output.iterdir())
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in again]
    *told, following = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[0] for line in told] == [str(path) for path in made]
    assert following == f"Next: care-kpis batch --input {shlex.quote(str(output))} --output output"


def test_generate_has_the_generators_defaults() -> None:
    """The help tells the truth about them."""
    defaults = {name: value.default for name, value in inspect.signature(write_events).parameters.items()}
    for option in generate.params:
        name = {"file_format": "format"}.get(str(option.name), str(option.name))
        if name not in ("output", "bad_rate"):
            assert str(option.default) == str(defaults[name])


def test_formats_are_those_that_can_be_read() -> None:
    """The list here is a copy, since the help must not import the readers."""
    assert FORMATS == READABLE


def in_a_new_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in this folder, without a terminal."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "batch --help",
        "check --help",
        "rebuild --help",
        "generate --help",
        "config --help",
        "config",
    ],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    """That is how it answers at once; and it is plain text that fits 80 columns."""
    code = "import sys, pipelines.cli; pipelines.cli.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = in_a_new_process(code, *command.split())
    assert done.returncode == 0
    assert not HEAVY & set(done.stderr.split())
    assert done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("code", "returned", "said"),
    [
        ("return 0", 0, "done\n"),
        ("return 4", 4, "done\n"),
        ("raise ValueError('unforeseen')", 1, "done\n"),
        ("sys.stdout.close(); return 0", 120, ""),
        ("threading.Timer(0.2, lambda: print('late')).start(); return 0", 0, "late\ndone\n"),
    ],
)
def test_the_end_of_a_process(code: str, returned: int, said: str) -> None:
    """It waits for threads, does what is registered, shows what nobody foresaw, and tells what could not be written."""
    lines = (
        "import atexit, sys, threading",
        "from pipelines.exits import run_process",
        f"def main():\n    atexit.register(lambda: print('done'))\n    {code}",
        "sys.exit(run_process(main))",
    )
    done = in_a_new_process("\n".join(lines))
    assert (done.returncode, done.stdout) == (returned, said)
    assert ("ValueError: unforeseen" in done.stderr) == (returned == 1)


def test_a_pipe_that_knows_no_letters_but_ascii(tmp_path: Path) -> None:
    """Letters that cannot be shown do not end the run."""
    config = tmp_path / "care.toml"
    config.write_text('[channel."câblé"]\ngap = "3h"\n', encoding="utf-8")
    code = "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "config", f"--config={config}"],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"channel.c?bl?.gap" in done.stdout


def test_ctrl_c_ends_a_real_process_with_130() -> None:
    """As a shell expects it, and without a traceback."""
    code = """
import sys, time, types
from pipelines.cli import main
module = types.ModuleType("pipelines.batch")
module.run = lambda options, progress: (progress.stage("Sleeping"), print("ready", flush=True), time.sleep(60))
sys.modules["pipelines.batch"] = module
sys.exit(main(["batch", "--input", "a", "--output", "o"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.endswith("Stopped.\n")
    assert "Traceback" not in err
