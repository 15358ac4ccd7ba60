"""Arithmetic on eight text bytes at a time, over whole columns of numpy ``uint64``.

A word holds eight consecutive bytes of the text, the first in the low byte. Every function works element-wise and
costs a few vector operations, which is how millions of lines a second are parsed without a compiled extension.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = [
    "U64",
    "Words",
    "decimal_prefix",
    "decimal_suffix",
    "first",
    "hex8",
    "is_hex",
    "label",
    "prefix_length",
    "suffix_length",
    "word_view",
]

Words = np.ndarray[Any, np.dtype[np.uint64]]
U64 = np.uint64

_ONES: Final = U64(0x0101010101010101)
_HIGH: Final = U64(0x8080808080808080)
_LOW7: Final = U64(0x7F7F7F7F7F7F7F7F)
_ZEROS: Final = U64(0x3030303030303030)  # eight '0' characters
_EIGHT: Final = U64(8)
_LOWER: Final = _ONES * U64(0x20)
_SIXTY: Final = _ONES * U64(0x60)
_TEN_UP: Final = _ONES * U64(0x76)
_SEVEN_UP: Final = _ONES * U64(0x79)
_TWENTYSEVEN_UP: Final = _ONES * U64(0x65)
_UNDERSCORES: Final = _ONES * U64(0x5F)
_LOW4: Final = _ONES * U64(0x0F)
_ALL: Final = U64(0xFFFFFFFFFFFFFFFF)


def word_view(data: np.ndarray[Any, np.dtype[np.uint8]]) -> Words:
    """A view in which element i is the word that starts at byte i (unaligned, overlapping)."""
    return np.ndarray(len(data) - 7, dtype="<u8", buffer=data.data, strides=(1,))


def label(text: bytes) -> tuple[U64, U64]:
    """Mask and value that compare the first ``len(text)`` (at most eight) bytes of a word with `text`."""
    length = len(text)
    return U64((1 << 8 * length) - 1), U64(int.from_bytes(text, "little"))


def first(mark: Words) -> Words:
    """Index (0 to 7) of the first marked byte, 8 if none; marks are 0x80 in a byte."""
    # The bits below the lowest mark are 8 * index + 7; without a mark the subtraction wraps to 64 bits, 64 >> 3 = 8.
    return np.bitwise_count((mark & (~mark + U64(1))) - U64(1)).astype(U64) >> U64(3)


def _not_digit(word: Words) -> Words:
    value = (
        word ^ _ZEROS
    )  # a digit becomes 0 to 9; adding 0x76 to seven bits sets the eighth from 10 on, without a carry
    return ((value & _LOW7) + _TEN_UP | value) & _HIGH


def _not_hex(word: Words) -> Words:
    value = (word | _LOWER) ^ _SIXTY  # a letter a to f becomes 1 to 6
    seven = value & _LOW7
    not_letter = seven + _SEVEN_UP | value | ~(seven + _LOW7)
    result: Words = _not_digit(word) & not_letter
    return result


def _not_name(word: Words) -> Words:
    value = (word | _LOWER) ^ _SIXTY  # a letter becomes 1 to 26
    seven = value & _LOW7
    not_letter = seven + _TWENTYSEVEN_UP | value | ~(seven + _LOW7)
    line = word ^ _UNDERSCORES
    not_line = (line & _LOW7) + _LOW7 | line
    mark: Words = _not_digit(word) & not_letter & not_line
    return mark


def is_hex(word: Words) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether all eight bytes are hexadecimal digits."""
    result: np.ndarray[Any, np.dtype[np.bool_]] = _not_hex(word) == 0
    return result


def prefix_length(word: Words, characters: str) -> Words:
    """How many bytes from the first on are `characters`: ``digits``, ``hex``, ``name``, ``spaces`` or
    ``nonspaces``.
    """
    return first(_others(word, characters))


def suffix_length(word: Words, characters: str) -> Words:
    """How many bytes, counted back from the last, are `characters`."""
    mark = _others(word, characters)
    # Smear the highest mark downwards: then the number of marks is one more than its index.
    mark = mark | mark >> U64(8)
    mark = mark | mark >> U64(16)
    mark = mark | mark >> U64(32)
    return _EIGHT - np.bitwise_count(mark).astype(U64)


def _others(word: Words, characters: str) -> Words:
    if characters == "digits":
        return _not_digit(word)
    if characters == "hex":
        return _not_hex(word)
    if characters == "name":
        return _not_name(word)
    difference = word ^ _LOWER
    not_space = ((difference & _LOW7) + _LOW7 | difference) & _HIGH
    return not_space if characters == "spaces" else ~not_space & _HIGH


def decimal_suffix(word: Words, digits: Words) -> Words:
    """Value of the last `digits` (0 to 8) bytes, which are decimal digits."""
    shift = (_EIGHT - digits) << U64(3)
    # numpy defines a shift by 64 as 0, so no digits give eight '0' characters.
    keep = _ALL << shift
    return _decimal8(word & keep | _ZEROS & ~keep)


def decimal_prefix(word: Words, digits: Words) -> Words:
    """Value of the first `digits` (0 to 8) bytes, which are decimal digits."""
    return decimal_suffix(word << ((_EIGHT - digits) << U64(3)), digits)


def _decimal8(word: Words) -> Words:
    """Value of eight decimal digits: pairs, then fours, then all by two multiplications."""
    word = word - _ZEROS
    word = word * U64(10) + (word >> U64(8))
    low = word & U64(0x000000FF000000FF)
    high = word >> U64(16) & U64(0x000000FF000000FF)
    return low * U64(0x000F424000000064) + high * U64(0x0000271000000001) >> U64(32)


def hex8(word: Words) -> Words:
    """Value of eight hexadecimal digits; bytes of 0 count as '0', so a short number shifted up to the high bytes
    works.
    """
    nibbles = (word & _LOW4) + U64(9) * (word >> U64(6) & _ONES)
    pairs = (nibbles & U64(0x000F000F000F000F)) << U64(4) | nibbles >> U64(8) & U64(0x000F000F000F000F)
    fours = (pairs & U64(0x000000FF000000FF)) << U64(8) | pairs >> U64(16) & U64(0x000000FF000000FF)
    return (fours & U64(0xFFFF)) << U64(16) | fours >> U64(32) & U64(0xFFFF)
