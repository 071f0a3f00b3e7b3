"""What README.md and docs/ claim: lists, links, commands, settings, queries, printed output and the worked examples."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.exceptions import Exit
from drivers import Outcome, run_kernels

from docs.make_reference import reference_pages
from pipelines.cli import care_kpis, main
from pipelines.options import parse_beam_options, split_arguments
from pipelines.settings import load_settings
from pipelines.sources.adapted import read_adapter
from pipelines.sources.blocks import Block
from pipelines.sources.files import list_files
from pipelines.sources.formats import blocks, read_block
from sinks.views import VIEWS
from transforms.events import parse_events
from transforms.schema import EVENT_COLUMNS, EVENT_TYPES, PARSED_EVENTS, REASONS
from transforms.settings import ChannelSettings, Settings

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "fixtures" / "sample"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "fixtures" / "README.md")
}
README, CONVERSATION, INPUT = PAGES["README.md"], PAGES["docs/how-a-conversation-is-decided.md"], PAGES["docs/input.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
Row = dict[str, str]


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of a page, and the block that follows it with nothing between."""

    page: str
    line: int
    language: str
    text: str
    following: str | None


def code_blocks(language: str, page: str | None = None) -> list[CodeBlock]:
    """The blocks of a language, of one page or of all."""
    found = []
    for name, text in PAGES.items():
        matches = list(FENCE.finditer(text)) if page in (None, name) else []
        for match, after in zip(matches, [*matches[1:], None], strict=False):
            is_next = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(CodeBlock(name, line, language, match[2], after[2] if after and is_next else None))
    return found


def named(blocks: list[CodeBlock]) -> Any:
    """The blocks as parameters that are called by page and line."""
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in blocks]


def tables(text: str) -> list[list[Row]]:
    """Every Markdown table as rows; backticks around a whole cell are taken away."""
    found = []
    for match in re.finditer(r"(?:^\|.*\|\n)+", FENCE.sub("", text), re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in match[0].splitlines()]
        cells = [[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in rows]
        found.append([dict(zip(head, row, strict=True)) for row in cells])
    return found


def table_after(text: str, heading: str) -> list[Row]:
    """The first table after a heading or mark."""
    assert heading in text
    return tables(text[text.index(heading) :])[0]


# Lists, links and commands


def test_what_is_made_is_as_made() -> None:
    """The lists of tables, columns, KPIs and statistics are those of the code."""
    for path, text in reference_pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)} is out of date: make docs"
    for mark in ("kpis", "definitions", "statistics"):
        assert sum(f"<!-- begin {mark}: made by `make docs` -->\n\n| " in text for text in PAGES.values()) == 1


def anchors(path: Path) -> set[str]:
    """What a link can name in a page, as GitHub spells it."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file that is there, and a heading in it."""
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if "://" not in link:
            target, _, anchor = link.partition("#")
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


def check_command(arguments: list[str]) -> None:
    """Lets the command line take its arguments apart, without running anything."""
    with contextlib.suppress(Exit), contextlib.redirect_stdout(io.StringIO()):
        if arguments[0].startswith("-"):
            care_kpis.make_context("care-kpis", arguments)
        context = care_kpis.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        parse_beam_options(split_arguments(context.args)[1])


@pytest.mark.parametrize("block", named(code_blocks("sh")))
def test_commands_can_be_given(block: CodeBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in a block is one of ours, with options that it has; every target is in the Makefile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program.removeprefix(".venv/bin/") == "care-kpis":
            check_command(arguments)
        elif program:
            assert program == "make"
            assert set(arguments) <= set(targets)


@pytest.mark.parametrize("command", ["batch", "generate", "config"])
def test_every_option_is_explained(command: str) -> None:
    """docs/settings.md names all of them."""
    for parameter in care_kpis.commands[command].params:
        assert any(option in PAGES["docs/settings.md"] for option in parameter.opts), parameter.name


@pytest.mark.parametrize("block", named(code_blocks("toml")))
def test_settings_can_be_read(block: CodeBlock, tmp_path: Path) -> None:
    """Every care.toml is one; that of docs/settings.md spells the defaults."""
    file = tmp_path / "care.toml"
    file.write_text(block.text, encoding="utf-8")
    settings = load_settings(file).settings
    if block.page == "docs/settings.md":
        assert settings.default == ChannelSettings()
        said = {name for name in vars(ChannelSettings()) if re.search(rf"^{name} = ", block.text, re.MULTILINE)}
        assert said == set(vars(ChannelSettings()))


def test_the_layout_is_the_layout() -> None:
    """The folders that README names are there, and no others."""
    [layout] = [block.text for block in code_blocks("text", "README.md") if block.text.startswith("pipelines/")]
    names = {line.split("/")[0] for line in layout.splitlines() if not line.startswith(" ")}
    assert names == {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}


# What a run prints and leaves


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `make run` prints on the sample, in a folder that has the result in output/."""
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(tmp_path_factory.mktemp("run"))
    os.environ["COLUMNS"] = "80"
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            files = ["--input", str(SAMPLE / "events.ndjson"), "--config", str(SAMPLE / "care.toml")]
            assert main(["batch", *files, "--output", "output"]) == 0
        yield out.getvalue()
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def without_times(text: str) -> list[str]:
    """Lines without what differs from run to run: how long it took, and which Python it was."""
    # How long it took may have one digit more, which moves the line break.
    took = r"^Took [^)]*\)"
    text = re.sub(took, lambda found: re.sub(r"\d+\.\d", "_", " ".join(found[0].split())), text, flags=re.M)
    text = re.sub(r"^\S+ (?=-c 'import duckdb)", "python ", text, flags=re.M)
    return [line.rstrip() for line in text.splitlines()]


def test_readme_shows_what_a_run_prints(printed: str) -> None:
    """Line by line, but for durations and the path of Python."""
    [shown] = [block.text for block in code_blocks("text", "README.md") if block.text.startswith("Read ")]
    assert without_times(shown) == without_times(printed)


@pytest.mark.usefixtures("printed")
def test_readme_shows_what_lies_in_output() -> None:
    """Every name that is not hidden, and no other."""
    [shown] = [block.text for block in code_blocks("text", "README.md") if block.text.startswith("output/")]
    names = [line.split()[0] for line in shown.splitlines()[1:]]
    assert sorted(name.rstrip("/") for name in names) == sorted(p.name for p in Path("output").glob("[!.]*"))
    assert all(Path("output", name).is_dir() == name.endswith("/") for name in names)
    assert [row["view"] for row in table_after(README, "| view |")] and all(f"| `{v.name}` |" in README for v in VIEWS)


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("block", named([block for block in code_blocks("sql") if block.page != "docs/history.md"]))
def test_queries_run(block: CodeBlock) -> None:
    """Every query gives rows on the result of the sample; where an answer is shown, that one."""
    with duckdb.connect("output/care.duckdb", read_only=True) as warehouse:
        warehouse.execute("SET TimeZone = 'UTC'")
        answer = warehouse.sql(block.text)
        assert answer.fetchall()
        if block.following is not None:
            assert str(warehouse.sql(block.text)).rstrip() == block.following.rstrip()


@pytest.mark.usefixtures("printed")
def test_python_in_readme_runs(capfd: pytest.CaptureFixture[str]) -> None:
    """The way from Python to a view."""
    for block in code_blocks("python", "README.md"):
        exec(block.text, {})


# Conversations by hand


def example() -> bytes:
    """The events of the worked example."""
    [block] = code_blocks("ndjson", "docs/how-a-conversation-is-decided.md")
    return block.text.encode()


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """What the kernels make of the worked example."""
    return run_kernels([example()], Settings())


def said(column: str, value: Any) -> str:
    """A value as the pages write it."""
    if value is None:
        return "null"
    if column.endswith("_at"):
        return datetime.fromtimestamp(value / 1e6, UTC).strftime("%m-%d %H:%M")
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def check_columns(expected: list[Row], rows: list[dict[str, Any]]) -> None:
    """Compares a page's table, which has a line for each column and a column for each row, with rows."""
    for line in expected:
        column, *values = line.values()
        assert values[: len(rows)] == [said(column, row[column]) for row in rows], column


def days(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The days of the activity basis, in order."""
    chosen = [row for row in rows if (row["basis"], row["grain"]) == ("activity", "day")]
    return sorted(chosen, key=lambda row: int(row["window_start"]))


def test_example_conversations_and_turns(outcome: Outcome) -> None:
    """Every value of the tables by hand, and no row more."""
    assert outcome.counts["dead_letters"] == outcome.counts["stray_events"] == 0
    conversations = sorted(outcome.conversations, key=lambda row: int(row["started_at"]))
    turns = sorted(outcome.turns, key=lambda row: int(row["turn_started_at"]))
    assert (len(conversations), len(turns)) == (2, 4)
    check_columns(table_after(CONVERSATION, "<!-- expected: conversations -->"), conversations)
    check_columns(table_after(CONVERSATION, "<!-- expected: turns -->"), turns)


def test_example_kpis(outcome: Outcome) -> None:
    """Every value of the two days."""
    assert len(days(outcome.kpis)) == 2
    check_columns(table_after(CONVERSATION, "<!-- expected: days -->"), days(outcome.kpis))


def test_the_events_are_those_of_the_steps() -> None:
    """The table step by step has a line for each event, in order."""
    steps = [row["event"].split()[0] for row in table_after(CONVERSATION, "Step by step")]
    assert steps == [json.loads(line)["event_id"] for line in example().splitlines()]


def test_a_kpi_added_as_the_page_says(tmp_path: Path) -> None:
    """The changes of docs/add-a-kpi.md apply, and give what it says, in the vectors and in the reference."""
    for folder in ("transforms", "pipelines", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    changes = "".join(block.text for block in code_blocks("diff", "docs/add-a-kpi.md"))
    outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, env=outside, input=changes, text=True, check=True)
    (tmp_path / "example.ndjson").write_bytes(example())
    code = """
import json, drivers, reference
from transforms.settings import Settings
events = open("example.ndjson", "rb").read()
ours = drivers.run_kernels([events], Settings()).kpis
theirs = reference.run(events.splitlines(), Settings()).tables["kpis"]
names = ("basis", "grain", "window_start", "handoff_rate")
print(json.dumps([[{name: row[name] for name in names} for row in rows] for rows in (ours, theirs)]))
"""
    path = os.pathsep.join([str(tmp_path), str(tmp_path / "tests")])
    found = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    for rows in json.loads(found):
        check_columns(table_after(PAGES["docs/add-a-kpi.md"], "<!-- expected: with the change -->"), days(rows))


# Input


def test_columns_and_types_of_input() -> None:
    """docs/input.md has the columns, types and reasons of the code, in their order."""
    columns = table_after(INPUT, "## Columns")
    assert [row["column"] for row in columns] == [column.name for column in EVENT_COLUMNS]
    assert [row["required"] == "yes" for row in columns] == [not column.nullable for column in EVENT_COLUMNS]
    assert [row["type"] for row in table_after(INPUT, "## Event types")] == list(EVENT_TYPES)
    reasons = [row["reason"] for row in table_after(INPUT, "## Bad input")]
    assert list(dict.fromkeys(reasons)) == list(REASONS)


@pytest.mark.parametrize("row", [row for row in table_after(INPUT, "## Bad input") if row["such as"].startswith("{")])
def test_bad_input(row: Row) -> None:
    """Each example of a bad row has the reason and column that stand beside it."""
    parsed = parse_events(read_block(Block("f", "ndjson", 1, row["such as"].encode())))
    [letter] = parsed.dead_letters.to_pylist()
    assert (letter["reason"], letter["column_name"] or "null") == (row["reason"], row["column"])


def test_samples_of_input(tmp_path: Path) -> None:
    """The sample in NDJSON and the one in CSV are the same three events."""
    content = []
    for language in ("ndjson", "csv"):
        [block] = code_blocks(language, "docs/input.md")
        path = tmp_path / f"events.{language}"
        path.write_text(block.text, encoding="utf-8")
        [file] = list_files([str(path)])
        parsed = parse_events([rows for found in blocks(file) for rows in read_block(found)])
        assert (parsed.events.num_rows, parsed.dead_letters.num_rows) == (3, 0)
        names = [name for name in PARSED_EVENTS.names if not name.startswith("source")]
        content.append(parsed.events.select(names).to_pylist())
    assert content[0] == content[1]


def test_the_adapter_of_the_page(tmp_path: Path) -> None:
    """The example of docs/add-an-adapter.md makes of its export what the page says."""
    page = "docs/add-an-adapter.md"
    module = types.ModuleType("desk")
    exec(code_blocks("python", page)[0].text, module.__dict__)
    export = tmp_path / "tickets.csv"
    export.write_text(code_blocks("csv", page)[0].text, encoding="utf-8")
    found = list(read_adapter(list_files([str(export)]), module.DESK))
    parsed = parse_events([rows for block in found for rows in read_block(block)])
    events = {row: ("event", "", "") for row in parsed.events["source_row"].to_pylist()}
    letters = {
        row["source_row"]: ("dead letter", row["reason"], row["column_name"]) for row in parsed.dead_letters.to_pylist()
    }
    expected = table_after(PAGES[page], "reads the five rows")
    assert {int(row["row"]): (row["becomes"], row["reason"], row["column"]) for row in expected} == events | letters
