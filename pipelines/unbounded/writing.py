"""Writes the changes that a graph gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sinks.change_files import write_changes
from transforms.key_changes import decode_changes


@dataclass(frozen=True)
class WriteChanges:
    """Writes changes as one, into the folder of today."""

    url: str

    def __call__(self, changes: Sequence[bytes]) -> str:
        """Gives the name of the manifest."""
        return write_changes(self.url, datetime.now(UTC).strftime("%Y-%m-%d"), decode_changes(changes))
