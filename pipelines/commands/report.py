"""`care-kpis report`: what people read in the morning."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any, Literal

import rich_click as click

from pipelines.parameters import NamedPath
from transforms.errors import UserError

LOCALES = ("en_GB", "de_DE", "zh_CN")

_HELP = """Write a report on a day, a week or a month.

It is one HTML file that needs nothing else (mail it, print it, open it on a phone), the same numbers as CSV and xlsx,
and a short text for mail or chat. Without --date, --last-week or --month it is about the latest complete day.

\b
Examples:
  care-kpis report output
  care-kpis report output --date 2026-01-14 --locale de_DE
  care-kpis report output --last-week --account acme --channel email
  care-kpis report output --month 2026-01 --reports reports/
"""


def _month(_context: click.Context, _option: click.Parameter, text: str | None) -> date | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{3}-(0[1-9]|1[0-2])", text):
        raise click.BadParameter(f"expected a month such as 2026-01, got {text!r}.")
    return date.fromisoformat(f"{text}-01")


@click.command(help=_HELP)
@click.argument("output", type=NamedPath(path_type=Path, file_okay=False))
@click.option(
    "--date", "day", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="A day in the zone of the result."
)
@click.option("--last-week", is_flag=True, help="The latest complete week, from Monday.")
@click.option("--month", callback=_month, metavar="YYYY-MM", help="A month.")
@click.option(
    "--account", "accounts", multiple=True, metavar="NAME", help="Only this account; '' is the one without a name."
)
@click.option("--channel", "channels", multiple=True, metavar="NAME", help="Only this channel; several times for more.")
@click.option("--locale", type=click.Choice(LOCALES), default="en_GB", show_default=True, help="Language and formats.")
@click.option(
    "--reports",
    type=NamedPath(path_type=Path, file_okay=False),
    default="reports",
    show_default=True,
    help="Folder for the files.",
)
@click.option_panel("Period", options=["--date", "--last-week", "--month"])
@click.option_panel("Contents", options=["--account", "--channel", "--locale"])
@click.option_panel("Files", options=["--reports"])
def report(
    output: Path,
    day: Any,
    last_week: bool,
    month: date | None,
    accounts: tuple[str, ...],
    channels: tuple[str, ...],
    locale: str,
    reports: Path,
) -> None:
    """Writes the files, and says what they say."""
    if (day is not None) + last_week + (month is not None) > 1:
        raise UserError("Expected one of --date, --last-week and --month, got more: leave out all but one.")
    from pipelines.report.packages import require_packages

    require_packages()
    from pipelines.report.build import write_report
    from pipelines.report.warehouse import Filters

    grain: Literal["day", "week", "month"] = "week" if last_week else "month" if month is not None else "day"
    written = write_report(
        output,
        reports,
        grain=grain,
        day=day.date() if day is not None else month,
        filters=Filters(accounts, channels),
        locale=locale,
    )
    click.echo(written.text)
    for path in reversed(written.paths):
        click.echo(path)
