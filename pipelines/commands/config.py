"""`care-kpis config`: the settings in force, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from pipelines.commands.settings_options import resolve_settings, settings_options

if TYPE_CHECKING:
    from pipelines.settings import ResolvedSettings

_HELP = """Show the settings in force, and where each comes from.

What comes later wins: built-in defaults, what --source implies, care.toml, options.

\b
Examples:
  care-kpis config
  care-kpis config --config care.toml --timezone Europe/Berlin
"""


@click.command(help=_HELP)
@settings_options
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
    for row in _setting_rows(resolve_settings(config, timezone, as_of, source)):
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


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
