"""Repeat contacts as a Beam transform: conversations by customer, and back to their shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict

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
        # The type makes Beam use the coder of tables where it keeps them until the repeat contacts are known.
        conversations = conversations | "Typed" >> beam.Map(_as_it_is).with_output_types(tuple[int, pa.Table])
        contacts = beam.FlatMap(_contacts_of_shard, self.SHARDS).with_output_types(tuple[int, pa.Table])
        found = (
            conversations
            | "ByCustomer" >> contacts
            | "GroupByCustomer" >> beam.GroupByKey()
            | "Find" >> beam.Map(_find, self._settings, self._files, self._gives_back)
        )
        rows = (
            found
            | "Rows" >> beam.FlatMap(lambda found: list(found[0].items()))
            | "RowsByShard" >> beam.CombinePerKey(_concatenate)
        )
        undone = conversations | "Undo" >> beam.Map(_undo, AsDict(rows))
        return undone, found | "Statistics" >> beam.Map(lambda found: found[1])


def _as_it_is(element: tuple[int, pa.Table]) -> tuple[int, pa.Table]:
    return element


def _contacts_of_shard(element: tuple[int, pa.Table], shards: int) -> list[tuple[int, pa.Table]]:
    shard, conversations = element
    return split_contacts(conversations, shard, shards)


def _find(
    element: tuple[int, Iterable[pa.Table]], settings: Settings, files: str, gives_back: bool
) -> tuple[dict[int, Any], str]:
    """Rows by shard, and the name of the file of their statistics, which are too large to travel."""
    shard, parts = element
    assert settings.repeat_contact is not None
    found = find_repeat_contacts(pa.concat_tables(parts), settings.repeat_contact, settings.timezone)
    path = f"{files}-{shard:05}"
    (-found.statistics if gives_back else found.statistics).save(path)
    return found.rows, path


def _concatenate(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _undo(element: tuple[int, pa.Table], rows: dict[int, Any]) -> tuple[int, pa.Table]:
    shard, conversations = element
    return shard, undo_resolutions(conversations, rows[shard]) if shard in rows else conversations
