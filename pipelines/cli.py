"""The command line: `care-kpis batch`, `generate` and `config`.

Whatever takes long to import (Beam, Arrow, DuckDB) is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from pipelines.parameters import NamedPath
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.settings import ResolvedSettings

FORMATS = ("ndjson", "csv", "parquet", "arrow")
INTERRUPTED = 130

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
  care-kpis batch --input 'data/*.parquet' --output output \\
      --runner=FlinkRunner --flink_master=localhost:8081
"""
_GENERATE_HELP = """Make events of an invented care team, to try things on.

The same options give the same events, byte for byte.

\b
Examples:
  care-kpis generate --output events
  care-kpis generate --output events --events 1000000 --format csv
"""
_CONFIG_HELP = """Show the settings in force, and where each comes from.

What comes later wins: built-in defaults, what --source implies, care.toml, options.

\b
Examples:
  care-kpis config
  care-kpis config --config care.toml --timezone Europe/Berlin
"""


def _show_version(context: click.Context, _option: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from pipelines.options import package_version

        click.echo(f"care-kpis {package_version()}")
        context.exit()


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every command with settings has."""
    options = (
        click.option("--config", type=NamedPath(path_type=Path), metavar="FILE", help="Settings: a care.toml."),
        click.option("--timezone", metavar="ZONE", help="IANA zone in which days are cut, such as Europe/Berlin."),
        click.option(
            "--as-of",
            metavar="TIME",
            help="Moment up to which time has passed, such as 2026-02-01T00:00:00Z.  [default: the latest event]",
        ),
        click.option(
            "--source", metavar="NAME", help="Whose export the input is, such as twcs.  [default: care events]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(help=_GROUP_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.rich_config(help_config={"text_paragraph_linebreaks": "\n\n", "max_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Version.")
@click.command_panel("Commands", commands=["batch", "generate", "config"])
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
@_settings_options
@click.option(
    "--max-dead-letter-rate",
    type=click.FloatRange(0, 1),
    default=0.10,
    show_default=True,
    metavar="SHARE",
    help="Fail where more than this share of the rows cannot be used.",
)
@click.option_panel("Files", options=["--input", "--output", "--format", "--source"])
@click.option_panel("Rules", options=["--config", "--timezone", "--as-of", "--max-dead-letter-rate"])
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
) -> None:
    """Computes the KPIs of event files, and prints the summary."""
    from rich.console import Console

    from pipelines.options import BatchOptions, parse_beam_options, quieten_beam, source_notes, split_arguments
    from pipelines.progress import show_progress
    from pipelines.summary import show_summary

    more_inputs, beam_args = split_arguments(context.args)
    resolved = _resolve(config, timezone, as_of, source)
    options = BatchOptions(
        inputs=inputs + more_inputs,
        output=output,
        settings=resolved.settings,
        format=file_format,
        source=source,
        max_dead_letter_rate=max_dead_letter_rate,
        beam_args=beam_args,
    )
    with show_progress(Console(stderr=True)) as progress:
        progress.stage("Starting Beam")
        quieten_beam()
        parse_beam_options(beam_args)
        from pipelines.batch import run

        summary = run(options, progress)
    seen = {row["channel"] for row in summary.kpis}
    unseen = [f"no conversation has the channel {name!r} of {config}." for name in resolved.config_channels - seen]
    show_summary(summary, [*source_notes(source), *sorted(unseen)])


@care_kpis.command(help=_GENERATE_HELP)
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


@care_kpis.command(help=_CONFIG_HELP)
@_settings_options
def config(config: Path | None, timezone: str | None, as_of: str | None, source: str | None) -> None:
    """Prints the settings in force."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Setting", no_wrap=True)
    table.add_column("Value", no_wrap=True)
    table.add_column("From", overflow="fold")
    for row in _setting_rows(_resolve(config, timezone, as_of, source)):
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _resolve(config: Path | None, timezone: str | None, as_of: str | None, source: str | None) -> ResolvedSettings:
    """The settings that these options ask for."""
    from pipelines.options import source_settings
    from pipelines.settings import load_settings

    moment: datetime | str | None = as_of
    # What is no time at all is refused there, with the same sentence as a wrong as_of in care.toml.
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(as_of) if as_of is not None else None
    return load_settings(config, {"timezone": timezone, "as_of": moment}, source_settings(source))


def _setting_rows(resolved: ResolvedSettings) -> Iterator[tuple[str, str, str]]:
    """Name, value and origin of each setting; of a channel those that do not come from where [default] has its own."""
    from pipelines.settings import GLOBAL_KEYS, settings_record

    record, origins = settings_record(resolved.settings), resolved.origins
    unset = {"as_of": "the latest event", "repeat_contact": "off"}
    for key in GLOBAL_KEYS:
        yield key, unset[key] if record[key] is None else record[key], origins[key]
    tables = {"default": record["default"]} | {f"channel.{name}": values for name, values in record["channel"].items()}
    for table, values in tables.items():
        for key, value in values.items():
            origin = origins[f"{table}.{key}"]
            if table == "default" or origin != origins[f"default.{key}"]:
                yield f"{table}.{key}", str(value).lower() if isinstance(value, bool) else value, origin


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: what follows the program's name; None takes it from the process.

    Returns:
      Exit code: 0; 2 for what the user can mend (said in one sentence on standard error); 130 when interrupted.
      What nobody foresaw stays an exception.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe that cannot show a letter gets a question mark instead of ending the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = care_kpis.main(args=arguments, prog_name="care-kpis", standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
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
