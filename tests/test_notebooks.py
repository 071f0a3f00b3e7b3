"""The notebooks run from top to bottom and lie there without outputs; the cases that they show come out as they say."""

from __future__ import annotations

import os
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from drivers import run_kernels
from golden import micros, plain_row
from nbclient import NotebookClient
from reference import run as run_reference

from pipelines.cli import main
from pipelines.settings import load_settings

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CASES = sorted(path.parent for path in (ROOT / "fixtures" / "golden").glob("*/case.toml"))


def named(paths: list[Path]) -> list[Any]:
    """Paths as parameters that show what failed."""
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebooks_are_clean(path: Path) -> None:
    """One format; a title first; no outputs, no counts, no empty cells, and nothing of the machine that wrote it."""
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in book.cells:
        assert cell.source.strip() and cell.metadata == {}, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebooks_link_to_what_is_there(path: Path) -> None:
    """Every link leads to a file."""
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


def execute(book: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a notebook in a kernel of its own, that leaves what it leaves in a folder."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, with pictures, and with nothing on the error stream."""
    book = nbformat.read(path, as_version=4)
    execute(book, tmp_path, monkeypatch)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


def test_every_case_is_shown() -> None:
    """The notebook on pairing has each case of fixtures/golden, in order."""
    book = nbformat.read(ROOT / "notebooks" / "how-pairing-decides.ipynb", as_version=4)
    shown = re.findall(r'^show\("([^"]+)"', "\n".join(cell.source for cell in book.cells), re.MULTILINE)
    assert shown == [case.name for case in CASES]


@pytest.mark.parametrize("case", named(CASES))
def test_cases_come_out_as_they_say(case: Path) -> None:
    """Both by the kernels and by the reference: as many rows, and in each the columns that matter."""
    said = tomllib.loads((case / "case.toml").read_text(encoding="utf-8"))
    assert said["title"] and said["reason"].strip()
    raw, settings = (case / "events.ndjson").read_bytes(), load_settings(overrides=said.get("settings")).settings
    kernels, reference = run_kernels([raw], settings), run_reference(raw.splitlines(), settings)
    for tables, counts in ((kernels.tables(), kernels.counts), (reference.tables, reference.counts)):
        assert {name: counts[name] for name in said.get("counts", {})} == said.get("counts", {})
        for name in ("conversations", "turns"):
            rows = sorted(map(plain_row, tables[name]), key=lambda row: (row["started_at"], row.get("turn_number", 0)))
            assert len(rows) == len(said[name]), name
            for row, expected in zip(rows, said[name], strict=True):
                want = {c: micros(v) if isinstance(v, datetime) else v for c, v in expected.items()}
                assert {column: row[column] for column in want} == pytest.approx(want), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tour", "percentiles-and-roll-ups"])
def test_notebooks_run_on_your_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path of a result in the first cell of code: here two days, one channel, and nobody who waits."""
    events, output = ROOT / "fixtures" / "golden" / "04-a-day-of-silence" / "events.ndjson", tmp_path / "output"
    assert main(["batch", "--input", str(events), "--output", str(output)]) == 0
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    first.source = f"from pathlib import Path\noutput, events = Path({str(output)!r}), Path({str(events)!r})"
    execute(book, tmp_path, monkeypatch)
