"""`care-kpis stream`: cycle after cycle, for as long as it is wanted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.failures import said_clearly
from pipelines.kafka.faults import BrokerAway, LostOffsets, keep_trying
from pipelines.kafka.settings import KafkaOptions
from pipelines.memory import keep_freed_memory
from pipelines.stream.beginning import begin_stream, take_over
from pipelines.stream.cycles import Cycles
from pipelines.stream.feed import ChangeFeed
from pipelines.stream.folder_source import FolderSource
from pipelines.stream.kafka_source import KafkaSource
from pipelines.stream.publishing import Publisher
from pipelines.stream.sources import Source, Taking
from pipelines.stream.store import LiveStore
from pipelines.stream.watcher import Watcher, told
from pipelines.stream.watermark import Clock, Idleness, clock, find_watermark
from sinks.output_folder import check_place
from sinks.parquet import writing
from transforms.errors import UserError
from transforms.settings import HOUR, Settings
from transforms.stream_settings import StreamSettings

SECONDS_BETWEEN_LOOKS = 0.05
"""So often a stream looks for something new, while nothing is."""

_MAX_SECONDS_BETWEEN_LOOKS = 0.2

_CYCLES_TO_WARM_UP = 5
"""After so many cycles all that stays is there."""


@dataclass(frozen=True)
class StreamOptions:
    """One stream, as asked for.

    Attributes:
      output: folder that the results go to.
      settings: settings in force.
      stream: settings of streams alone.
      kafka: the Kafka and its topics; None where the input is files.
      inputs: folders and patterns of files, where it is.
      format: of the files; None: told by content and name.
      on_lost_offsets: what to do where messages that are due are gone.
      rows_a_cycle: how many rows a cycle takes at most.
      seconds_between_publishes: so often readers get what is new.
      until_caught_up: end once everything that was there is taken and published.
      seconds_for_broker: how long to wait for a Kafka that does not answer; None for ever.
      changes: the Kafka, and as its topic the one that gets each restated window; None: nobody does.
    """

    output: Path
    settings: Settings
    stream: StreamSettings = field(default_factory=StreamSettings)
    kafka: KafkaOptions | None = None
    inputs: tuple[str, ...] = ()
    format: str | None = None
    on_lost_offsets: Literal["fail", "earliest"] = "fail"
    rows_a_cycle: int = 400_000
    seconds_between_publishes: float = 30.0
    until_caught_up: bool = False
    seconds_for_broker: float | None = None
    changes: KafkaOptions | None = None


def run(
    options: StreamOptions,
    watcher: Watcher | None = None,
    now: Clock = clock,
    stop: threading.Event | None = None,
) -> None:
    """Runs a stream until it is stopped (SIGTERM, SIGINT, `stop`), or has caught up where that is asked for.

    Args:
      options: what to read, where to write, and how.
      watcher: is told what it does.
      now: gives the time of day.
      stop: ends it once it is set.

    Raises:
      UserError: something that the user can mend; everything committed stays.
    """
    keep_freed_memory()
    stop, watcher = stop or threading.Event(), watcher or Watcher()
    output = check_place(options.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = take_over(output)
    try:
        with (
            said_clearly(output),
            _stopped_by_signals(stop),
            begin_stream(output, options.settings, watcher.said) as store,
            _source(options, watcher) as source,
            Cycles(store, options.settings, options.stream, options.changes is not None) as cycles,
            _feed(options, watcher) as feed,
            Publisher(output, options.settings, lock, watcher.said) as publisher,
            told(watcher, store),
        ):
            _Stream(options, store, source, cycles, feed, publisher, watcher, now, stop).run()
    except BrokerAway as error:
        raise UserError(
            f"{error}, for {options.seconds_for_broker:.0f} s (--give-up-after). What was committed stays: start again "
            "once it is there."
        ) from error
    finally:
        gc.unfreeze()
        os.close(lock)


class _Stream:
    """The loop, and what it works with."""

    def __init__(
        self,
        options: StreamOptions,
        store: LiveStore,
        source: Source,
        cycles: Cycles,
        feed: ChangeFeed | None,
        publisher: Publisher,
        watcher: Watcher,
        now: Clock,
        stop: threading.Event,
    ) -> None:
        self._options, self._store, self._source = options, store, source
        self._cycles, self._feed, self._publisher, self._watcher = cycles, feed, publisher, watcher
        self._now, self._stop = now, stop
        self._idleness = Idleness(options.stream.idle_timeout)
        self._published = time.monotonic()
        self._cycles_run = 0
        state = store.state
        assert state is not None
        # What a stream that died had committed is published first.
        self._unpublished = state.cycle > 0 and store.has_pending()
        self._wake = store.next_wake()

    def run(self) -> None:
        """Goes on until it is to end."""
        self._send()
        pause = SECONDS_BETWEEN_LOOKS
        while not self._stop.is_set():
            taking = self._look()
            if taking is None:
                break
            idle = self._idleness.look(taking.ranges)
            if taking.rows or any(each.lost for each in taking.ranges.values()) or self._is_due(taking, idle):
                self._cycle(taking, idle)
                pause = SECONDS_BETWEEN_LOOKS
            elif self._options.until_caught_up:
                if not self._options.stream.idle_timeout:
                    # Nothing is waited for: time has passed up to this moment.
                    self._cycle(taking, idle)
                break
            else:
                self._watcher.looked(taking, self._store)
                self._stop.wait(pause)
                pause = min(_MAX_SECONDS_BETWEEN_LOOKS, pause * 1.2)
            self._publish()
        self._finish()

    def _look(self) -> Taking | None:
        """What there is to take; None where the stream is to end before Kafka answers."""

        def look() -> Taking | None:
            if self._stop.is_set():
                return None
            state = self._store.state
            assert state is not None
            return self._source.look(state)

        return keep_trying(look, self._options.seconds_for_broker, self._watcher.said)

    def _cycle(self, taking: Taking, idle: frozenset[str]) -> None:
        try:
            result = self._cycles.run(taking, idle, self._now())
        except (BrokerAway, LostOffsets) as error:
            # The next look tells whether it is gone for good.
            self._watcher.said(f"{error}; trying again")
            self._stop.wait(SECONDS_BETWEEN_LOOKS)
            return
        self._unpublished = True
        self._wake = self._store.next_wake()
        self._cycles_run += 1
        self._watcher.committed(result, taking, self._store)
        self._send()
        del result
        if self._cycles_run >= _CYCLES_TO_WARM_UP:
            # Beam's graph holds the tables of a cycle in circles of references: left to itself Python would let
            # hundreds of megabytes pile up. With what stays out of sight, which is all that was imported, it is quick.
            gc.collect()
        if self._cycles_run == _CYCLES_TO_WARM_UP:
            gc.freeze()

    def _send(self) -> None:
        """Sends what the change feed waits for."""
        if self._feed is not None:
            self._feed.send(self._store)

    def _is_due(self, taking: Taking, idle: frozenset[str]) -> bool:
        """Whether time alone has changed something: a conversation has to be looked at, or a window is complete."""
        state = self._store.state
        assert state is not None
        if self._options.until_caught_up:
            return False
        latest = {name: partition.latest for name, partition in state.partitions.items() if name in taking.ranges}
        latest |= {name: None for name in taking.ranges if name not in latest}
        moment = find_watermark(state.watermark, latest, idle, self._options.stream, self._now())
        if moment is None or moment == state.watermark:
            return False
        woken = self._wake is not None and self._wake < moment
        return woken or state.watermark is None or moment // HOUR > state.watermark // HOUR

    def _publish(self) -> None:
        """Publishes where it is time."""
        published = self._publisher.finish(self._store)
        if published is not None:
            self._watcher.published(published)
        waited = time.monotonic() - self._published
        if self._unpublished and not self._publisher.is_running and waited >= self._options.seconds_between_publishes:
            self._begin_publish()

    def _begin_publish(self) -> None:
        self._publisher.begin(self._store)
        self._published, self._unpublished = time.monotonic(), False

    def _finish(self) -> None:
        """Publishes what is left."""
        for _ in range(2):
            published = self._publisher.finish(self._store, wait=True)
            if published is not None:
                self._watcher.published(published)
            if self._unpublished:
                self._begin_publish()


@contextlib.contextmanager
def _source(options: StreamOptions, watcher: Watcher) -> Iterator[Source]:
    source: Source
    if options.kafka is not None:
        source = KafkaSource(options.kafka, options.on_lost_offsets, options.rows_a_cycle)
    else:
        waits = not options.until_caught_up
        source = FolderSource(options.inputs, options.format, options.rows_a_cycle, watcher.said, waits)
    try:
        yield source
    finally:
        source.close()


def _feed(options: StreamOptions, watcher: Watcher) -> contextlib.AbstractContextManager[ChangeFeed | None]:
    if options.changes is None:
        return contextlib.nullcontext()
    changes = options.changes
    return keep_trying(
        lambda: ChangeFeed(changes, changes.topics[0], watcher.said), options.seconds_for_broker, watcher.said
    )


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT end the cycle under way and then the stream; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before: dict[int, Callable[..., object] | int | None] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
