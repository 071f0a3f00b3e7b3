"""`care-kpis replay`: mended dead letters and late events, back into a stream's result."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from pipelines.parameters import FORMATS, NamedPath

_HELP = """Feed mended dead letters and late events back into a stream's result.

Write them to files, mend them, and give the files back while the stream is stopped. Nothing counts twice.

\b
Examples:
  care-kpis replay output --export-dead-letters letters.ndjson --reason bad_time
  care-kpis replay output --export-late-events late.ndjson
  care-kpis replay output --input letters.ndjson --input late.ndjson
"""


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.option("--input", "inputs", multiple=True, metavar="FILE", help="Files to take, as of care-kpis batch.")
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Format of the files.")
@click.option("--config", type=NamedPath(path_type=Path), metavar="FILE", help="Settings of the stream: its care.toml.")
@click.option("--timezone", metavar="ZONE", help="IANA zone of the stream.")
@click.option(
    "--export-dead-letters",
    "letters",
    type=NamedPath(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the raw rows of the dead letters there, one a line.",
)
@click.option("--reason", "reasons", multiple=True, metavar="REASON", help="Only dead letters with this reason.")
@click.option(
    "--export-late-events",
    "late",
    type=NamedPath(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the late events there, as NDJSON.",
)
@click.option_panel("Back in", options=["--input", "--format", "--config", "--timezone"])
@click.option_panel("Out to be mended", options=["--export-dead-letters", "--reason", "--export-late-events"])
def replay(
    output: Path,
    inputs: tuple[str, ...],
    file_format: str | None,
    config: Path | None,
    timezone: str | None,
    letters: Path | None,
    reasons: tuple[str, ...],
    late: Path | None,
) -> None:
    """Writes what is to be mended, or takes it back."""
    from pipelines.commands.settings_options import resolve_settings
    from pipelines.options import quieten_beam
    from transforms.errors import UserError

    if not inputs and letters is None and late is None:
        raise UserError("Expected --input, --export-dead-letters or --export-late-events, got none of them.")
    quieten_beam()
    from pipelines.stream import replay as replaying
    from pipelines.stream.run import Watcher

    if letters is not None:
        click.echo(f"{replaying.export_letters(output, letters, reasons):,} dead letters in {letters}")
    if late is not None:
        click.echo(f"{replaying.export_late(output, late):,} late events in {late}")
    if inputs:
        settings = resolve_settings(config, timezone, None, None).settings
        found = replaying.replay(output, settings, inputs, file_format, Watcher())
        click.echo(
            f"{found.read:,} rows read: {found.kept:,} events kept, {found.dead:,} dead letters, "
            f"{found.duplicates:,} exact duplicates, {found.late:,} late events"
        )
        if found.late:
            click.echo("Late events of conversations that are not open any more stay out; a batch run heals them.")
