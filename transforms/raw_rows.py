"""Rows as a source gave them: what every reader hands over and `parse_events` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.times import Mask

Rows = npt.NDArray[np.int64]


class Originals(Protocol):
    """Gives rows back as they came, for those that become dead letters."""

    def restate(self, rows: Rows) -> list[str]:
        """JSON text of the rows with these places (from 0), without `text`."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """Rows that could not even be taken apart: their places in the source and their first characters."""

    positions: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    raw: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawRows:
    """Rows of one source as they came.

    Attributes:
      source: file or topic; or that of each row, first those in `columns`, then the unreadable ones.
      columns: the contract's columns that came, in whatever Arrow types; one that is not there is null. `text` need
        not be carried where its type is known to be right.
      positions: int64, place of each row in the source (line or row from 1, or offset).
      originals: gives the rows back for the dead letters.
      partition: partition of a topic; None for a file.
      all_text: every value came as text and is to be parsed, as in CSV.
      faults: rows that the reader itself found at fault, by (column, reason); their values are null.
      unreadable: rows that are not in `columns`.
      unknown_columns: names of columns that the contract does not have.
      not_after: no event may be later (microseconds); None: any time in the contract's range.
    """

    source: str | pa.DictionaryArray
    columns: Mapping[str, pa.Array]
    positions: Rows
    originals: Originals
    partition: int | None = None
    all_text: bool = False
    faults: Mapping[tuple[str, str], Mask] = field(default_factory=dict)
    unreadable: Unreadable = Unreadable()
    unknown_columns: tuple[str, ...] = ()
    not_after: int | None = None
