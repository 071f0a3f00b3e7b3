"""Kinds of values on the command line."""

from __future__ import annotations

from typing import Any

import click

FORMATS = ("ndjson", "csv", "parquet", "arrow")
"""Formats of event files: a copy, since the help must not import the readers."""


class NamedPath(click.Path):
    """A path that is not the empty text, which an unset variable of a shell leaves and which would mean "here"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses the empty text."""
        if value == "":
            self.fail("expected a path, got an empty text: is a variable of the shell unset?", param, ctx)
        return super().convert(value, param, ctx)
