"""`care-kpis upload` and `care-kpis load`: a result on another file system, and back on another machine."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import NamedPath
from transforms.errors import UserError

_UPLOAD_HELP = """Put a result where other machines find it.

The Parquet files go to any file system that Apache Beam knows, or to a mounted folder; files that are there already are
not sent again. A reader there sees the old result or the new one.

\b
Examples:
  care-kpis upload output gs://bucket/care
  care-kpis upload output /mnt/share/care
"""
_LOAD_HELP = """Fetch a result that was uploaded, or what a stream on a cluster wrote; make a DuckDB file of it here.

Files that are here already are not fetched again, and changes of a stream that were merged are not merged again. Run it
as often as you like, from a schedule too.

\b
Examples:
  care-kpis load gs://bucket/care --output care
  care-kpis load gs://bucket/stream --output live --remove-loaded
"""


@click.command(help=_UPLOAD_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False, exists=True))
@click.argument("url")
def upload(output: Path, url: str) -> None:
    """Says what was sent."""
    from pipelines.options import quieten_beam
    from sinks.remote import upload as send

    quieten_beam()
    done = send(output, url)
    click.echo(f"Commit {done.commit_id}: {done.files:,} files sent ({done.bytes / 1e6:,.1f} MB), {done.kept:,} kept")


@click.command(help=_LOAD_HELP)
@click.argument("url")
@click.option("--output", type=NamedPath(path_type=Path, file_okay=False), required=True, help="Folder for the result.")
@click.option(
    "--remove-loaded", is_flag=True, help="Remove a stream's changes once they are merged: no other result needs them."
)
def load(url: str, output: Path, remove_loaded: bool) -> None:
    """Says what was fetched, or merged."""
    from pipelines.options import quieten_beam
    from sinks.change_files import has_changes
    from sinks.remote import load as fetch

    quieten_beam()
    if has_changes(url):
        _merge(url, output, remove_loaded)
        return
    if remove_loaded:
        raise UserError(
            f"--remove-loaded: expected the change files of a stream at {url}, got an uploaded result, which has none: "
            "leave it out."
        )
    done = fetch(url, output)
    click.echo(
        f"Commit {done.commit_id}: {done.files:,} files fetched ({done.bytes / 1e6:,.1f} MB), {done.kept:,} kept"
    )
    click.echo(f"DuckDB {output / 'care.duckdb'}")


def _merge(url: str, output: Path, remove: bool) -> None:
    """Merges changes, and says how many."""
    from pipelines.unbounded.loading import load_changes

    done = load_changes(url, output, remove)
    if not done.changes:
        click.echo("Nothing new: the result is as it was.")
        return
    as_of = "no event yet" if done.as_of is None else f"as of {done.as_of:%Y-%m-%d %H:%M:%S} UTC"
    click.echo(f"Commit {done.commit_id}: {done.changes:,} changes merged, {done.rows:,} rows, {as_of}")
    click.echo(f"DuckDB {output / 'care.duckdb'}")
