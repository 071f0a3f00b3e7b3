"""The arrows between folders: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipelines", "transforms", "sinks", "fixtures")
MAY_IMPORT = {
    "transforms": {"transforms"},
    "sinks": {"sinks", "transforms"},
    "pipelines": {"pipelines", "transforms", "sinks", "fixtures"},
    "fixtures": {"fixtures", "transforms"},
}
OF_TRANSFORMS_FOR_SINKS = {"schema", "tables", "definitions", "errors", "calendars", "shards"}
KNOW_BEAM = {"batches", "metrics", "steps", "pair_steps", "repeat_steps", "stateful_steps"}
WITHOUT_BEAM_AT_START = ("cli", "exits", "options", "settings", "summary", "progress", "durations")


def modules(folder: str) -> list[Path]:
    """All modules of a folder."""
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_they_may(folder: str) -> None:
    """Nothing imports pipelines, and transforms import none of the other folders."""
    for path in modules(folder):
        ours = {name.split(".")[0] for name in imports(path)} & set(FOLDERS)
        assert ours <= MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {sorted(ours - MAY_IMPORT[folder])}"


def test_sinks_see_words_and_definitions_only() -> None:
    """A sink knows tables and KPIs, never how they are computed."""
    for path in modules("sinks"):
        seen = {name.split(".")[1] for name in imports(path) if name.startswith("transforms.")}
        assert seen <= OF_TRANSFORMS_FOR_SINKS, f"{path.name} imports {sorted(seen - OF_TRANSFORMS_FOR_SINKS)}"


def test_kernels_do_not_know_beam() -> None:
    """Kernels see Arrow, numpy and integers; Beam is in a few modules of steps."""
    for path in modules("transforms"):
        if path.stem not in KNOW_BEAM:
            assert not any(name.startswith("apache_beam") for name in imports(path)), path.name


def test_kernels_have_no_clock() -> None:
    """as_of is passed in: nothing in a kernel asks what time it is (steps.py measures how long work takes)."""
    for path in modules("transforms"):
        if path.stem not in ("steps", "pair_steps"):
            assert "time" not in imports(path), path.name
            text = path.read_text(encoding="utf-8")
            assert ".now(" not in text and ".utcnow(" not in text, path.name


@pytest.mark.parametrize("name", WITHOUT_BEAM_AT_START)
def test_the_command_line_starts_without_the_heavy_libraries(name: str) -> None:
    """`care-kpis --help` answers at once: Beam, Arrow and DuckDB are imported where they are used."""
    heavy = {"apache_beam", "pyarrow", "duckdb", "pandas", "great_expectations"}
    found = {module.split(".")[0] for module in imports(ROOT / "pipelines" / f"{name}.py", top_level_only=True)}
    assert not found & heavy


def test_modules_stay_short() -> None:
    """A file that grows past 300 lines wants a better contract; none is a drawer for everything."""
    for folder in FOLDERS:
        for path in modules(folder):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.relative_to(ROOT)
            assert path.stem not in ("utils", "helpers", "common", "misc"), path.relative_to(ROOT)


def test_only_the_audit_knows_great_expectations() -> None:
    """It takes three seconds to import."""
    for folder in FOLDERS:
        for path in modules(folder):
            if path.relative_to(ROOT).as_posix() != "pipelines/audit/expectations.py":
                assert not any(name.startswith("great_expectations") for name in imports(path)), path.name
