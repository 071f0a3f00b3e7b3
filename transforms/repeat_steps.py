"""Repeat contacts as a Beam transform: conversations by customer, and back to their shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict

from transforms.batches import keep_table, kept_table
from transforms.repeat_contacts import find_repeat_contacts, split_contacts, undo_resolutions
from transforms.settings import Settings


class FindRepeatContacts(beam.PTransform):
    """(shard, conversations) -> the same with repeat contacts undone, and names of files of the statistics of that.

    Exists apart from pairing because a customer's conversations have several keys, so that they lie in several shards.
    """

    SHARDS = 16

    def __init__(self, settings: Settings, files: str, gives_back: bool = False) -> None:
        """Takes the settings (repeat_contact is on) and where the names of files begin.

        The statistics are what the repeat contacts take away, or (where it gives back) what that was.
        """
        super().__init__()
        self._settings, self._files, self._gives_back = settings, files, gives_back

    def expand(self, conversations: beam.PCollection) -> Any:
        """Applies the step."""
        assert self._settings.repeat_contact is not None
        # They wait in files until the repeat contacts are known.
        kept = conversations | "Keep" >> beam.Map(_keep, self._files)
        found = (
            kept
            | "ByCustomer" >> beam.FlatMap(_contacts_of_shard, self.SHARDS)
            | "GroupByCustomer" >> beam.GroupByKey()
            | "Find" >> beam.Map(_find, self._settings, self._files, self._gives_back)
        )
        rows = (
            found
            | "Rows" >> beam.FlatMap(lambda found: list(found[0].items()))
            | "RowsByShard" >> beam.CombinePerKey(_concatenate)
        )
        undone = kept | "Undo" >> beam.Map(_undo, AsDict(rows))
        return undone, found | "Statistics" >> beam.Map(lambda found: found[1])


def _keep(element: tuple[int, pa.Table], files: str) -> tuple[int, str]:
    shard, conversations = element
    return shard, keep_table(conversations, f"{files}-conversations-{shard:05}")


def _contacts_of_shard(element: tuple[int, str], shards: int) -> list[tuple[int, str]]:
    """Shard by customer, and the file of its contacts."""
    shard, kept = element
    parts = split_contacts(kept_table(kept), shard, shards)
    return [(number, keep_table(contacts, f"{kept}-contacts-{number:02}")) for number, contacts in parts]


def _find(
    element: tuple[int, Iterable[str]], settings: Settings, files: str, gives_back: bool
) -> tuple[dict[int, Any], str]:
    """Rows by shard, and the file of their statistics."""
    shard, parts = element
    assert settings.repeat_contact is not None
    contacts = pa.concat_tables(map(kept_table, sorted(parts)))
    found = find_repeat_contacts(contacts, settings.repeat_contact, settings.timezone)
    path = f"{files}-{shard:05}"
    (-found.statistics if gives_back else found.statistics).save(path)
    return found.rows, path


def _concatenate(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _undo(element: tuple[int, str], rows: dict[int, Any]) -> tuple[int, pa.Table]:
    shard, conversations = element[0], kept_table(element[1])
    return shard, undo_resolutions(conversations, rows[shard]) if shard in rows else conversations
