"""`care-kpis compact`: fewer files, the same tables, and a result that goes on growing."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_growth import append, event, options, rows_of, write

from pipelines.batch import run
from pipelines.cli import main
from pipelines.compaction import compact
from pipelines.growth import ROWS_FOLDER, STATE
from sinks.facts import parts_of
from transforms.open_rows import count_rows


def row_files(output: Path) -> list[Path]:
    """The files of open rows."""
    return sorted((output / ".current" / STATE / ROWS_FOLDER).glob("*.arrow"))


def grown(folder: Path, days: int) -> tuple[Path, list[Path]]:
    """A result that was appended to day by day, with a dead letter each day."""
    files = []
    for day in range(days):
        lines = [event(f"m{day}-{n}", 24 * day + n, conversation_id=f"c{n}") for n in range(10)]
        files.append(write(folder / f"{day:02}.ndjson", *lines, b"no event"))
        append([files[-1]], folder / "output")
    return folder / "output", files


def test_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of open rows and of dead letters become one; months are cut where they are large."""
    output, files = grown(tmp_path, 5)
    before = rows_of(output)
    assert len(row_files(output)) == 5 and len(list((output / "dead_letters").iterdir())) == 5
    monkeypatch.setattr("pipelines.compaction.ROWS_A_FILE", 1)
    done = compact(output)
    assert done.commit_id == 5 and done.row_files == (5, 1)
    assert rows_of(output) == before
    assert [count_rows(file) for file in row_files(output)] == [50]
    assert len(list((output / "dead_letters").iterdir())) == 1
    parts = {parts_of(path.name) for path in (output / "conversations").rglob("*.parquet")}
    assert parts == {8}
    monkeypatch.undo()
    more = write(tmp_path / "more.ndjson", *(event(f"n{n}", 150 + n, conversation_id=f"c{n}") for n in range(10)))
    append([more], output)
    run(options([*files, more], tmp_path / "whole"))
    assert rows_of(output) == rows_of(tmp_path / "whole")
    assert main(["check", str(output)]) == 0, capsys.readouterr().out


def test_rows_are_cut_by_ranges_of_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large history lies in several files; a lookup finds every key in them."""
    output, files = grown(tmp_path, 5)
    monkeypatch.setattr("pipelines.compaction.ROWS_A_SHARD", 20)
    assert compact(output).row_files == (5, 3)
    assert sum(map(count_rows, row_files(output))) == 50
    more = write(tmp_path / "more.ndjson", *(event(f"n{n}", 150 + n, conversation_id=f"c{n}") for n in range(10)))
    append([more], output)
    run(options([*files, more], tmp_path / "whole"))
    assert rows_of(output) == rows_of(tmp_path / "whole")


def test_many_appends_keep_few_files(tmp_path: Path) -> None:
    """Files of open rows of about the same size are put together on the way."""
    output, _ = grown(tmp_path, 10)
    assert len(row_files(output)) == 3
    assert sum(map(count_rows, row_files(output))) == 100


def test_nothing_to_compact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that does not grow is packed too; without a result it says so."""
    run(options([write(tmp_path / "1.ndjson", event("a", 1))], tmp_path / "output"))
    before = rows_of(tmp_path / "output")
    assert main(["compact", str(tmp_path / "output")]) == 0
    assert "Open rows  0 -> 0 files" in capsys.readouterr().out
    assert rows_of(tmp_path / "output") == before
    (tmp_path / "empty").mkdir()
    assert main(["compact", str(tmp_path / "empty")]) == 2
    assert "Expected a result in" in capsys.readouterr().err
