"""What moves the state of a conversation, as one merged sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transforms.schema import DISMISSED, REOPENED, RESOLVED
from transforms.vectors import Codes, EventVectors, Mask, Rows

INFERRED = 100
"""Type code of a move to resolved that silence made; it stands right behind the last event before the silence."""


@dataclass(frozen=True)
class Moves:
    """Events that can move the state, in order, inferred resolutions among them.

    Attributes:
      place: 2 * row, or 2 * row + 1 for an inferred resolution after that row.
      type: code of the event type, or INFERRED.
      conversation: number of the conversation.
      is_close: resolved, dismissed or inferred; the others are messages and `reopened`.
      opens: moves the state to open.
      closes: moves the state out of open.
    """

    place: Rows
    type: npt.NDArray[np.uint8]
    conversation: Codes
    is_close: Mask
    opens: Mask
    closes: Mask

    @property
    def row(self) -> Rows:
        """Row of each."""
        return self.place >> 1

    @staticmethod
    def of(ev: EventVectors, conversation: Codes, inferred: Rows) -> Moves:
        """Merges the events and the inferred resolutions; marks what really moves the state."""
        rows = np.flatnonzero(ev.is_message | (ev.type == REOPENED) | (ev.type == RESOLVED) | (ev.type == DISMISSED))
        place, kind = 2 * rows, ev.type[rows]
        if len(inferred):
            place = np.append(place, 2 * inferred + 1)
            kind = np.append(kind, np.full(len(inferred), INFERRED, np.uint8))
            order = np.argsort(place, kind="stable")
            place, kind = place[order], kind[order]
        own = conversation[place >> 1]
        is_close = (kind == RESOLVED) | (kind == DISMISSED) | (kind == INFERRED)
        if not len(place):
            return Moves(place, kind, own, is_close, is_close, is_close)
        closed_before = np.append(False, is_close[:-1] & (own[1:] == own[:-1]))
        return Moves(place, kind, own, is_close, ~is_close & closed_before, is_close & ~closed_before)
