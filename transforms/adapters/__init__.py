"""One module per source format that is not the contract's own."""

from __future__ import annotations

from transforms.adapters.adapter import SOURCE_ROW, Adapter
from transforms.adapters.twcs import TWCS

ADAPTERS = {adapter.name: adapter for adapter in (TWCS,)}
"""The adapters by name."""

__all__ = ["ADAPTERS", "SOURCE_ROW", "Adapter"]
