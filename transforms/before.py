"""What a result keeps for the cycle after it: its open rows and wakes, and up to when time had passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from transforms.hashing import Hashes
from transforms.open_rows import key_hashes
from transforms.shards import shard_of


@dataclass(frozen=True)
class Before:
    """The result that a cycle begins with.

    Attributes:
      rows: its files of open rows.
      woken: hashes of the keys whose wake a moment has reached.
      as_of: the moment up to which time had passed, microseconds; None where it has no event.
      statistics: reads rows of its kpi_statistics.
      keys_of_customers: hashes of the keys of all its conversations with some customers (account_id, customer_id).
      replaced: sources whose rows are read again; the old ones do not count any more.
      everything: every key is looked at, also those without new rows.
    """

    rows: tuple[Path, ...]
    woken: Callable[[int], Hashes]
    as_of: int | None
    statistics: Callable[[Mapping[str, list[int]]], pa.Table]
    keys_of_customers: Callable[[pa.Table], Hashes]
    replaced: frozenset[str] = frozenset()
    everything: bool = False

    def keys_to_look_at(self, new: Hashes, shard: int, shards: int, as_of: int) -> Hashes:
        """The keys of a shard in which anything may change: those of new rows, and those that time alone moves.

        Args:
          new: hashes of the conversation keys of the shard's new rows.
          shard: number of the shard.
          shards: number of shards.
          as_of: the moment up to which time has passed now, microseconds.

        Returns:
          Hashes, ascending, each once.
        """
        parts = [self.woken(as_of)]
        if self.everything or self.replaced:
            parts.append(key_hashes(self.rows, None if self.everything else self.replaced))
        others = np.concatenate(parts)
        return np.unique(np.concatenate([new, others[shard_of(others, shards) == shard]]))
