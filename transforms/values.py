"""Reads values of a column, whatever Arrow type they came in: text, words, numbers and flags.

Each function returns the values in the contract's type and which rows hold a value of a wrong type. Empty text is
null in every column; integers are text where text is due.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hashing import dictionary_codes, valid_rows
from transforms.schema import WORD
from transforms.times import Mask, is_text

ABSENT = 255
"""Code of a null."""

UNKNOWN = 254
"""Code of a word that is none of the known ones."""


def _is_whole_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0))


def _refused(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """A column of a wrong type: nothing but nulls, and every value of it at fault."""
    wrong = None if array.null_count == len(array) else valid_rows(array)
    return pa.nulls(len(array), kind), wrong


def as_text(array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """Values of a text column as plain strings.

    Args:
      array: text, integers, decimals without a fraction, or dictionaries of them; all else is wrong.

    Returns:
      Strings, null where empty, and the rows of a wrong type (None where there are none).
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if is_text(kind) or _is_whole_number(kind):
        array = array.cast(pa.string())
        if pc.min(pc.binary_length(array)).as_py() == 0:
            array = pc.if_else(pc.equal(array, ""), None, array)
        return array, None
    return _refused(array, pa.string())


def as_words(array: pa.Array, are_ids: bool = False) -> tuple[pa.DictionaryArray, Mask | None]:
    """Values of a text column with few distinct values, as codes into a dictionary without null or empty text.

    Args:
      array: as for `as_text`.
      are_ids: the dictionary may have a text more than once: equal ids need not have equal codes.

    Returns:
      dictionary<int32, string> and the rows of a wrong type (None where there are none).
    """
    kind = array.type
    if array.null_count == len(array):
        return pa.DictionaryArray.from_arrays(pa.nulls(len(array), pa.int32()), pa.array([], pa.string())), None
    if pa.types.is_dictionary(kind) and is_text(kind.value_type):
        words = array.dictionary
        empties = int(np.count_nonzero(pc.equal(pc.binary_length(words), 0).fill_null(True)))
        is_unique = empties < 2 and (are_ids or pc.count_distinct(words).as_py() == len(words))
        if words.null_count == 0 and is_unique:
            words = words.cast(pa.string())
            empty = pc.index(words, "").as_py() if empties else -1
            if empty < 0 and kind == WORD:
                return array, None
            codes = array.indices.cast(pa.int32())
            if empty >= 0:
                codes = pc.if_else(pc.equal(codes, empty), None, codes)
            return pa.DictionaryArray.from_arrays(codes, words, safe=False), None
    values, wrong = as_text(array)
    return pc.dictionary_encode(values).cast(WORD), wrong


def codes_of(words: pa.DictionaryArray, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Place of each word in a list of names, as uint8; UNKNOWN for others, ABSENT for null."""
    known = pc.index_in(words.dictionary, value_set=pa.array(names, pa.string()))
    table = np.append(known.fill_null(UNKNOWN).to_numpy(), ABSENT).astype(np.uint8)
    # (Null is -1, the last one.)
    return np.asarray(table.take(dictionary_codes(words)), dtype=np.uint8)


def as_numbers(array: pa.Array, from_text: bool = False) -> tuple[pa.Array, Mask | None]:
    """Values of a number column as doubles.

    Args:
      array: any Arrow array.
      from_text: text is parsed, as in CSV; else text that is not empty is wrong.

    Returns:
      Doubles (NaN and infinity among them) and the rows of a wrong type (None where there are none).
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return as_numbers(array.dictionary_decode(), from_text)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64(), safe=False), None
    if not (from_text and is_text(kind)):
        return _refused(_without_empty(array), pa.float64())
    text, _ = as_text(array)
    try:
        return text.cast(pa.float64()), None
    except pa.ArrowInvalid:
        return _parsed_where(text, r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))$", pa.float64())


def as_flags(array: pa.Array, from_text: bool = False) -> tuple[pa.Array, Mask | None]:
    """Values of a boolean column.

    Args:
      array: any Arrow array.
      from_text: text is parsed, as in CSV: true and false in any case, 1 and 0; else text that is not empty is wrong.

    Returns:
      Booleans and the rows of a wrong type (None where there are none).
    """
    if pa.types.is_dictionary(array.type):
        return as_flags(array.dictionary_decode(), from_text)
    if pa.types.is_boolean(array.type):
        return array, None
    if not (from_text and is_text(array.type)):
        return _refused(_without_empty(array), pa.bool_())
    text, _ = as_text(array)
    return _parsed_where(text, r"^((?i:true|false)|0|1)$", pa.bool_())


def _without_empty(array: pa.Array) -> pa.Array:
    return as_text(array)[0] if is_text(array.type) else array


def _parsed_where(text: pa.Array, pattern: str, kind: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Text that has the pattern, in another type; all other text is wrong."""
    good = pc.match_substring_regex(text, pattern)
    wrong = np.asarray(pc.invert(good).fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)
    return pc.if_else(good, text, None).cast(kind), wrong if wrong.any() else None


def is_readable_as_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are taken as text: text, whole numbers, dictionaries of them, or only nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_null(kind) or is_text(kind) or _is_whole_number(kind))
