"""The tables of a report: what the page, the CSV file and the workbook are all made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNITS = ("text", "count", "number", "seconds", "rate", "score", "date", "moment", "row")
"""Kinds of columns; `row`: each row's own, given by Sheet.units."""


@dataclass(frozen=True)
class Column:
    """A column: its name for programs, its label in the reader's language, its unit."""

    name: str
    label: str
    unit: str


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
      name: for programs; at most 31 letters.
      title: in the reader's language.
      keys: how many of the first columns say what a row is about.
      columns: its columns.
      rows: values in the order of the columns: text, numbers, dates, moments in UTC; None or NaN for what is not known.
      units: of each row's columns with the unit `row`.
      note: a sentence about it.
      shown: how many rows the page shows; the files have all of them.
    """

    name: str
    title: str
    keys: int
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]
    units: tuple[str, ...] = ()
    note: str = ""
    shown: int = 1_000_000

    def unit(self, row: int, column: int) -> str:
        """The unit of a cell."""
        unit = self.columns[column].unit
        return self.units[row] if unit == "row" else unit
