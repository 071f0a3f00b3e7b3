"""The prompt of `care-kpis shell`: lines become statements, statements answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
from rich.console import Console
from rich.text import Text

from pipelines.queries import answer, show
from transforms.errors import UserError

PROMPT, CONTINUED = "care> ", "  ... "

HELP = """A statement in SQL ends with a semicolon and may have several lines.
.tables   tables and views
.macros   macros: values, and tables of a period
.help     this
.quit     leaves; so does Ctrl-D. Ctrl-C drops what was typed."""

_COMMANDS = {
    ".tables": "SELECT table_name AS name, comment FROM (SELECT table_name, comment FROM duckdb_tables() "
    "UNION ALL SELECT view_name, comment FROM duckdb_views() WHERE NOT internal) ORDER BY name",
    ".macros": "SELECT function_name || '(' || array_to_string(parameters, ', ') || ')' AS macro, comment "
    "FROM duckdb_functions() WHERE NOT internal ORDER BY macro",
}
"""Commands that are a query."""

_NAMES = (
    "SELECT table_name FROM duckdb_columns() WHERE NOT internal UNION SELECT column_name FROM duckdb_columns() "
    "WHERE NOT internal UNION SELECT function_name FROM duckdb_functions() WHERE NOT internal"
)
_WORDS = ("SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "JOIN", "DESCRIBE", "SHOW TABLES", *_COMMANDS)

Read = Callable[[str], str]
"""Reads a line, given what to show before it; raises EOFError at the end, KeyboardInterrupt to drop a statement."""


def line_reader(warehouse: duckdb.DuckDBPyConnection) -> Read:
    """How lines are read: with history and completion of names from a terminal, plainly from anything else."""
    if not sys.stdin.isatty():
        return _plain
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "care-kpis" / "history"
    history: History = InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        history = FileHistory(str(path))
    except OSError:
        # Where nothing can be kept the history ends with the session.
        pass
    names = sorted(name for (name,) in warehouse.execute(_NAMES).fetchall())
    completer = WordCompleter([*_WORDS, *names, ".help", ".quit"], ignore_case=True, WORD=True)
    session: PromptSession[str] = PromptSession(history=history, completer=completer, complete_while_typing=False)
    return session.prompt


def talk(warehouse: duckdb.DuckDBPyConnection, read: Read, console: Console) -> None:
    """Reads statements and answers them until the end of the input or .quit.

    Args:
      warehouse: a result, opened for reading.
      read: reads a line.
      console: where answers go.
    """
    lines: list[str] = []
    while True:
        try:
            line = read(CONTINUED if lines else PROMPT)
        except KeyboardInterrupt:
            lines = []
            continue
        except EOFError:
            line = ".quit"
        if not lines and line.strip().startswith("."):
            if not _command(warehouse, line.strip().rstrip(";"), console):
                return
            continue
        at_end = bool(lines) and line == ".quit"
        if not at_end and (lines or line.strip()):
            lines.append(line)
        text = "\n".join(lines)
        if lines and (at_end or is_complete(text)):
            lines = []
            _answer(warehouse, text, console)
        if at_end:
            return


def is_complete(text: str) -> bool:
    """Whether a statement ends here: at a semicolon that is in no text, name or comment."""
    # What is open swallows a mark on the next line.
    marked = f"{text}\n0".encode()
    tokens = [t for t in duckdb.tokenize(marked.decode()) if t[1] != duckdb.token_type.comment]
    is_closed = bool(tokens) and tokens[-1] == (len(marked) - 1, duckdb.token_type.numeric_const)
    return is_closed and len(tokens) > 1 and marked[tokens[-2][0] : tokens[-2][0] + 1] == b";"


def _plain(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _command(warehouse: duckdb.DuckDBPyConnection, command: str, console: Console) -> bool:
    """Runs a command that begins with a dot; False where it ends the session."""
    if command in (".quit", ".exit"):
        return False
    if command in _COMMANDS:
        _answer(warehouse, _COMMANDS[command], console)
    elif command == ".help":
        console.print(HELP, markup=False)
    else:
        console.print(f"There is no {command}: .help lists what there is.", markup=False)
    return True


def _answer(warehouse: duckdb.DuckDBPyConnection, query: str, console: Console) -> None:
    """Answers a query; what is wrong with it is said, and the session goes on."""
    try:
        reader = answer(warehouse, query)
        if reader is not None:
            show(reader, console)
    except UserError as error:
        console.print(Text(f"Error: {error}"))
    except KeyboardInterrupt:
        console.print("Stopped.")
