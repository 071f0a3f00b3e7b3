"""The events of a shard as plain vectors, in the contract's order: what the pairing kernels read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.hashing import dictionary_codes, raw_values, set_bits, valid_rows
from transforms.ordering import OrderedEvents, one_chunk
from transforms.schema import (
    AGENT,
    ASSIGNED,
    BOT,
    DISMISSED,
    MESSAGE,
    REPLY,
    RESOLVED,
    SYSTEM,
)
from transforms.settings import Settings

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)
NEVER = np.iinfo(np.int64).min
"""Stands for "did not happen" in vectors of times."""


def chosen(values: npt.NDArray[Scalar], mask: Mask) -> npt.NDArray[Scalar]:
    """The values that are marked; several times faster than an index of booleans where the mask has no pattern."""
    return values.take(np.flatnonzero(mask))


def begins_of_runs(begins: Mask) -> Rows:
    """For each place where the run begins that it is in, given the places where runs begin; the first one does."""
    first = np.flatnonzero(begins)
    return np.repeat(first, np.diff(first, append=len(begins)))


def add_by_runs(sums: Rows, place: Rows | Codes, values: Rows) -> None:
    """Adds values up at their places in sums; equal places stand together."""
    if len(place):
        begins = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
        sums[place[begins]] += np.add.reduceat(values, begins)


def _so_far(mask: Mask) -> Codes:
    out = np.zeros(len(mask) + 1, np.int32)
    np.cumsum(mask, dtype=np.int32, out=out[1:])
    return out


@dataclass(frozen=True)
class Limits:
    """The settings of each channel, by channel code; durations in microseconds."""

    gap: Rows
    max_idle: Rows
    max_open: Rows
    split_threads: Mask
    infer_resolution: Mask
    has_life_cycle: Mask

    @staticmethod
    def of(settings: Settings, channels: list[str]) -> Limits:
        """Looks the settings of the channels up."""
        each = [settings.of_channel(channel) for channel in channels] or [settings.default]
        return Limits(**{f.name: np.array([getattr(s, f.name) for s in each]) for f in fields(Limits)})


@dataclass(frozen=True)
class EventVectors:
    """n events in order; codes are places in the dictionaries of the event table, -1 is null.

    Attributes:
      row: row number in the event table (int64).
      key: number of the conversation key, ascending.
      at: occurred_at, microseconds since the epoch.
      type: code of the event type (uint8).
      channel: channel code.
      account: account code.
      agent: agent code.
      team: team code.
      author: code of the author type; 255 is null (uint8).
      is_automated: is_automated, null as false.
      is_keyed: the key has a conversation_id.
      limits: settings by channel code.
    """

    row: Rows
    key: Codes
    at: Rows
    type: npt.NDArray[np.uint8]
    channel: Codes
    account: Codes
    agent: Codes
    team: Codes
    author: npt.NDArray[np.uint8]
    is_automated: Mask
    is_keyed: Mask
    limits: Limits

    def __len__(self) -> int:
        """Number of events."""
        return len(self.at)

    @staticmethod
    def of(events: pa.Table, ordered: OrderedEvents, settings: Settings) -> EventVectors:
        """Gathers the vectors of a shard.

        Args:
          events: columns of PARSED_EVENTS.
          ordered: their order.
          settings: of the run.
        """
        rows = ordered.rows

        def column(name: str) -> pa.Array:
            return one_chunk(events[name])

        def codes(name: str) -> Codes:
            return dictionary_codes(column(name)).take(rows)

        channels = column("channel").dictionary.to_pylist()
        author, automated = column("author_type"), column("is_automated")
        # (A null is all bits set.)
        authors = raw_values(author) | (valid_rows(author).view(np.uint8) - np.uint8(1))
        is_automated = valid_rows(automated) & set_bits(automated.buffers()[1], automated.offset, len(automated))
        return EventVectors(
            row=rows,
            key=ordered.key,
            at=ordered.at,
            type=ordered.type,
            channel=codes("channel"),
            account=codes("account_id"),
            agent=codes("agent_id"),
            team=codes("team_id"),
            author=authors.take(rows),
            is_automated=is_automated.take(rows),
            is_keyed=valid_rows(column("conversation_id")).take(rows),
            limits=Limits.of(settings, channels),
        )

    def only(self, kept: Mask) -> EventVectors:
        """The events that are marked."""
        rows = np.flatnonzero(kept)
        return replace(self, **{f.name: getattr(self, f.name).take(rows) for f in fields(self) if f.name != "limits"})

    @cached_property
    def key_begins(self) -> Mask:
        """The first event of each key."""
        return np.diff(self.key, prepend=np.int32(-1)) != 0

    @cached_property
    def is_message(self) -> Mask:
        """Customer messages."""
        return self.type == MESSAGE

    @cached_property
    def is_reply(self) -> Mask:
        """Replies of every kind."""
        return self.type == REPLY

    @cached_property
    def is_automated_reply(self) -> Mask:
        """Replies that never stop a clock: is_automated, or written by the system."""
        return self.is_reply & (self.is_automated | (self.author == SYSTEM))

    @cached_property
    def is_bot_reply(self) -> Mask:
        """Bot replies that are not automated."""
        return self.is_reply & (self.author == BOT) & ~self.is_automated_reply

    @cached_property
    def is_human_reply(self) -> Mask:
        """Human replies: author agent (or not given), not automated."""
        return self.is_reply & ((self.author == AGENT) | (self.author == 255)) & ~self.is_automated_reply

    @cached_property
    def is_spoken(self) -> Mask:
        """Messages, and replies that are not automated."""
        return self.is_message | (self.is_reply & ~self.is_automated_reply)

    @cached_property
    def ends_or_holds_turn(self) -> Mask:
        """What begins, joins or ends a waiting turn: messages, human replies, resolved, dismissed.

        A turn waits exactly where the last of these is a message: while one waits the state is open, so that a
        resolved or dismissed always ends it.
        """
        return self.is_message | self.is_human_reply | (self.type == RESOLVED) | (self.type == DISMISSED)

    @cached_property
    def humans_so_far(self) -> Codes:
        """Human replies before each event; one more element counts them all."""
        return _so_far(self.is_human_reply)

    @cached_property
    def turning_so_far(self) -> Codes:
        """Of ends_or_holds_turn, those before each event; one more element counts them all."""
        return _so_far(self.ends_or_holds_turn)

    @cached_property
    def spoken_so_far(self) -> Codes:
        """Of is_spoken, those before each event; one more element counts them all."""
        return _so_far(self.is_spoken)

    @cached_property
    def at_or_never(self) -> Rows:
        """`at`, and NEVER at the end, where row -1 finds it."""
        return np.append(self.at, NEVER)

    @cached_property
    def is_assigned_to_agent(self) -> Mask:
        """`assigned` events that name an agent."""
        return (self.type == ASSIGNED) & (self.agent >= 0)
