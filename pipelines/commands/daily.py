"""`care-kpis daily`: the one command for a scheduler."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from pipelines.commands.delivery_options import delivery_options, targets_of
from pipelines.commands.report import LOCALES
from pipelines.commands.settings_options import (
    config_option,
    dead_letter_rate_option,
    resolve_settings,
    timezone_option,
)
from pipelines.parameters import FORMATS, NamedPath
from transforms.errors import UserError

_HELP = """Do what a day needs: take its new files, audit, publish, write the report, deliver it.

It is safe to run twice: files are known by their content, and nothing is delivered twice. Days that were missed are
made up for, and days whose files come late too. In --input, {date} stands for the day (2026-01-14; {date:%Y%m%d} is
20260114); without it, all files there that are new are taken.

\b
Exit codes:
  0    done, also where there were no files for the day
  2    wrong use or input; nothing was published
  3    the audit failed; readers have the earlier result
  4    another run holds the lock
  5    published and written, but a report was not delivered: run again
  6    no files for the day (with --require-files)
  130  interrupted

\b
Examples:
  care-kpis daily --input 'export/{date}*.parquet' --output output
  care-kpis daily --input export --output output --date 2026-01-14
  care-kpis daily --input export --output output --backfill 2026-01-01..2026-01-14
  care-kpis daily --input export --output output --delivery delivery.toml
"""


def _range(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[date, date] | None:
    from pipelines.daily.days import parse_range

    if text is None:
        return None
    try:
        return parse_range(text)
    except ValueError:
        raise click.BadParameter(f"expected two days such as 2026-01-01..2026-01-14, got {text!r}.") from None


@click.command(help=_HELP)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="Files, folders or patterns of event files, {date} for the day; may be given several times.",
)
@click.option("--output", type=NamedPath(path_type=Path, file_okay=False), required=True, help="Folder of the result.")
@click.option(
    "--reports",
    type=NamedPath(path_type=Path, file_okay=False),
    default="reports",
    show_default=True,
    help="Folder for the reports.",
)
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Format of the files.  [default: told]")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="The day.  [default: yesterday, in the time zone of the settings]",
)
@click.option("--backfill", callback=_range, metavar="FROM..TO", help="Make up for these days; delivers nothing.")
@click.option("--require-files", is_flag=True, help="Fail where there are no files for the day.")
@config_option
@timezone_option
@dead_letter_rate_option
@click.option(
    "--grown-files",
    type=click.Choice(("leave", "reread")),
    default="leave",
    show_default=True,
    help="A file that has grown since it was taken: leave it alone, or take its new rows.",
)
@click.option("--audit/--no-audit", default=True, show_default=True, help="Publish only what passes the audit.")
@click.option("--locale", type=click.Choice(LOCALES), default="en_GB", show_default=True, help="Of the reports.")
@delivery_options
@click.option_panel("Files", options=["--input", "--output", "--reports", "--format", "--grown-files"])
@click.option_panel("Days", options=["--date", "--backfill", "--require-files"])
@click.option_panel("Rules", options=["--config", "--timezone", "--max-dead-letter-rate", "--audit", "--locale"])
def daily(
    inputs: tuple[str, ...],
    output: Path,
    reports: Path,
    file_format: str | None,
    day: Any,
    backfill: tuple[date, date] | None,
    require_files: bool,
    config: Path | None,
    timezone: str | None,
    max_dead_letter_rate: float,
    grown_files: Literal["leave", "reread"],
    audit: bool,
    locale: str,
    **delivery: Any,
) -> None:
    """Runs a day, and prints a line for each thing that was done."""
    if day is not None and backfill is not None:
        raise UserError("Expected --date or --backfill, got both: leave one out.")
    from rich.console import Console

    from pipelines.daily.run import DailyOptions, run_daily
    from pipelines.options import BatchOptions, quieten_beam
    from pipelines.progress import show_progress
    from pipelines.report.packages import require_packages

    require_packages()
    if audit:
        from pipelines.audit.expectations import require_great_expectations

        require_great_expectations()
    batch = BatchOptions(
        inputs=inputs,
        output=output,
        settings=resolve_settings(config, timezone, None, None).settings,
        format=file_format,
        max_dead_letter_rate=max_dead_letter_rate,
        append=True,
        grown_files=grown_files,
        audit=audit,
    )
    options = DailyOptions(
        batch=batch,
        reports=reports,
        locale=locale,
        day=None if day is None else day.date(),
        backfill=backfill,
        targets=targets_of(**delivery),
        require_files=require_files,
    )
    quieten_beam()
    with show_progress(Console(stderr=True)) as progress:
        run_daily(options, click.echo, progress, datetime.now(UTC))
