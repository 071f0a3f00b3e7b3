"""Hashes of columns: equal values, equal hashes, whatever the array looks like."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from transforms.hashing import conversation_key_hash, hash_column

TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=20), st.text(min_size=100, max_size=300)), max_size=40)


@given(TEXTS, st.integers(0, 5))
def test_a_hash_depends_on_the_value_only(texts: list[str | None], cut: int) -> None:
    """Slices, dictionaries and chunks of a column have the hashes of its values."""
    plain = pa.array(texts, pa.string())
    want = hash_column(plain)
    assert hash_column(plain.slice(min(cut, len(texts)))).tolist() == want[cut:].tolist()
    assert hash_column(plain.dictionary_encode()).tolist() == want.tolist()
    assert hash_column(pa.chunked_array([plain, plain], pa.string())).tolist() == [*want, *want]
    by_value = dict(zip(texts, want.tolist(), strict=True))
    assert len(set(by_value.values())) == len(by_value)


def test_the_same_in_every_process() -> None:
    """Python's own hash of text differs from process to process; this one may not."""
    code = (
        "import pyarrow as pa; from transforms.hashing import hash_column;"
        "print(hash_column(pa.array(['a', None, 'b' * 200, ''])).tolist())"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(said) == 1 and "[" in said.pop()


def test_keys_of_different_kinds_differ() -> None:
    """A conversation_id never meets a customer of the same name, and the account is part of the key."""

    def key(*values: str | None) -> int:
        return int(conversation_key_hash(*(pa.array([v], pa.string()) for v in values))[0])

    keys = [
        key("a", "1", "x", "1"),
        key("a", None, "x", "1"),
        key("a", None, "1", "x"),
        key("b", "1", "x", "1"),
        key(None, "1", "x", "1"),
        key(None, None, "x", "1"),
    ]
    assert len(set(keys)) == len(keys)
    assert key("a", "1", "x", "1") == key("a", "1", "mail", None)
    assert np.dtype(np.uint64) == hash_column(pa.array(["a"])).dtype
