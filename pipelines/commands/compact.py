"""`care-kpis compact`: fewer and better filled files, the same tables."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath

_HELP = """Pack a result that has grown for a while.

Small files of open rows are put together, months that have grown large are cut into more files, and the DuckDB file is
made anew without holes. The tables stay as they are; a crash leaves the result as it was.

\b
Example:
  care-kpis compact output
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False, exists=True))
def compact(output: Path) -> None:
    """Says what became of the files."""
    from pipelines.compaction import compact as pack

    done = pack(output)
    click.echo(f"Commit     {done.commit_id} (the same as before)")
    click.echo(f"Files      {done.files[0]:,} -> {done.files[1]:,}")
    click.echo(f"Open rows  {done.row_files[0]:,} -> {done.row_files[1]:,} files")
    click.echo(f"DuckDB     {done.warehouse_bytes[0] / 1e6:,.1f} MB -> {done.warehouse_bytes[1] / 1e6:,.1f} MB")
