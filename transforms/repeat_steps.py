"""Repeat contacts as a Beam transform: conversations by customer, and back to their shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsDict

from transforms.repeat_contacts import RepeatContacts, find_repeat_contacts, split_contacts, undo_resolutions
from transforms.settings import Settings


class FindRepeatContacts(beam.PTransform):
    """(shard, conversations) -> the same with repeat contacts undone, and the statistics that they take away.

    Exists apart from pairing because a customer's conversations have several keys, so that they lie in several shards.
    """

    SHARDS = 16

    def __init__(self, settings: Settings) -> None:
        """Takes the settings; repeat_contact is on."""
        super().__init__()
        self._settings = settings

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
            | "Find" >> beam.Map(_find, self._settings.repeat_contact, self._settings.timezone)
        )
        rows = (
            found
            | "Rows" >> beam.FlatMap(lambda contacts: list(contacts.rows.items()))
            | "RowsByShard" >> beam.CombinePerKey(_concatenate)
        )
        undone = conversations | "Undo" >> beam.Map(_undo, AsDict(rows))
        return undone, found | "Statistics" >> beam.Map(lambda contacts: contacts.statistics)


def _as_it_is(element: tuple[int, pa.Table]) -> tuple[int, pa.Table]:
    return element


def _contacts_of_shard(element: tuple[int, pa.Table], shards: int) -> list[tuple[int, pa.Table]]:
    shard, conversations = element
    return split_contacts(conversations, shard, shards)


def _find(element: tuple[int, Iterable[pa.Table]], window: int, timezone: str) -> RepeatContacts:
    return find_repeat_contacts(pa.concat_tables(element[1]), window, timezone)


def _concatenate(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _undo(element: tuple[int, pa.Table], rows: dict[int, Any]) -> tuple[int, pa.Table]:
    shard, conversations = element
    return shard, undo_resolutions(conversations, rows[shard]) if shard in rows else conversations
