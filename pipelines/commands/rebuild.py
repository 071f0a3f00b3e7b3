"""`care-kpis rebuild`: makes what is damaged in a result anew from what is not."""

from __future__ import annotations

import shlex
from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath

_HELP = """Make what is damaged in a result anew from what is not.

DuckDB is made from Parquet, damaged Parquet files from DuckDB, and a lost manifest from both where they say the same.
Nothing is computed again, and the commit stays the same one. Readers see the old result until the new one is whole.

\b
Example:
  care-kpis rebuild output
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
def rebuild(output: Path) -> None:
    """Rebuilds a result, and says what was done."""
    from sinks.rebuild import rebuild as rebuild_result

    done = rebuild_result(output)
    for path in done.restored:
        click.echo(f"Restored {path} from care.duckdb")
    if done.is_warehouse_new:
        click.echo("Made     care.duckdb from the Parquet files")
    click.echo(f"Kept     {done.linked:,} files as they were")
    for note in done.notes:
        click.echo(f"Note: {note}")
    click.echo(f"Result   {output}, commit {done.commit_id:,} as before")
    click.echo(f"Next     care-kpis check {shlex.quote(str(output))}")
