"""Open rows: the events that a result was made of, kept so that later ones can join them.

An open conversation may go on with any event to come, also with an older one, so every row stays (copies of an event
too, for which of them is kept can change). A file holds rows in the order of the hash of their conversation key, as
one record batch that is mapped into memory: looking a few keys up reads their rows only, however long the history.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import Hashes
from transforms.ordering import one_chunk
from transforms.shuffle import PLAIN_EVENTS, with_plain_ids


def write_rows(events: pa.Table, path: Path) -> int:
    """Writes a file of rows.

    Args:
      events: schema SHUFFLED_EVENTS or PLAIN_EVENTS, in any order.
      path: the file; folders are made.

    Returns:
      The number of rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.argsort(events["key_hash"].to_numpy(), kind="stable")
    rows = with_plain_ids(events).unify_dictionaries().combine_chunks().take(pa.array(order)).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PLAIN_EVENTS) as writer:
        for batch in rows.to_batches():
            writer.write_batch(batch)
    return len(order)


def count_rows(file: Path) -> int:
    """The number of rows of a file."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        return sum(reader.get_batch(place).num_rows for place in range(reader.num_record_batches))


def rows_of_keys(files: Iterable[Path], hashes: Hashes) -> pa.Table:
    """Looks the rows of some conversation keys up.

    Args:
      files: files of rows.
      hashes: hashes of conversation keys, ascending, each once.

    Returns:
      Schema PLAIN_EVENTS in one chunk; every row whose key has one of the hashes.
    """
    found = []
    for file in files:
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_file(source).read_all()
        known = one_chunk(rows["key_hash"]).to_numpy()
        first, after = (np.searchsorted(known, hashes, side) for side in ("left", "right"))
        count = after - first
        if count.any():
            # The places of each run of rows, one run after another.
            skipped = np.repeat(first - (np.cumsum(count) - count), count)
            found.append(rows.take(pa.array(skipped + np.arange(len(skipped)))))
    if not found:
        return PLAIN_EVENTS.empty_table()
    return pa.concat_tables(found).unify_dictionaries().combine_chunks()


def key_hashes(files: Iterable[Path], sources: Collection[str] | None = None) -> Hashes:
    """The hashes of the conversation keys of all rows, or of those that came from some sources, ascending."""
    found = [np.empty(0, np.uint64)]
    for file in files:
        with pa.memory_map(str(file)) as mapped:
            rows = pa.ipc.open_file(mapped).read_all().select(["source", "key_hash"])
        if sources is not None:
            rows = rows.filter(_is_from(rows, sources))
        found.append(np.unique(rows["key_hash"].to_numpy()))
    return np.unique(np.concatenate(found))


def key_hashes_in_order(file: Path) -> Hashes:
    """The hash of the conversation key of each row of a file, in its order, which is ascending."""
    with pa.memory_map(str(file)) as mapped:
        hashes: Hashes = one_chunk(pa.ipc.open_file(mapped).read_all()["key_hash"]).to_numpy()
    return hashes


def without_sources(events: pa.Table, sources: Collection[str]) -> pa.Table:
    """The rows that did not come from some sources."""
    return events.filter(pc.invert(_is_from(events, sources))).combine_chunks() if sources else events


def _is_from(events: pa.Table, sources: Collection[str]) -> pa.Array:
    return pc.is_in(events["source"].cast(pa.string()), pa.array(sorted(sources), pa.string()))


def merge_rows(
    files: Sequence[Path],
    path: Path,
    low: int = 0,
    high: int = 1 << 64,
    dropped: Collection[str] = (),
    without: Hashes | None = None,
) -> int:
    """Writes the rows of several files into one; the files themselves stay.

    Args:
      files: files of rows.
      path: the new file.
      low: least hash of the keys that are taken.
      high: the hash above the last one that is taken.
      dropped: sources whose rows are left out.
      without: hashes of keys whose rows are left out.

    Returns:
      The number of rows.
    """
    parts = []
    for file in files:
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_file(source).read_all()
        known = one_chunk(rows["key_hash"]).to_numpy()
        first = int(np.searchsorted(known, np.uint64(low)))
        after = len(known) if high > 0xFFFFFFFFFFFFFFFF else int(np.searchsorted(known, np.uint64(high)))
        part = without_sources(rows.slice(first, after - first), dropped)
        if without is not None and len(without):
            part = part.filter(pa.array(~np.isin(part["key_hash"].to_numpy(), without)))
        parts.append(part)
    return write_rows(pa.concat_tables(parts) if parts else PLAIN_EVENTS.empty_table(), path)
