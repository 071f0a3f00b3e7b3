"""The events of a shard as plain vectors, in the contract's order: what the pairing kernels read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from transforms.ordering import codes_of, one_chunk
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
NEVER = np.iinfo(np.int64).min
"""Stands for "did not happen" in vectors of times."""


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
    def of(events: pa.Table, rows: Rows, key: Codes, settings: Settings) -> EventVectors:
        """Gathers the vectors of a shard.

        Args:
          events: columns of PARSED_EVENTS, in one chunk each.
          rows: row numbers in order.
          key: number of the key of each of rows.
          settings: of the run.
        """

        def column(name: str) -> pa.Array:
            return one_chunk(events[name])

        channels = column("channel").dictionary.to_pylist()
        automated = column("is_automated")
        author = column("author_type")
        return EventVectors(
            row=rows,
            key=key,
            at=np.asarray(column("occurred_at").cast(pa.int64()))[rows],
            type=np.asarray(column("event_type"))[rows],
            channel=codes_of(events["channel"])[rows],
            account=codes_of(events["account_id"])[rows],
            agent=codes_of(events["agent_id"])[rows],
            team=codes_of(events["team_id"])[rows],
            author=np.asarray(author.fill_null(255))[rows],
            is_automated=np.asarray(automated.fill_null(False))[rows].astype(bool, copy=False),
            is_keyed=np.asarray(column("conversation_id").is_valid())[rows],
            limits=Limits.of(settings, channels),
        )

    def only(self, kept: Mask) -> EventVectors:
        """The events that are marked."""
        return replace(self, **{f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name != "limits"})

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
    def is_assigned_to_agent(self) -> Mask:
        """`assigned` events that name an agent."""
        return (self.type == ASSIGNED) & (self.agent >= 0)
