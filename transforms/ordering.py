"""Order and duplicates: from the events of a shard, in any order, to each key's events in the contract's order.

Events are sorted by (key, occurred_at, tie order of the type, event_id by bytes), and of the copies of an event one is
kept. Rows are moved as row numbers; no text is touched but where it decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import Hashes, dictionary_codes, raw_values, set_bits, valid_rows
from transforms.schema import AUTHOR_TYPES, CONTENT_COLUMNS, EVENT_TYPES

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OrderedEvents:
    """The order of a shard's events.

    Attributes:
      rows: row numbers of the events kept, in order.
      key: number of the conversation key of each of them, ascending (int32).
      at: occurred_at of each of them, microseconds since the epoch.
      type: code of the event type of each of them (uint8).
      conflicts: row numbers of the conflicting duplicates, ascending.
      exact_duplicate_count: rows that repeat a kept event.
    """

    rows: Rows
    key: npt.NDArray[np.int32]
    at: Rows
    type: npt.NDArray[np.uint8]
    conflicts: Rows
    exact_duplicate_count: int


def order_events(events: pa.Table, key_hash: Hashes, event_hash: Hashes) -> OrderedEvents:
    """Sorts a shard's events and drops the copies.

    Args:
      events: columns of PARSED_EVENTS, n rows, all rows of every key that occurs.
      key_hash: n hashes of the conversation key.
      event_hash: n hashes of event_id.

    Returns:
      The order; kept rows + conflicts + exact duplicates = n.
    """
    if not events.num_rows:
        nothing = np.empty(0, np.int64)
        return OrderedEvents(nothing, np.empty(0, np.int32), nothing, np.empty(0, np.uint8), nothing, 0)
    rows, starts = _group_by_key(events, key_hash)
    key = np.cumsum(starts, dtype=np.int32) - np.int32(1)
    kept, conflicts, exact = _drop_copies(events, rows, key, (key_hash ^ event_hash).take(rows))
    if kept is not None:
        # (One copy of each event stays, so no key goes.)
        stays = np.flatnonzero(kept)
        rows, key = rows.take(stays), key.take(stays)
    at, kind = _sort_within_keys(events, rows, key)
    return OrderedEvents(rows, key, at, kind, conflicts, exact)


def _sort_packed(hashes: Hashes) -> tuple[Rows, Hashes]:
    """Places sorted by the top bits of their hash, and these bits in that order.

    The place rides in the low bits, so that one sort of plain integers does it.
    """
    low = np.uint64((1 << len(hashes).bit_length()) - 1)
    packed = (hashes & ~low) | np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    places = (packed & low).view(np.int64)
    packed &= ~low
    return places, packed


def _group_by_key(events: pa.Table, key_hash: Hashes) -> tuple[Rows, Mask]:
    """Brings the rows of each key together, in arrival order; marks where a key begins.

    What is sorted are runs of rows with the same hash: the shuffle leaves few of them.
    """
    count = len(key_hash)
    is_same = key_hash[1:] == key_hash[:-1]
    heads = np.flatnonzero(np.append(True, ~is_same))
    hashes = key_hash[heads]
    order, tops = _sort_packed(hashes)
    hashes = hashes[order]
    differs = np.append(True, hashes[1:] != hashes[:-1])
    if bool(np.any(differs[1:] & (tops[1:] == tops[:-1]))):
        order = np.argsort(key_hash[heads], kind="stable")
        hashes = key_hash[heads][order]
        differs = np.append(True, hashes[1:] != hashes[:-1])
    first, size = heads[order], np.diff(heads, append=count)[order]
    place = np.cumsum(size) - size
    rows = np.repeat(first - place, size)
    rows += np.arange(count)
    joins = np.flatnonzero(~differs)
    doubtful = np.flatnonzero(is_same & ~_like_the_row_before(events)) + 1
    this = np.append(first[joins], doubtful)
    before = np.append(first[joins - 1] + size[joins - 1] - 1, doubtful - 1)
    if _share_keys(events, this, before):
        starts = np.zeros(count, bool)
        starts[place[differs]] = True
        return rows, starts
    # Two keys share a 64-bit hash: group by the values themselves.
    codes = _key_codes(events)
    rows = np.argsort(codes, kind="stable")
    return rows, np.append(True, np.diff(codes[rows]) != 0)


def _like_the_row_before(events: pa.Table) -> Mask:
    """Of each row but the first whether it plainly has the key of the row before; others may have it too."""
    account, conversation, channel, customer = (
        _same_as_before(one_chunk(events[name])) for name in ("account_id", "conversation_id", "channel", "customer_id")
    )
    keyed = valid_rows(one_chunk(events["conversation_id"]))[1:]
    return account & conversation & (keyed | (channel & customer))


def _same_as_before(values: pa.Array) -> Mask:
    """Of each row but the first whether it has the text of the row before; equal codes only, where there are codes."""
    if pa.types.is_dictionary(values.type):
        codes = dictionary_codes(values)
        return np.asarray(codes[1:] == codes[:-1])
    if len(values) < 2:
        return np.empty(0, bool)
    same = pc.equal(values.slice(1), values.slice(0, len(values) - 1)).fill_null(False)
    valid = valid_rows(values)
    return np.asarray(set_bits(same.buffers()[1], same.offset, len(same)) | ~(valid[1:] | valid[:-1]))


def _share_keys(events: pa.Table, this: Rows, before: Rows) -> bool:
    """Whether each of some rows has the conversation key of another, by value."""
    account, channel = (codes_of(events[name]) for name in ("account_id", "channel"))
    keyed = valid_rows(one_chunk(events["conversation_id"]))
    same = (account[this] == account[before]) & (keyed[this] == keyed[before])
    if not same.all():
        return False
    keyed = keyed[this]
    if not (keyed | (channel[this] == channel[before])).all():
        return False
    return all(
        _equal_text(one_chunk(events[name]), this[chosen], before[chosen])
        for name, chosen in (("conversation_id", keyed), ("customer_id", ~keyed))
    )


def _equal_text(values: pa.Array, this: Rows, before: Rows) -> bool:
    """Whether two lists of rows have the same text, row by row; equal codes are, others are compared."""
    if pa.types.is_dictionary(values.type):
        codes = dictionary_codes(values).astype(np.int64)
        this, before = codes[this], codes[before]
        other = np.flatnonzero(this != before)
        values, this, before = values.dictionary, this[other], before[other]
    return bool(pc.all(pc.equal(values.take(pa.array(this)), values.take(pa.array(before)))).as_py() is not False)


def _key_codes(events: pa.Table) -> Rows:
    """A number for each row's conversation key, equal where the keys are equal by value."""
    conversation = dense_codes(plain(events["conversation_id"]))
    unkeyed = conversation < 0
    parts = [dense_codes(events["account_id"]), conversation]
    parts += [np.where(unkeyed, dense_codes(plain(events[c])), -2) for c in ("channel", "customer_id")]
    return combine_codes(parts)


def _drop_copies(
    events: pa.Table, rows: Rows, key: npt.NDArray[np.int32], hashes: Hashes
) -> tuple[Mask | None, Rows, int]:
    """Decides which copies of an event stay.

    Args:
      events: the events.
      rows: all their row numbers, by key.
      key: number of the key of each of rows.
      hashes: of key and event_id together, of each of rows.

    Returns:
      For each of rows whether it is kept (None: all are), the conflicting rows, and the number of exact duplicates.
    """
    places, tops = _sort_packed(hashes)
    twins = tops[1:] == tops[:-1]
    if not twins.any():
        return None, np.empty(0, np.int64), 0
    places = np.sort(places[np.append(twins, False) | np.append(False, twins)])
    candidates = rows[places]
    some = events.select(CONTENT_COLUMNS).take(pa.array(candidates))
    group = combine_codes([key[places].astype(np.int64), dense_codes(some["event_id"])])
    content = [
        _content_rank(some, name) for name in ("occurred_at", *(c for c in CONTENT_COLUMNS if c != "occurred_at"))
    ]
    order = np.lexsort([*content[::-1], group])
    places, candidates, group = places[order], candidates[order], group[order]
    first = np.append(True, np.diff(group) != 0)
    leader = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    like_leader = np.ones(len(first), bool)
    for ranks in content:
        ranked = ranks[order]
        like_leader &= ranked == ranked[leader]
    kept = np.ones(len(rows), bool)
    kept[places[~first]] = False
    return kept, np.sort(candidates[~like_leader]), int(np.count_nonzero(like_leader & ~first))


def _content_rank(some: pa.Table, name: str) -> npt.NDArray[np.float64] | Rows:
    """Ranks of a column's values: null first, false before true, text by its UTF-8 bytes."""
    column = one_chunk(some[name])
    if name == "event_type":
        return _alphabetical(EVENT_TYPES)[np.asarray(column)]
    if name == "author_type":
        codes = np.asarray(column.cast(pa.int64()).fill_null(-1))
        return np.where(codes < 0, -1, _alphabetical(AUTHOR_TYPES)[codes])
    if pa.types.is_boolean(column.type):
        return np.asarray(column.cast(pa.int64()).fill_null(-1))
    if pa.types.is_floating(column.type):
        return np.asarray(column.fill_null(-np.inf))
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()))
    return dense_codes(plain(column))


def _alphabetical(words: tuple[str, ...]) -> Rows:
    ranks = np.empty(len(words), np.int64)
    ranks[np.argsort(np.array(words, dtype=object))] = np.arange(len(words))
    return ranks


def _sort_within_keys(events: pa.Table, rows: Rows, key: npt.NDArray[np.int32]) -> tuple[Rows, npt.NDArray[np.uint8]]:
    """Sorts the rows of each key by (occurred_at, tie order, event_id), in place; gives these times and types."""
    at = raw_values(one_chunk(events["occurred_at"])).take(rows)
    rank = np.asarray(one_chunk(events["event_type"])).take(rows)
    same = key[1:] == key[:-1]
    wrong = same & ((at[1:] < at[:-1]) | ((at[1:] == at[:-1]) & (rank[1:] < rank[:-1])))
    if wrong.any():
        unsorted = np.zeros(int(key[-1]) + 1, bool)
        unsorted[key.take(np.flatnonzero(wrong))] = True
        places = np.flatnonzero(unsorted.take(key))
        moved = places.take(_order_in_keys(key.take(places), at.take(places), rank.take(places)))
        rows[places], at[places], rank[places] = rows.take(moved), at.take(moved), rank.take(moved)
    ties = same & (at[1:] == at[:-1]) & (rank[1:] == rank[:-1])
    if ties.any():
        places = np.flatnonzero(np.append(ties, False) | np.append(False, ties))
        ids = dense_codes(events["event_id"].take(pa.array(rows[places])))
        order = np.lexsort((ids, rank[places], at[places], key[places]))
        rows[places] = rows[places][order]
    return at, rank


def _order_in_keys(key: npt.NDArray[np.int32], at: Rows, rank: npt.NDArray[np.uint8]) -> Rows:
    """The order by (key, at, rank) of rows that come by key; those that are equal stay in theirs."""
    moment = ((at - at.min()) << 4) | rank
    number = np.cumsum(np.append(False, key[1:] != key[:-1]))
    width = int(moment.max()).bit_length()
    if width + int(number[-1]).bit_length() < 64:
        return np.argsort((number << width) | moment, kind="stable")
    return np.lexsort((moment, key))


def dense_codes(column: pa.Array | pa.ChunkedArray) -> Rows:
    """Ranks of text by its UTF-8 bytes, equal text equal ranks; null is -1."""
    column = one_chunk(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    ranks = np.empty(len(column.dictionary) + 1, np.int64)
    ranks[np.asarray(pc.sort_indices(column.dictionary))] = np.arange(len(column.dictionary))
    ranks[-1] = -1
    return ranks[dictionary_codes(column)]


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Text as plain strings, whatever dictionary it was over."""
    column = one_chunk(column)
    return column.dictionary.take(column.indices) if pa.types.is_dictionary(column.type) else column


def combine_codes(parts: list[Rows]) -> Rows:
    """One number for each distinct combination of codes, in the order of the combinations."""
    combined = parts[0]
    for part in parts[1:]:
        low = part.min(initial=0)
        width = int(part.max(initial=0)) - int(low) + 1
        combined = np.unique(combined, return_inverse=True)[1] * width + (part - low)
    return np.unique(combined, return_inverse=True)[1]


def codes_of(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Codes of a dictionary column in one chunk; null is -1."""
    return dictionary_codes(one_chunk(column))


def one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array; a column of one chunk is not copied."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column
