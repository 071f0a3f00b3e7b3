"""Arrow tables as Beam elements: their coder, and DoFns whose work runs in threads."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue


class ArrowTableCoder(coders.Coder):
    """Encodes a table as an Arrow IPC stream.

    Without it Beam pickles tables, and a slice of ten rows drags its whole parent along.
    """

    def encode(self, value: pa.Table) -> bytes:
        """Writes the stream."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def decode(self, encoded: bytes) -> pa.Table:
        """Reads the stream."""
        return pa.ipc.open_stream(encoded).read_all()

    def estimate_size(self, value: pa.Table) -> int:
        """Bytes of the table; Beam would encode it just to know."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """A table is never a key."""
        return False

    def to_type_hint(self) -> type:
        """What it encodes."""
        return pa.Table


coders.registry.register_coder(pa.Table, ArrowTableCoder)


def keep_table(table: pa.Table, path: str) -> str:
    """Writes a table to a file and gives its name, which travels in its place: no runner has to sort large values.

    Where a worker writes it once more, those that have the earlier one mapped keep it.
    """
    unfinished = f"{path}.{uuid.uuid4().hex}"
    with pa.OSFile(unfinished, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(unfinished, path)
    return path


def kept_table(path: str) -> pa.Table:
    """Maps a table that was kept into memory."""
    with pa.memory_map(path) as source:
        return pa.ipc.open_stream(source).read_all()


class ThreadedFn(beam.DoFn):
    """A DoFn whose `work` runs in threads while Beam goes on; numpy and Arrow let go of the interpreter lock.

    Results are emitted in the order of the elements, at most `threads` + 1 of them are held back.
    """

    threads = 2

    def setup(self) -> None:
        """Starts the threads."""
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=type(self).__name__)

    def teardown(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def start_bundle(self) -> None:
        """Begins with nothing under way."""
        self._pending: deque[Future[Any]] = deque()

    def work(self, element: Any, side: Any) -> Any:
        """Computes the result of one element (and a side input, where the step has one); runs in a thread."""
        raise NotImplementedError(f"{type(self).__name__} has no work to do")

    def emit(self, result: Any) -> Iterable[Any]:
        """Yields the outputs of one result; runs in Beam's own thread, where metrics count."""
        yield result

    def process(self, element: Any, side: Any = None) -> Iterator[Any]:
        """Hands the element to a thread, and emits what is ready."""
        self._pending.append(self._pool.submit(self.work, element, side))
        while len(self._pending) > self.threads:
            yield from self.emit(self._pending.popleft().result())

    def finish_bundle(self) -> Iterator[Any]:
        """Emits the rest."""
        while self._pending:
            for output in self.emit(self._pending.popleft().result()):
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(output.tag, _in_global_window(output.value))
                else:
                    yield _in_global_window(output)


def _in_global_window(value: Any) -> WindowedValue:
    window = GlobalWindow()
    return WindowedValue(value, window.max_timestamp(), (window,))
