"""Of a process that makes and drops large vectors again and again: freed memory is kept, garbage seldom sought."""

from __future__ import annotations

import ctypes
import gc
import sys

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30
_OBJECTS_BETWEEN_COLLECTIONS = 200_000


def give_freed_memory_back() -> None:
    """Gives the system what is free between vectors that are in use, which is what grows over weeks (glibc only)."""
    pa.default_memory_pool().release_unused()
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def keep_freed_memory() -> None:
    """Makes numpy and Arrow share one heap that reuses freed vectors of up to a gibibyte.

    A fresh page costs more than what is computed on it: the system's share of a large run falls by a third (glibc
    only). And all that Beam has imported would be looked through for garbage again and again.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    libc = _libc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        pa.set_memory_pool(pa.system_memory_pool())


def _libc() -> ctypes.CDLL | None:
    """The library of C, where it is the one of GNU."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
