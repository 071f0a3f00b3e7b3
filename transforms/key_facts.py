"""What a stream has to know of a whole conversation key: when it may be forgotten, and where its numbers may fall."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.calendars import make_grid
from transforms.hashing import Hashes
from transforms.ordering import codes_of, one_chunk
from transforms.schema import DISMISSED, REOPENED, RESOLVED
from transforms.settings import ChannelSettings, Settings
from transforms.statistics import SUM_NAMES, Integers, Statistics

ROW_SUM, EFFECT_SUM = 0, 1
"""Where marks keep their two numbers among the sums."""

_YEAR = 366 * 86_400


@dataclass(frozen=True)
class KeyRows:
    """Rows in the order of their keys and times.

    Attributes:
      order: row numbers in that order.
      begins: where each key begins in order.
      key_hash: hash of each key, ascending.
      at: occurred_at of the rows, in that order.
    """

    order: Integers
    begins: Integers
    key_hash: Hashes
    at: Integers

    @staticmethod
    def of(rows: pa.Table) -> KeyRows:
        """Sorts the rows of some keys (schema PLAIN_EVENTS)."""
        hashes = np.asarray(one_chunk(rows["key_hash"]))
        at = np.asarray(one_chunk(rows["occurred_at"]).cast(pa.int64()))
        rank = np.asarray(one_chunk(rows["event_type"]))
        order = np.lexsort((rank, at, hashes))
        hashes = hashes[order]
        begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(order) else order
        return KeyRows(order, begins, hashes[begins], at[order])

    @property
    def counts(self) -> Integers:
        """Rows of each key."""
        return np.diff(self.begins, append=len(self.order))

    @property
    def first_at(self) -> Integers:
        """Earliest occurred_at of each key."""
        return self.at[self.begins]

    @property
    def last_at(self) -> Integers:
        """Latest occurred_at of each key."""
        return self.at[np.append(self.begins[1:], len(self.order)) - 1] if len(self.begins) else self.begins


def silent_at(rows: pa.Table, settings: Settings) -> tuple[Hashes, Integers]:
    """The moments up to which the silence limits of keys last.

    Args:
      rows: schema PLAIN_EVENTS; all rows of each key that occurs.
      settings: of the run.

    Returns:
      The keys' hashes, ascending, and the moments, microseconds; never too early, and too late only where the latest
      silence over max_idle was no break.
    """
    keys = KeyRows.of(rows)
    if not len(keys.begins):
        return keys.key_hash, keys.begins
    channel, kinds = _channels(rows, settings)
    channel = channel[keys.order]
    max_idle, max_open = (np.array([getattr(kind, name) for kind in kinds]) for name in ("max_idle", "max_open"))
    is_followed = np.array([_may_stay_open(kind) for kind in kinds])
    number = np.arange(len(channel))
    of_key = np.repeat(np.arange(len(keys.begins)), keys.counts)
    # Where the conversation may have begun: behind the last silence over max_idle, else with the key.
    starts = np.zeros(len(channel), bool)
    starts[keys.begins] = True
    starts[1:] |= np.diff(keys.at) > max_idle[channel[:-1]]
    begin = _last(np.flatnonzero(starts), of_key, len(keys.begins))
    kind = np.asarray(one_chunk(rows["event_type"]))[keys.order]
    cycle = np.flatnonzero((kind == RESOLVED) | (kind == DISMISSED) | (kind == REOPENED))
    decides = _last(cycle, of_key, len(keys.begins))
    closed = (decides >= begin) & (decides >= 0) & (kind[decides] != REOPENED)
    last = _last(number, of_key, len(keys.begins))
    is_keyed = np.asarray(one_chunk(rows["conversation_id"]).is_valid())[keys.order][last]
    stays = is_keyed & is_followed[channel[last]] & ~closed
    limit = np.where(stays, max_open[channel[last]], max_idle[channel[last]])
    return keys.key_hash, keys.at[last] + limit


def _may_stay_open(channel: ChannelSettings) -> bool:
    return channel.has_life_cycle and not channel.split_threads and not channel.infer_resolution


def _last(places: Integers, of_key: Integers, keys: int) -> Integers:
    """The last of some places of each key, or -1."""
    out = np.full(keys, -1, np.int64)
    out[of_key[places]] = places
    return out


def _channels(rows: pa.Table, settings: Settings) -> tuple[npt.NDArray[np.int32], list[ChannelSettings]]:
    names = one_chunk(rows["channel"]).dictionary.to_pylist()
    return codes_of(rows["channel"]), [settings.of_channel(name) for name in names]


def mark_cells(rows: pa.Table, settings: Settings, row_count: Integers, effect_count: Integers) -> Statistics:
    """Marks every cell in which statistics of some keys may ever have fallen with how far these keys have come.

    A cell's marks only grow with the rows that came and the effects of time, so that of two values of a window the one
    with the greater marks was made of more.

    Args:
      rows: schema PLAIN_EVENTS; the rows of the keys.
      settings: of the run.
      row_count: rows that came of each key, in the order of the keys' hashes.
      effect_count: how often time alone has changed each key, in the same order.

    Returns:
      By slice; all sums but ROW_SUM and EFFECT_SUM are 0.
    """
    keys = KeyRows.of(rows)
    if not len(keys.begins):
        return Statistics.zero()
    channel, kinds = _channels(rows, settings)
    words = one_chunk(rows["account_id"]).dictionary.to_pylist()
    account = codes_of(rows["account_id"])[keys.order].astype(np.int64) + 1
    of_row = channel[keys.order].astype(np.int64)
    of_key = np.repeat(np.arange(len(keys.begins)), keys.counts)
    limits = [np.array([getattr(kind, name) for kind in kinds]) for name in ("max_idle", "max_open")]
    # What ends does so at an event, or a silence limit after one.
    at = np.concatenate([keys.at, *(keys.at + limit[of_row] for limit in limits)])
    of_key, account, of_row = (np.tile(values, 3) for values in (of_key, account, of_row))
    of_key, account, of_row, at = _with_all_channels(of_key, account, of_row, at)
    span = _YEAR * 1_000_000
    grid = make_grid(settings.timezone, int(at.min()) // span * span, -(-int(at.max()) // span) * span)
    seconds = grid.slice_starts[grid.slices_of(at)]
    empty = replace(
        Statistics.zero(), accounts=(None, *words), channels=tuple(one_chunk(rows["channel"]).dictionary.to_pylist())
    )
    both = [empty.pack(np.full(len(at), basis), account, of_row, seconds) for basis in (0, 1)]
    # Each cell of a key once.
    of_key, cell = np.tile(of_key, 2), np.concatenate(both)
    order = np.lexsort((cell, of_key))
    first = np.append(True, (np.diff(cell[order]) != 0) | (np.diff(of_key[order]) != 0))
    of_key, cell = of_key[order][first], cell[order][first]
    sums = np.zeros((len(SUM_NAMES), len(cell)), np.int64)
    sums[ROW_SUM], sums[EFFECT_SUM] = row_count[of_key], effect_count[of_key]
    order = np.argsort(cell, kind="stable")
    marks = replace(empty, cell=cell[order], sums=sums[:, order])
    return marks.moved_to(marks.unpack()[3])


def _with_all_channels(
    of_key: Integers, account: Integers, channel: Integers, at: Integers
) -> tuple[Integers, Integers, Integers, Integers]:
    """Each moment of a key with each channel that the key has: which one a number falls in may change."""
    pairs = np.unique(np.stack([of_key, channel]), axis=1)
    count = np.bincount(pairs[0])
    if (count == 1).all():
        return of_key, account, channel, at
    begins = np.cumsum(count) - count
    times = count[of_key]
    row = np.repeat(np.arange(len(of_key)), times)
    within = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
    return of_key[row], account[row], pairs[1][begins[of_key[row]] + within], at[row]
