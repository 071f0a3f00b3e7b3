"""Which shard a conversation key belongs to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def shard_of(key_hash: npt.NDArray[np.uint64], shards: int) -> npt.NDArray[np.unsignedinteger]:
    """The shard, of so many, of each hash of a conversation key."""
    shard = ((key_hash & np.uint64(0xFFFFFFFF)) * np.uint64(shards)) >> np.uint64(32)
    return shard.astype(np.uint8 if shards <= 256 else np.uint16)
