"""The source's restriction in Beam: its coder, and how it is gone through, stopped and handed on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apache_beam.coders import Coder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

from pipelines.unbounded.positions import Positions


class PositionsCoder(Coder):
    """Encodes Positions as JSON."""

    def encode(self, value: Positions) -> bytes:
        """Writes it."""
        return value.to_bytes()

    def decode(self, encoded: bytes) -> Positions:
        """Reads it."""
        return Positions.from_bytes(encoded)

    def is_deterministic(self) -> bool:
        """Keys are sorted."""
        return True


class PositionsTracker(RestrictionTracker):
    """Goes from positions to later ones; it can be stopped between two polls, but not be split."""

    def __init__(self, positions: Positions) -> None:
        """Takes where it begins."""
        self._positions = positions

    def current_restriction(self) -> Positions:
        """Where it is."""
        return self._positions

    def current_progress(self) -> RestrictionProgress:
        """Nobody knows how much is left of a stream."""
        return RestrictionProgress(completed=0.0, remaining=1.0)

    def try_claim(self, position: Positions) -> bool:
        """Goes on, unless somebody else does."""
        if self._positions.is_done:
            return False
        self._positions = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Positions, Positions] | None:
        """Stops here; the rest begins here. Partitions are never taken apart: each would have a time of its own."""
        if fraction_of_remainder != 0 or self._positions.is_done:
            return None
        rest = self._positions
        self._positions = replace(rest, is_done=True)
        return self._positions, rest

    def check_done(self) -> bool:
        """Fails where nobody goes on."""
        if not self._positions.is_done:
            raise ValueError("expected the source to hand on what is left")
        return True

    def is_bounded(self) -> bool:
        """A stream has no end."""
        return False


class PositionsProvider(RestrictionProvider):
    """Begins a source, or goes on with it."""

    def initial_restriction(self, element: Any) -> Positions:
        """Nothing was read."""
        return Positions()

    def create_tracker(self, restriction: Positions) -> PositionsTracker:
        """Goes on from somewhere."""
        return PositionsTracker(restriction)

    def restriction_size(self, element: Any, restriction: Positions) -> int:
        """One, of one."""
        return 1

    def restriction_coder(self) -> Coder:
        """How it is kept."""
        return PositionsCoder()

    def truncate(self, element: Any, restriction: Positions) -> None:
        """Where a job is drained, no more is read."""
