"""`care-kpis sql`: a query of a result, for people without a database client."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath
from transforms.errors import UserError

_HELP = """Ask a result in SQL.

The DuckDB file is opened for reading only. Times are in the zone of the run. With - for the query it is read from
standard input. docs/cookbook.md has twenty questions with their queries.

\b
Examples:
  care-kpis sql output "SHOW TABLES"
  care-kpis sql output "FROM kpis_by_team('2026-01-05', '2026-01-12')" --csv
  care-kpis sql output "FROM waiting_now" --parquet waiting.parquet
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV; text that looks like a formula gets a ' in front.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
@click.option("--parquet", type=NamedPath(path_type=Path, dir_okay=False), metavar="FILE", help="Write a Parquet file.")
@click.option_panel("Instead of a table", options=["--csv", "--json", "--parquet"])
def sql(output: Path, query: str, as_csv: bool, as_json: bool, parquet: Path | None) -> None:
    """Prints or writes the answer."""
    if as_csv + as_json + (parquet is not None) > 1:
        raise UserError("Expected one of --csv, --json and --parquet, got several: ask once for each.")
    from rich.console import Console

    from pipelines.queries import answer, open_warehouse, show, write_csv, write_json, write_parquet

    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        raise UserError('Expected SQL such as "SHOW TABLES", got nothing to run: give a query after the folder.')
    with open_warehouse(output) as warehouse:
        reader = answer(warehouse, text)
        if reader is None:
            click.echo("Done; the query has no rows to show.", err=True)
        elif as_csv:
            write_csv(reader, sys.stdout)
        elif as_json:
            write_json(reader, sys.stdout)
        elif parquet is not None:
            click.echo(f"{write_parquet(reader, parquet):,} rows in {parquet}")
        else:
            show(reader, Console(highlight=False))
