"""Arrow tables as Beam elements, and work in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import coders
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing.util import assert_that, equal_to

from pipelines.options import parse_beam_options
from transforms.batches import ArrowTableCoder, ThreadedFn, keep_table, kept_table

TABLE = pa.table({"word": pa.array(["a", None, "b"]).dictionary_encode(), "number": [1.5, None, 3.0]})


def test_a_table_survives_its_coder() -> None:
    """Types, dictionaries and nulls come back."""
    coder = ArrowTableCoder()
    back = coder.decode(coder.encode(TABLE))
    assert back.equals(TABLE) and back.schema.equals(TABLE.schema)
    assert coder.decode(coder.encode(TABLE.slice(0, 0))).num_rows == 0


def test_beam_finds_the_coder_by_type() -> None:
    """Alone and as the value of a key."""
    assert isinstance(coders.registry.get_coder(pa.Table), ArrowTableCoder)
    pair = coders.registry.get_coder(tuple[int, pa.Table])
    key, value = pair.decode(pair.encode((7, TABLE)))
    assert key == 7 and value.equals(TABLE)


def test_a_slice_does_not_drag_its_table_along() -> None:
    """Ten rows of a million are ten rows on the wire, and the size is told without encoding."""
    table = pa.table({"number": pa.array(range(1_000_000))})
    coder = ArrowTableCoder()
    assert len(coder.encode(table.slice(500, 10))) < 2_000
    assert coder.estimate_size(table) == table.nbytes


class _Double(ThreadedFn):
    def work(self, element: int, side: int | None) -> tuple[int, str]:
        time.sleep(0.002 * (element % 3))
        return element * 2 + (side or 0), threading.current_thread().name

    def emit(self, result: tuple[int, str]) -> Iterator[Any]:
        yield TaggedOutput("thread", result[1].startswith("_Double"))
        yield result[0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_threads_keep_the_order(count: int) -> None:
    """Every element once, in order, through both outputs, whatever thread was faster."""
    with beam.Pipeline(options=parse_beam_options([])) as pipeline:
        out = pipeline | beam.Create([list(range(count))]) | beam.FlatMap(list) | _tagged(_Double())
        together = out.main | beam.combiners.ToList()
        assert_that(together, equal_to([[n * 2 for n in range(count)]]), label="numbers")
        assert_that(out.thread, equal_to([True] * count), label="threads")


def _tagged(fn: ThreadedFn) -> Any:
    return beam.ParDo(fn).with_outputs("thread", main="main")


def test_an_error_in_a_thread_fails_the_step() -> None:
    """It is not lost in the thread."""

    class Broken(ThreadedFn):
        def work(self, element: int, side: None) -> int:
            raise ValueError(f"no {element}")

    with pytest.raises(Exception, match="no 3"), beam.Pipeline(options=parse_beam_options([])) as pipeline:
        pipeline | beam.Create([3]) | beam.ParDo(Broken())


def test_a_table_that_is_kept_anew(tmp_path: Path) -> None:
    """A worker that begins anew writes under the same name; who has the earlier one mapped keeps it."""
    path = str(tmp_path / "kept")
    table = pa.table({"a": list(range(1000)), "b": pa.array(["x", "y"] * 500).dictionary_encode()})
    assert keep_table(table, path) == path
    earlier = kept_table(path)
    keep_table(table.slice(0, 0), path)
    assert earlier.equals(table) and kept_table(path).equals(table.slice(0, 0))
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
