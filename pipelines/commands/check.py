"""`care-kpis check`: is a result whole, and do its parts agree?"""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath

FAILED = 1
"""Exit code where a check failed or could not be run."""

_HELP = """Check that a result is whole, and that its parts agree.

It reads everything and writes nothing: files and their checksums, Parquet against DuckDB row for row, conversations
against turns, and KPIs against what they are made of. The exit code is 0, or 1 where something is wrong.

\b
Example:
  care-kpis check output
"""
_COLORS = {"ok": "green", "failed": "bold red", "not run": "yellow"}


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.pass_context
def check(context: click.Context, output: Path) -> None:
    """Prints a line for each check."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sinks.check import advice, check_result

    findings = check_result(output)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("Result", no_wrap=True)
    table.add_column("Found", overflow="fold")
    for finding in findings:
        table.add_row(finding.check, Text(finding.state, _COLORS[finding.state]), Text(finding.found))
    Console(highlight=False).print(table)
    if (sentence := advice(findings, output)) is not None:
        click.echo(f"\n{sentence}")
        context.exit(FAILED)
