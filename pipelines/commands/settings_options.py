"""The options that commands with settings share, and the settings that they ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from pipelines.parameters import NamedPath

if TYPE_CHECKING:
    from pipelines.settings import ResolvedSettings


config_option = click.option("--config", type=NamedPath(path_type=Path), metavar="FILE", help="Settings: a care.toml.")
timezone_option = click.option(
    "--timezone", metavar="ZONE", help="IANA zone in which days are cut, such as Europe/Berlin."
)
dead_letter_rate_option = click.option(
    "--max-dead-letter-rate",
    type=click.FloatRange(0, 1),
    default=0.10,
    show_default=True,
    metavar="SHARE",
    help="Fail where more than this share of the rows cannot be used.",
)


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --config, --timezone, --as-of and --source to a command."""
    options = (
        config_option,
        timezone_option,
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


def resolve_settings(
    config: Path | None, timezone: str | None, as_of: str | None, source: str | None
) -> ResolvedSettings:
    """The settings that these options ask for.

    Raises:
      UserError: one of them is not what it has to be.
    """
    from pipelines.options import source_settings
    from pipelines.settings import load_settings

    moment: datetime | str | None = as_of
    # What is no time at all is refused there, with the same sentence as a wrong as_of in care.toml.
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(as_of) if as_of is not None else None
    return load_settings(config, {"timezone": timezone, "as_of": moment}, source_settings(source))
