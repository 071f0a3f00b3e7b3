"""`care-kpis generate`: events of an invented care team."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import rich_click as click

from pipelines.parameters import FORMATS, NamedPath

_HELP = """Make events of an invented care team, to try things on.

The same options give the same events, byte for byte.

\b
Examples:
  care-kpis generate --output events
  care-kpis generate --output events --events 1000000 --format csv
"""


@click.command(help=_HELP)
@click.option(
    "--output", type=NamedPath(path_type=Path, file_okay=False), required=True, help="Folder for the event files."
)
@click.option("--events", type=click.IntRange(1), default=100_000, show_default=True, help="Rows in all.")
@click.option("--format", "file_format", type=click.Choice(FORMATS), default="parquet", show_default=True)
@click.option("--files", type=click.IntRange(1), default=1, show_default=True, help="How many files.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same events.")
@click.option(
    "--start", type=click.DateTime(["%Y-%m-%d"]), default="2026-01-01", show_default=True, help="First day, UTC."
)
@click.option("--days", type=click.IntRange(1), default=90, show_default=True, help="Length of the period.")
@click.option("--accounts", type=click.IntRange(1), default=3, show_default=True, help="Brands.")
@click.option("--bad-rate", type=click.FloatRange(0, 1), metavar="SHARE", help="Share of rows that cannot be used.")
@click.option_panel("Files", options=["--output", "--format", "--files"])
@click.option_panel("Contents", options=["--events", "--seed", "--start", "--days", "--accounts", "--bad-rate"])
def generate(
    output: Path,
    events: int,
    file_format: str,
    files: int,
    seed: int,
    start: datetime,
    days: int,
    accounts: int,
    bad_rate: float | None,
) -> None:
    """Writes made-up events, and says what to do with them."""
    from fixtures.generate import write_events

    rates: dict[str, Any] = {} if bad_rate is None else {"bad_rate": bad_rate}
    paths = write_events(
        output,
        events=events,
        seed=seed,
        format=file_format,
        files=files,
        start=start.date(),
        days=days,
        accounts=accounts,
        **rates,
    )
    for path in paths:
        click.echo(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
    click.echo(f"Next: care-kpis batch --input {shlex.quote(str(output))} --output output")
