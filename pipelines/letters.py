"""What a cycle changes in the dead letters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cycle import Cycle
from pipelines.work_folder import NOW_LETTERS_FOLDER, WAS_LETTERS_FOLDER, read_letters
from sinks.publish import Snapshot
from sinks.stored import stored_letters
from transforms.changes import changed_rows
from transforms.dead_letters import letters_by_reason
from transforms.tables import DEAD_LETTERS


@dataclass(frozen=True)
class Letters:
    """The dead letters of a cycle.

    Attributes:
      removed: rows of DEAD_LETTERS of the result before that go.
      added: rows of DEAD_LETTERS that come, in the order of their places.
    """

    removed: pa.Table
    added: pa.Table

    @staticmethod
    def of(snapshot: Snapshot, work: Path, cycle: Cycle) -> Letters:
        """Reads what the pipeline left.

        A conflict is decided among all copies of an event, so an old one may go or an old copy become one; and the
        letters of a file that is read again are all made anew.
        """
        parsed, now, was = (read_letters(work, folder) for folder in (None, NOW_LETTERS_FOLDER, WAS_LETTERS_FOLDER))
        removed, added = (
            side.take(pa.array(rows))
            for side, rows in zip((was, now), changed_rows(was, now, DEAD_LETTERS.key), strict=True)
        )
        replaced = () if cycle.growth is None else cycle.growth.plan.replaced
        if replaced and snapshot.previous is not None:
            old = stored_letters(snapshot.previous, [taken.source for taken in replaced])
            removed = pa.concat_tables([removed, old.filter(pc.not_equal(old["stage"], "pair"))])
        order = [(name, "ascending") for name in DEAD_LETTERS.key]
        return Letters(removed, pa.concat_tables([parsed, added]).sort_by(order).combine_chunks())

    @property
    def change(self) -> int:
        """By how many rows the table grows."""
        return int(self.added.num_rows - self.removed.num_rows)

    def by_reason(self, counts: Counter[str]) -> Counter[str]:
        """By how many rows of each reason the table grows, as the pipeline counted them."""
        prefix = "dead letter "
        by_reason = Counter({name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)})
        gone = self.removed.filter(pc.not_equal(self.removed["stage"], "pair"))
        by_reason.subtract({name.removeprefix(prefix): n for name, n in letters_by_reason(gone).items()})
        return by_reason
