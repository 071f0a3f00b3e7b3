"""Wakes: conversations in which time alone will change something, and when.

An open conversation is taken for resolved after a silence, or leaves the backlog after a longer one, without any event.
A wake is the hash of its conversation key and the moment from which it has to be looked at again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from transforms.facts import Facts
from transforms.hashing import Hashes
from transforms.life_cycle import OPEN, LifeCycles
from transforms.vectors import NEVER, EventVectors

WAKE = np.dtype([("at", np.int64), ("key_hash", np.uint64)])
"""One wake: microseconds since the epoch, and the hash of the conversation key."""

Wakes = npt.NDArray[np.void]


def find_wakes(ev: EventVectors, key_hash: Hashes, cycles: LifeCycles, facts: Facts, as_of: int) -> Wakes:
    """The next moment, not before as_of, at which each conversation may change without an event.

    Args:
      ev: the events of whole conversations, in order, none of them stray.
      key_hash: hash of the conversation key of each conversation.
      cycles: their states.
      facts: their facts.
      as_of: the moment up to which time has passed, microseconds.
    """
    last_row = np.append(facts.begin[1:], len(ev)) - 1
    channel = ev.channel[last_row]
    is_open = cycles.state == OPEN
    never = np.iinfo(np.int64).max
    # It may be taken for resolved after gap, and given up after max_idle or max_open: whichever holds comes of these.
    wake = np.full(len(last_row), never)
    for limit, holds in (
        (ev.limits.gap, ev.limits.infer_resolution[channel]),
        (ev.limits.max_idle, facts.leaves_at == NEVER),
        (ev.limits.max_open, facts.leaves_at == NEVER),
    ):
        at = facts.last_event_at + limit[channel]
        wake = np.where(is_open & holds & (at >= as_of), np.minimum(wake, at), wake)
    some = np.flatnonzero(wake != never)
    out = np.empty(len(some), WAKE)
    out["at"], out["key_hash"] = wake[some], key_hash[some]
    return out


def woken_keys(wakes: Wakes, as_of: int) -> Hashes:
    """Hashes of the keys whose wake as_of has reached, ascending."""
    return np.unique(wakes["key_hash"][wakes["at"] <= as_of])


def update_wakes(wakes: Wakes, looked_at: Hashes, found: list[Wakes]) -> Wakes:
    """The wakes after a cycle: those of the keys that it did not look at, and the ones it found."""
    kept = wakes[~np.isin(wakes["key_hash"], looked_at)]
    return np.concatenate([kept, *found])


def load_wakes(path: Path) -> Wakes:
    """Reads what `save_wakes` wrote."""
    wakes: Wakes = np.load(path)
    return wakes


def save_wakes(wakes: Wakes, path: Path) -> None:
    """Writes wakes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, wakes)
