"""Failures as the user hears them, whatever Beam made of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.failures import named_runner, said_clearly
from transforms.errors import UserError

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample" / "events.ndjson"


def heard(error: BaseException, runner: str | None = None) -> str:
    """What the user hears of an error."""
    with pytest.raises(UserError) as raised, said_clearly(Path("out"), runner):
        raise error
    return str(raised.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("Expected this. [while running 'Blocks']"), "Expected this."),
        (
            RuntimeError("Traceback …\ntransforms.errors.UserError: Expected that. [while running 'A/B']\nmore"),
            "Expected that.",
        ),
    ],
)
def test_a_sentence_comes_out_as_it_is(error: Exception, says: str) -> None:
    """Raised here, or by a worker whose traceback is text."""
    assert heard(error) == says


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("OSError: [Errno 28] No space left on device [while running 'ShuffleEvents/Write']"),
        RuntimeError("OSError: 1990862 requested and 595952 written [while running 'PairMessages/Pair']"),
    ],
)
def test_a_full_disk_is_the_users_to_mend(error: Exception) -> None:
    """Wherever it is noticed."""
    assert "No space left on device" in heard(error) and "write out" in heard(error)


@pytest.mark.parametrize("text", ["KeyboardInterrupt [while running 'X']", "Query interrupted"])
def test_an_interruption_stays_one(text: str) -> None:
    """Beam and DuckDB make errors of their own of it."""
    with pytest.raises(KeyboardInterrupt), said_clearly(Path("out")):
        raise RuntimeError(text)


def test_a_runner_that_cannot_run() -> None:
    """Its last line is told; without a named runner a failure is ours and keeps its traceback."""
    assert "--runner FlinkRunner to run" in heard(ValueError("a\nno job server\n"), "FlinkRunner")
    with pytest.raises(ValueError, match="ours"), said_clearly(Path("out")):
        raise ValueError("ours")


@pytest.mark.parametrize("args", [["--runner=FlinkRunner"], ["--streaming", "--runner", "FlinkRunner"]])
def test_the_runner_that_was_named(args: list[str]) -> None:
    """However it was typed."""
    assert named_runner(args) == "FlinkRunner"
    assert named_runner(["--streaming"]) is None


def batch(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "batch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    """No traceback, no logger of Beam's, exit code 2."""
    path = tmp_path / "events.csv"
    path.write_text("event_id;event_type\n1;message\n", encoding="utf-8")
    done = batch("--input", path, "--output", tmp_path / "out")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.endswith(" s")]
    assert len(errors) == 1 and errors[0].startswith("Error: Expected") and "while running" not in errors[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", SAMPLE, "--output", ""], "got an empty text"),
        (["--input", "", "--output", "out"], "an empty text does not exist"),
        (["--input", "/dev/null", "--output", "out"], "is no regular file"),
        (["--input", SAMPLE, "--output", "out", "--max-dead-letter-rate", "nan"], "dead letters"),
        (["--input", SAMPLE, "--output", "out", "--runner=FlinkRunner"], "--runner FlinkRunner"),
    ],
)
def test_mistakes_of_the_shell(arguments: list[object], says: str, tmp_path: Path) -> None:
    """One sentence each; nothing is written beside where the user stands."""
    done = batch(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ".current").exists()


def test_an_empty_input_is_noted(tmp_path: Path) -> None:
    """An export that failed silently should not pass for a quiet day."""
    (tmp_path / "events.ndjson").touch()
    done = batch("--input", tmp_path / "events.ndjson", "--output", tmp_path / "out")
    assert done.returncode == 0 and "the input has no rows" in done.stdout
