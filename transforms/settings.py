"""The settings of a run, as the kernels see them: whole microseconds and flags, per channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HOUR = 3_600_000_000
DAY = 24 * HOUR


@dataclass(frozen=True)
class ChannelSettings:
    """How conversations of one channel are cut; durations in microseconds.

    Attributes:
      gap: silence after which an unkeyed or split conversation ends.
      max_idle: silence after which a solved or unkeyed conversation is over; at least gap.
      max_open: silence after which an unsolved ticket is given up; at least max_idle.
      split_threads: the platform's thread id lives for ever, so gaps split it.
      infer_resolution: silence after a human reply resolves.
      has_life_cycle: the platform sends `resolved`.
    """

    gap: int = DAY
    max_idle: int = 30 * DAY
    max_open: int = 365 * DAY
    split_threads: bool = False
    infer_resolution: bool = False
    has_life_cycle: bool = True

    def __post_init__(self) -> None:
        """Refuses durations that contradict each other."""
        if not 0 < self.gap <= self.max_idle <= self.max_open:
            raise ValueError("expected 0 < gap <= max_idle <= max_open")


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes:
      default: settings of every channel that is not named.
      channels: settings of the channels that differ.
      repeat_contact: window of a repeat contact in microseconds; None is off.
      timezone: IANA zone in which windows are cut.
      as_of: the moment up to which time has passed, microseconds since the epoch; None is the latest event kept.
    """

    default: ChannelSettings = ChannelSettings()
    channels: Mapping[str, ChannelSettings] = field(default_factory=dict)
    repeat_contact: int | None = None
    timezone: str = "UTC"
    as_of: int | None = None

    @property
    def longest_silence(self) -> int:
        """The longest max_open of any channel, microseconds."""
        return max(channel.max_open for channel in (self.default, *self.channels.values()))

    def of_channel(self, channel: str) -> ChannelSettings:
        """Settings in force for a channel."""
        return self.channels.get(channel, self.default)
