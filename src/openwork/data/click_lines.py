"""Lines of click data as numbers, many at a time: label, 13 integers, 26 hexadecimal categories, tabs between."""

from __future__ import annotations

from typing import Any

import numpy as np

INTEGERS, CATEGORIES = 13, 26
FIELDS = INTEGERS + CATEGORIES
LONGEST = {10: 11, 16: 8}  # characters of a value: a sign and ten digits, or 32 bits

Array = np.ndarray[Any, np.dtype[Any]]

_DIGIT = np.full(256, 255, dtype=np.uint8)
for _value, _letter in enumerate(b"0123456789abcdef"):
    _DIGIT[_letter] = _value
for _value, _letter in enumerate(b"ABCDEF", 10):
    _DIGIT[_letter] = _value


def parse_lines(block: bytes, bins: int) -> tuple[Array, Array, Array]:
    r"""The whole lines of a block; a line that breaks the form is left out.

    Args:
        block: bytes that end with a newline.
        bins: categories a field; 0 stands for a missing one, the others share 1 .. bins - 1 by their remainder.

    Returns:
        x float32 ``[n, 39]``: sign times log(1 + size) of each integer, a missing one as 0, then the category
        numbers; y int64 ``[n]``; and a bool for each line of the block that tells which were kept.

    Examples:
        >>> line = b"1" + b"\t7" + b"\t" * 12 + b"\t0000000c" + b"\t" * 25 + b"\n"
        >>> x, y, kept = parse_lines(line + b"broken\n", bins=11)
        >>> x[0, [0, 1, 13, 14]].round(3).tolist(), y.tolist(), kept.tolist()
        ([2.07..., 0.0, 3.0, 0.0], [1], [True, False])
    """
    letters = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    tabs = np.flatnonzero(letters == ord("\t"))
    first, last = np.searchsorted(tabs, starts), np.searchsorted(tabs, ends)
    kept = last - first == FIELDS
    lines = np.flatnonzero(kept)
    between = tabs[first[lines, None] + np.arange(FIELDS)] if len(lines) else np.zeros((0, FIELDS), dtype=np.int64)
    begin = np.concatenate([starts[lines, None], between + 1], axis=1)  # [n, 40]
    length = np.concatenate([between, ends[lines, None]], axis=1) - begin
    label = letters[begin[:, 0]] - ord("0")
    fine = (length[:, 0] == 1) & (label <= 1)
    counts, right = _numbers(letters, begin[:, 1 : 1 + INTEGERS], length[:, 1 : 1 + INTEGERS], 10)
    keys, right_too = _numbers(letters, begin[:, 1 + INTEGERS :], length[:, 1 + INTEGERS :], 16)
    fine &= right & right_too
    kept[lines[~fine]] = False
    x = np.empty((int(fine.sum()), FIELDS), dtype=np.float32)
    x[:, :INTEGERS] = (np.sign(counts) * np.log1p(np.abs(counts)))[fine]
    x[:, INTEGERS:] = np.where(length[:, 1 + INTEGERS :] == 0, 0, keys % (bins - 1) + 1)[fine]
    return x, label[fine].astype(np.int64), kept


def _numbers(letters: Array, begin: Array, length: Array, base: int) -> tuple[Array, Array]:
    """The values of cells ``[n, fields]``, empty ones 0, and whether each line holds nothing but numbers."""
    # A cell at the very end of the block may be empty, so its first position is kept inside.
    negative = (base == 10) & (length > 0) & (letters[np.minimum(begin, len(letters) - 1)] == ord("-"))
    begin, digits = begin + negative, length - negative
    fine = (length <= LONGEST[base]) & ~(negative & (digits == 0))
    value = np.zeros(begin.shape, dtype=np.int64)
    for place in range(min(int(digits.max(initial=0)), LONGEST[base])):
        inside = place < digits
        digit = _DIGIT[letters[np.minimum(begin + place, len(letters) - 1)]]
        fine &= ~inside | (digit < base)
        value = np.where(inside, value * base + digit, value)
    return np.where(negative, -value, value), fine.all(axis=1)
