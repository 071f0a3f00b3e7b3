"""What an adapter is: how the export of one platform becomes rows of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

SOURCE_ROW = "row"
"""Column by which converted rows say which row of the export they were made from (int64, from 0)."""


@dataclass(frozen=True)
class Adapter:
    """How a platform's export (CSV with a header) is turned into events.

    To add a platform, write one module beside this one that defines an Adapter, list it in `ADAPTERS`, and test
    `convert` with small tables.

    Attributes:
      name: what the user gives as --source.
      description: one sentence: what the export is, and what to keep in mind.
      columns: columns of the export that are read; it must have them all, others are ignored.
      convert: makes events of the whole export, for threads may reach across its files. It gets a table of `columns`,
        all of them text (null where empty), and returns columns of the contract (those that it leaves out are
        null) and SOURCE_ROW. It leaves a value that makes no sense as it is: the validation that follows makes a
        dead letter of it, with the row as it came.
      settings: keys of [default] in care.toml that the platform needs, as the user would write them; what the user
        gives comes first.
    """

    name: str
    description: str
    columns: tuple[str, ...]
    convert: Callable[[pa.Table], pa.Table]
    settings: Mapping[str, object] = field(default_factory=dict)
