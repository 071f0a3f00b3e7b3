"""Makes events of the public "Customer Support on Twitter" data (twcs.csv).

One row is one tweet. `in_response_to_tweet_id` links it to the tweet it answers; a thread is all that hangs together by
these links, and is one conversation, named by its first tweet (the root). A tweet that answers one that the export
lacks is a root too. `inbound` tells customers from brands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.adapters.adapter import SOURCE_ROW, Adapter
from transforms.times import Mask, parse_times

Places = npt.NDArray[np.int64]

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

TWITTER_TIME = rf"^[A-Z][a-z][a-z] ({'|'.join(MONTHS)}) \d\d \d\d:\d\d:\d\d [+-]\d{{4}} \d{{4}}$"


def convert_tweets(tweets: pa.Table) -> pa.Table:
    """Makes one event of each tweet.

    Args:
      tweets: columns of TWCS, as text.

    Returns:
      event_id (tweet_id), event_type (message where inbound, else reply), occurred_at, channel (x), account_id (the
      brand that answers in the thread first), conversation_id (the root's tweet_id), customer_id (on a reply: of the
      nearest tweet of a customer that it answers, else of the thread's first customer), author_type, agent_id (the
      brand's handle: who types is not in the data) and SOURCE_ROW.
    """
    columns = {name: tweets.column(name).combine_chunks() for name in TWCS.columns}
    tweet_id, author = columns["tweet_id"], columns["author_id"]
    inbound = pc.utf8_lower(columns["inbound"])
    is_customer = _mask(pc.equal(inbound, "true"))
    is_brand = _mask(pc.equal(inbound, "false"))
    occurred_at = _iso_times(columns["created_at"])
    times = parse_times(occurred_at).values
    is_usable = _mask(times.is_valid()) & _mask(tweet_id.is_valid()) & _mask(author.is_valid())

    parent = _parents(tweet_id, columns["in_response_to_tweet_id"])
    root = _roots(parent, tweet_id)
    micros = times.view(pa.int64()).fill_null(0).to_numpy()
    brand = _first_author(root, author, micros, is_brand & is_usable)
    first_customer = _first_author(root, author, micros, is_customer & is_usable)
    asker = _jump_until_stable(np.where(is_customer, np.arange(len(parent)), parent))
    customer = np.where(is_customer[asker], asker, first_customer)

    names = pc.if_else(pa.array(is_customer), "message", pc.if_else(pa.array(is_brand), "reply", columns["inbound"]))
    kinds = pc.if_else(pa.array(is_customer), "customer", pc.if_else(pa.array(is_brand), "agent", None))
    return pa.table(
        {
            "event_id": tweet_id,
            "event_type": names,
            "occurred_at": occurred_at,
            "channel": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(root), np.int32)), pa.array(["x"])),
            "account_id": _take(author, brand),
            "conversation_id": tweet_id.take(pa.array(root)),
            "customer_id": _take(author, customer),
            "author_type": kinds,
            "agent_id": pc.if_else(pa.array(is_brand), author, None),
            SOURCE_ROW: pa.array(np.arange(len(root), dtype=np.int64)),
        }
    )


def _mask(array: pa.Array) -> Mask:
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _take(values: pa.Array, places: Places) -> pa.Array:
    """Values at places; null where the place is -1."""
    return values.take(pa.array(places, mask=places < 0))


def _iso_times(text: pa.Array) -> pa.Array:
    """Times such as "Tue Oct 31 22:10:47 +0000 2017" in ISO 8601; other text stays as it is."""
    spelled = pc.match_substring_regex(text, TWITTER_TIME)
    source = pc.if_else(spelled, text, None)
    month = pc.index_in(pc.utf8_slice_codeunits(source, 4, 7), value_set=pa.array(MONTHS))
    month = pa.array([f"{number:02}" for number in range(1, 13)]).take(month)
    day = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(source, 26, 30), month, pc.utf8_slice_codeunits(source, 8, 10), "-"
    )
    clock = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(source, 11, 19), pc.utf8_slice_codeunits(source, 20, 25), ""
    )
    return pc.coalesce(pc.binary_join_element_wise(day, clock, "T"), text)


def _parents(tweet_id: pa.Array, answers: pa.Array) -> Places:
    """Place of the tweet that each tweet answers; its own where it answers none or one that is not there.

    Copies of a tweet are linked alike (by the least id that one of them names), so that their order means nothing.
    """
    # Tools that know no integers with gaps write them as 119242.0.
    answers = pc.replace_substring_regex(answers, r"\.0$", "")
    first = _places(tweet_id, tweet_id)
    own = np.arange(len(tweet_id), dtype=np.int64)
    first = np.where(first < 0, own, first)
    copies = np.flatnonzero(first != own)
    if len(copies):
        answers = _least_of_copies(answers, first, copies)
    parent = _places(answers, tweet_id)
    return np.where(parent < 0, first, parent)


def _places(values: pa.Array, among: pa.Array) -> Places:
    """Place of each value's first occurrence; -1 where there is none, or for null."""
    found = pc.index_in(values, value_set=among, skip_nulls=True)
    return np.asarray(found.fill_null(-1).to_numpy(), dtype=np.int64)


def _least_of_copies(answers: pa.Array, first: Places, copies: Places) -> pa.Array:
    affected = np.flatnonzero(np.isin(first, first[copies]))
    table = pa.table({"first": first[affected], "answers": answers.take(pa.array(affected))})
    table = table.sort_by([("first", "ascending"), ("answers", "ascending")])
    groups, begins = np.unique(table.column("first").to_numpy(), return_index=True)
    least = table.column("answers").combine_chunks().take(pa.array(begins))
    place = np.searchsorted(groups, first)
    is_affected = np.zeros(len(first), dtype=bool)
    is_affected[affected] = True
    return pc.if_else(pa.array(is_affected), least.take(pa.array(place.clip(max=len(groups) - 1))), answers)


def _jump_until_stable(next_place: Places) -> Places:
    """Where one ends by following the links: each step doubles the distance; in a cycle, somewhere on it."""
    for _ in range(len(next_place).bit_length()):
        further = next_place[next_place]
        if np.array_equal(further, next_place):
            break
        next_place = further
    return next_place


def _roots(parent: Places, tweet_id: pa.Array) -> Places:
    """Place of the first tweet of each tweet's thread; on a cycle of answers, of the one with the least id."""
    end = _jump_until_stable(parent)
    if np.array_equal(parent[end], end):
        return end
    order = pc.sort_indices(tweet_id).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    least, further = rank, parent
    for _ in range(len(parent).bit_length()):
        least, further = np.minimum(least, least[further]), further[further]
    return np.asarray(order[least[end]], dtype=np.int64)


def _first_author(root: Places, author: pa.Array, micros: Places, rows: Mask) -> Places:
    """For each tweet, place of the earliest of the given rows in its thread (then by author's name); -1 for none."""
    places = np.flatnonzero(rows)
    names = pc.rank(author.take(pa.array(places)), sort_keys="ascending", tiebreaker="dense").to_numpy()
    places = places[np.lexsort((names, micros[places], root[places]))][::-1]
    first = np.full(len(root), -1, dtype=np.int64)
    first[root[places]] = places
    return first[root]


TWCS = Adapter(
    name="twcs",
    description=(
        "Customer Support on Twitter (twcs.csv): tweets between customers and brands; only threads with a brand's reply"
        " were exported, so its response rates say nothing about service."
    ),
    columns=("tweet_id", "author_id", "inbound", "created_at", "in_response_to_tweet_id"),
    convert=convert_tweets,
    settings={"infer_resolution": True, "has_life_cycle": False},
)
"""The adapter of the twcs data."""
