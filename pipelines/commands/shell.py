"""`care-kpis shell`: queries of a result one after another, at a prompt."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath

_HELP = """Ask a result in SQL, one query after another.

A statement ends with a semicolon and may have several lines. .tables lists what there is, .help the rest. The DuckDB
file is opened for reading only, and the result stays the same until you leave, whatever runs meanwhile.

\b
Example:
  care-kpis shell output
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
def shell(output: Path) -> None:
    """Asks until the end of the input or .quit."""
    from rich.console import Console

    from pipelines.prompt import line_reader, talk
    from pipelines.queries import open_warehouse

    with open_warehouse(output) as warehouse:
        talk(warehouse, line_reader(warehouse), Console(highlight=False))
