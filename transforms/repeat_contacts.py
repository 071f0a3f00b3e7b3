"""Repeat contacts: a customer who was helped and soon comes back was not helped at the first contact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.calendars import make_grid
from transforms.counting import StatisticsBuilder
from transforms.hashing import combine_hashes, hash_column
from transforms.ordering import combine_codes, dense_codes
from transforms.statistics import ACTIVITY, OPENED, Statistics
from transforms.tables import CONVERSATIONS

CONTACT_COLUMNS = (
    "account_id",
    "channel",
    "customer_id",
    "opened_at",
    "resolved_at",
    "handled_at",
    "is_proactive",
    "is_first_contact_resolution",
)
"""Columns of `conversations` that decide; `row` (place in the shard's table) and `shard` stand beside them."""


@dataclass(frozen=True)
class RepeatContacts:
    """Conversations that were not a first contact resolution after all.

    Attributes:
      rows: shard -> rows of its `conversations`.
      statistics: what they take away from the statistics.
    """

    rows: dict[int, npt.NDArray[np.int64]]
    statistics: Statistics


def split_contacts(conversations: pa.Table, shard: int, shards: int) -> list[tuple[int, pa.Table]]:
    """Splits a shard's conversations by customer; those without a customer never have a repeat contact.

    Args:
      conversations: columns of `conversations`.
      shard: number of the shard.
      shards: number of shards by customer.

    Returns:
      Shard by customer and its contacts: CONTACT_COLUMNS, shard, row.
    """
    count = conversations.num_rows
    contacts = conversations.select(CONTACT_COLUMNS)
    for i, name in enumerate(CONTACT_COLUMNS):
        kind = CONVERSATIONS.schema.field(name).type
        contacts = contacts.set_column(i, name, contacts[name].cast(kind))
    contacts = contacts.append_column("shard", pa.array(np.full(count, shard, np.int64)))
    contacts = contacts.append_column("row", pa.array(np.arange(count)))
    contacts = contacts.filter(pc.is_valid(contacts["customer_id"])).combine_chunks()
    if not contacts.num_rows:
        return []
    hashes = combine_hashes(hash_column(contacts["account_id"]), hash_column(contacts["customer_id"]))
    by = (hashes % np.uint64(shards)).astype(np.int64)
    return [(int(number), contacts.filter(pa.array(by == number))) for number in np.unique(by)]


def find_repeat_contacts(contacts: pa.Table, window: int, timezone: str) -> RepeatContacts:
    """Finds the first contact resolutions that a repeat contact undoes.

    A repeat contact is another conversation of the same account and customer, on any channel, that the customer opened
    within (0, window] after resolved_at.

    Args:
      contacts: CONTACT_COLUMNS, shard, row: all contacts of every customer that occurs.
      window: repeat_contact in microseconds.
      timezone: IANA zone of the windows.
    """
    customer = combine_codes([dense_codes(contacts[name]) for name in ("account_id", "customer_id")])
    opened = _micros(contacts, "opened_at")
    resolved = _micros(contacts, "resolved_at")
    candidate = np.flatnonzero(np.asarray(pc.fill_null(contacts["is_first_contact_resolution"], False)))
    opening = np.flatnonzero(~np.asarray(contacts["is_proactive"]).astype(bool))
    # Merge resolutions and openings in time; an opening at the instant of the resolution comes before it.
    group = np.concatenate([customer[opening], customer[candidate]])
    at = np.concatenate([opened[opening], resolved[candidate]])
    is_candidate = np.repeat([False, True], [len(opening), len(candidate)])
    order = np.lexsort((is_candidate, at, group))
    group, at, is_candidate = group[order], at[order], is_candidate[order]
    places = np.arange(len(order))
    following = np.minimum.accumulate(np.where(is_candidate, len(order), places)[::-1])[::-1]
    next_group, next_at = np.append(group, -1)[following], np.append(at, 0)[following]
    repeated = is_candidate & (next_group == group) & (next_at - at <= window)
    found = np.sort(candidate[order[repeated] - len(opening)])
    undone = contacts.take(pa.array(found))
    shard, row = np.asarray(undone["shard"]), np.asarray(undone["row"])
    rows = {int(number): row[shard == number] for number in np.unique(shard)}
    return RepeatContacts(rows, -_first_contact_resolutions(undone, timezone))


def undo_resolutions(conversations: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Sets is_first_contact_resolution of some rows of `conversations` to false."""
    place = conversations.schema.get_field_index("is_first_contact_resolution")
    undone = np.zeros(conversations.num_rows, bool)
    undone[rows] = True
    column = conversations.column(place).combine_chunks()
    return conversations.set_column(
        place, conversations.schema.field(place), pc.if_else(pa.array(undone), pa.scalar(False), column)
    )


def _first_contact_resolutions(contacts: pa.Table, timezone: str) -> Statistics:
    """What the first contact resolutions among contacts count for."""
    if not contacts.num_rows:
        return Statistics.zero()
    opened, handled = _micros(contacts, "opened_at"), _micros(contacts, "handled_at")
    grid = make_grid(timezone, int(opened.min()), int(handled.max()))
    account = contacts["account_id"].combine_chunks().dictionary_encode()
    channel = contacts["channel"].combine_chunks().dictionary_encode()
    account_codes = np.asarray(account.indices.fill_null(-1)).astype(np.int32)
    channel_codes = np.asarray(channel.indices).astype(np.int32)
    to = StatisticsBuilder(grid.slice_starts, [None, *account.dictionary.to_pylist()], channel.dictionary.to_pylist())
    for basis, at in ((ACTIVITY, handled), (OPENED, opened)):
        cells = to.cells(basis, grid.slices_of(at), account_codes, channel_codes)
        to.count("first_contact_resolution_count", cells)
    return to.build()


def _micros(contacts: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return np.asarray(contacts[name].combine_chunks().cast(pa.int64()).fill_null(0))
