"""The command line: the group of commands, `care-kpis batch`, and how a command ends.

Whatever takes long to import (Beam, Arrow, DuckDB) is imported by the command that needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from pipelines.commands.audit import audit as audit_command
from pipelines.commands.check import check
from pipelines.commands.compact import compact
from pipelines.commands.config import config
from pipelines.commands.daily import daily
from pipelines.commands.generate import generate
from pipelines.commands.rebuild import rebuild
from pipelines.commands.remote import load, upload
from pipelines.commands.replay import replay
from pipelines.commands.report import report
from pipelines.commands.settings_options import dead_letter_rate_option, resolve_settings, settings_options
from pipelines.commands.shell import shell
from pipelines.commands.sql import sql
from pipelines.commands.stream import stream
from pipelines.commands.watch import watch
from pipelines.exits import INTERRUPTED, exit_code_of, run_process
from pipelines.parameters import FORMATS, NamedPath
from transforms.errors import UserError

_GROUP_HELP = """Customer-care KPIs from conversation events.

Messages, replies and tickets go in; first response time, handle time, first contact resolution, backlog and more
come out, as Parquet files and one DuckDB file.

\b
Try it on made-up data:
  care-kpis generate --output events
  care-kpis batch --input events --output output
"""
_BATCH_HELP = """Compute the KPIs of event files.

Any option of Apache Beam may follow; without one the run is in memory, in this process.

\b
Examples:
  care-kpis batch --input events.ndjson --output output
  care-kpis batch --input 'data/*.parquet' --output output --config care.toml
  care-kpis batch --input data/*.csv --output output --timezone Europe/Berlin
  care-kpis batch --append --input 'export/*.ndjson' --output output
  care-kpis batch --input 'data/*.parquet' --output output \\
      --runner=FlinkRunner --flink_master=localhost:8081
"""


def _show_version(context: click.Context, _option: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from pipelines.options import package_version

        click.echo(f"care-kpis {package_version()}")
        context.exit()


@click.group(help=_GROUP_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.rich_config(help_config={"text_paragraph_linebreaks": "\n\n", "max_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Version.")
@click.command_panel(
    "Commands",
    commands=[
        "batch",
        "stream",
        "replay",
        "watch",
        "daily",
        "report",
        "sql",
        "shell",
        "check",
        "audit",
        "rebuild",
        "compact",
        "upload",
        "load",
        "generate",
        "config",
    ],
)
def care_kpis() -> None:
    """Holds the commands."""


@care_kpis.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, help=_BATCH_HELP)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="FILE…",
    help="Event files, folders, or patterns such as 'data/*.ndjson'; may be given several times.",
)
@click.option(
    "--output", type=NamedPath(path_type=Path, file_okay=False), required=True, help="Folder for the results."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    help="Format of the input files.  [default: told by content and name]",
)
@settings_options
@dead_letter_rate_option
@click.option(
    "--append",
    is_flag=True,
    help="Add the new files to the result in the output folder; files that were taken already are skipped.",
)
@click.option(
    "--grown-files",
    type=click.Choice(("leave", "reread")),
    default="leave",
    show_default=True,
    help="With --append, a file that has grown since it was taken: leave it alone, or take its new rows.",
)
@click.option(
    "--audit/--no-audit",
    default=False,
    show_default=True,
    help="Publish only what passes the audit; it takes some seconds.",
)
@click.option_panel("Files", options=["--input", "--output", "--format", "--source"])
@click.option_panel("Growing", options=["--append", "--grown-files"])
@click.option_panel("Rules", options=["--config", "--timezone", "--as-of", "--max-dead-letter-rate", "--audit"])
@click.pass_context
def batch(
    context: click.Context,
    inputs: tuple[str, ...],
    output: Path,
    file_format: str | None,
    config: Path | None,
    timezone: str | None,
    as_of: str | None,
    source: str | None,
    max_dead_letter_rate: float,
    append: bool,
    grown_files: Literal["leave", "reread"],
    audit: bool,
) -> None:
    """Computes the KPIs of event files, and prints the summary."""
    from rich.console import Console

    from pipelines.options import BatchOptions, parse_beam_options, quieten_beam, source_notes, split_arguments
    from pipelines.progress import show_progress
    from pipelines.sources.ahead import read_ahead
    from pipelines.summary import show_summary

    more_inputs, beam_args = split_arguments(context.args)
    resolved = resolve_settings(config, timezone, as_of, source)
    if audit:
        from pipelines.audit.expectations import require_great_expectations

        require_great_expectations()
    options = BatchOptions(
        inputs=inputs + more_inputs,
        output=output,
        settings=resolved.settings,
        format=file_format,
        source=source,
        max_dead_letter_rate=max_dead_letter_rate,
        append=append,
        grown_files=grown_files,
        audit=audit,
        beam_args=beam_args,
    )
    ahead = nullcontext() if source or append or beam_args else read_ahead(options.inputs, file_format)
    with show_progress(Console(stderr=True)) as progress, ahead:
        progress.stage("Starting Beam")
        quieten_beam()
        parse_beam_options(beam_args)
        from pipelines.batch import run
        from pipelines.cycle import NothingNew

        summary = run(options, progress)
    if isinstance(summary, NothingNew):
        click.echo("\n".join(f"Note: {note}" for note in summary.notes))
        return
    seen = {row["channel"] for row in summary.kpis}
    unseen = [f"no conversation has the channel {name!r} of {config}." for name in resolved.config_channels - seen]
    show_summary(summary, [*source_notes(source), *sorted(unseen), *summary.notes])


for _command in (
    stream,
    replay,
    watch,
    daily,
    report,
    sql,
    shell,
    check,
    audit_command,
    rebuild,
    compact,
    upload,
    load,
    generate,
    config,
):
    care_kpis.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: what follows the program's name; None takes it from the process.

    Returns:
      Exit code: 0; what pipelines.exits tells of an error (said in one sentence on standard error); 130 when
      interrupted.
      What nobody foresaw stays an exception.
    """
    for output in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a letter gets a question mark instead of ending the run.
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")
    try:
        code = care_kpis.main(args=arguments, prog_name="care-kpis", standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        return exit_code_of(error)
    except NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"Try: {error.ctx.command_path} --help", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def command() -> int:
    """Runs the command of this process; see main."""
    return run_process(main)
