"""What a stream tells while it goes, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.stream.live_tables import CycleResult
    from pipelines.stream.publishing import Published
    from pipelines.stream.sources import Taking
from pipelines.stream.store import LiveStore


class Watcher:
    """Is told what a stream does, in its own thread; does nothing with it. Every method has to be quick."""

    def began(self, store: LiveStore) -> None:
        """The stream has opened its store, and will look for something new."""

    def said(self, sentence: str) -> None:
        """Something worth a sentence."""

    def committed(self, result: CycleResult, taking: Taking, store: LiveStore) -> None:
        """A cycle was committed."""

    def looked(self, taking: Taking, store: LiveStore) -> None:
        """The stream looked for something new."""

    def published(self, published: Published) -> None:
        """A result was published."""

    def ended(self, error: BaseException | None) -> None:
        """The stream ends, and its store is about to be closed.

        Args:
          error: what ended it; None where it was to end.
        """


@contextmanager
def told(watcher: Watcher, store: LiveStore) -> Iterator[None]:
    """Tells the beginning and the end."""
    watcher.began(store)
    try:
        yield
    except BaseException as error:
        watcher.ended(error)
        raise
    watcher.ended(None)
