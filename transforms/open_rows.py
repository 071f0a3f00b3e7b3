"""Open rows: the events that a result was made of, kept so that later ones can join them.

An open conversation may go on with any event to come, also with an older one, so every row stays (copies of an event
too, for which of them is kept can change). A file holds rows in the order of the hash of their conversation key, in
record batches that are mapped into memory: looking a few keys up reads their rows only, however long the history, and
putting files together takes the memory of a batch of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import Hashes
from transforms.ordering import one_chunk
from transforms.shuffle import PLAIN_EVENTS, with_plain_ids

ROWS_A_BATCH = 131_072
"""About as many rows has a batch of several files that were put together."""


def write_rows(events: pa.Table, path: Path) -> int:
    """Writes a file of rows.

    Args:
      events: schema SHUFFLED_EVENTS or PLAIN_EVENTS, in any order.
      path: the file; folders are made.

    Returns:
      The number of rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _in_order(with_plain_ids(events))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PLAIN_EVENTS) as writer:
        writer.write_table(rows)
    return rows.num_rows


def _in_order(rows: pa.Table) -> pa.Table:
    """The rows in the order of their hashes, those of one hash as they came, in one chunk."""
    order = np.argsort(rows["key_hash"].to_numpy(), kind="stable")
    return rows.unify_dictionaries().combine_chunks().take(pa.array(order)).combine_chunks()


def _batches(file: Path) -> Iterator[pa.Table]:
    """The rows of a file, in order and mapped into memory, batch by batch."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        for place in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(place)])


def _hashes(batch: pa.Table) -> Hashes:
    hashes: Hashes = one_chunk(batch["key_hash"]).to_numpy()
    return hashes


def _between(hashes: Hashes, known: Hashes) -> slice:
    """Where hashes lie between the first and the last of others; both are ascending."""
    if not len(known):
        return slice(0, 0)
    return slice(int(np.searchsorted(hashes, known[0])), int(np.searchsorted(hashes, known[-1], "right")))


def count_rows(file: Path) -> int:
    """The number of rows of a file."""
    return sum(batch.num_rows for batch in _batches(file))


def rows_of_keys(files: Iterable[Path], hashes: Hashes) -> pa.Table:
    """Looks the rows of some conversation keys up.

    Args:
      files: files of rows.
      hashes: hashes of conversation keys, ascending, each once.

    Returns:
      Schema PLAIN_EVENTS in one chunk; every row whose key has one of the hashes.
    """
    found = []
    for rows in itertools.chain.from_iterable(map(_batches, files)):
        known = _hashes(rows)
        here = hashes[_between(hashes, known)]
        first, after = (np.searchsorted(known, here, side) for side in ("left", "right"))
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
    for rows in itertools.chain.from_iterable(map(_batches, files)):
        some = rows if sources is None else rows.filter(_is_from(rows, sources))
        found.append(np.unique(some["key_hash"].to_numpy()))
    return np.unique(np.concatenate(found))


def key_hashes_in_order(file: Path) -> Hashes:
    """The hash of the conversation key of each row of a file, in its order, which is ascending."""
    return np.concatenate([np.empty(0, np.uint64), *map(_hashes, _batches(file))])


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
    batches = [batch for file in files for batch in _batches(file)]
    # Before those of each batch: all of them write the same words, as the batches of a file have to.
    words = pa.concat_tables([PLAIN_EVENTS.empty_table(), *(batch.slice(0, 0) for batch in batches)])
    words = words.unify_dictionaries().combine_chunks()
    count = max(1, -(-sum(batch.num_rows for batch in batches) // ROWS_A_BATCH))
    edges = [low + (high - low) * place // count for place in range(count + 1)]
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, PLAIN_EVENTS) as writer:
        for begin, end in itertools.pairwise(edges):
            parts = [words]
            for batch in batches:
                here = _between(_hashes(batch), np.array([begin, end - 1], np.uint64))
                parts.append(without_sources(batch.slice(here.start, here.stop - here.start), dropped))
            rows = _in_order(pa.concat_tables(parts))
            if without is not None and len(without):
                rows = rows.filter(pa.array(~np.isin(_hashes(rows), without))).combine_chunks()
            writer.write_table(rows)
            written += rows.num_rows
    return written
