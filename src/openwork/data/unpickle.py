"""Pickles of plain data: numpy arrays in lists and dicts, and nothing that could run code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from openwork.errors import DataError

ARRAY = "numpy.ndarray"  # stands for the class, so that a pickle cannot call it


def _reconstruct(kind: Any, shape: Any, letter: Any) -> Any:
    """An empty array, as numpy's pickles ask for before they fill it."""
    if kind is not ARRAY:
        raise pickle.UnpicklingError(f"an array must be numpy.ndarray, got {kind!r}")
    if shape not in ((0,), ()):
        raise pickle.UnpicklingError(f"an array must be made empty, got shape {shape!r}")
    return np.ndarray(shape, letter)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in the oldest pickle protocols, which Python 3 writes as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must come as latin1 text, got {encoding!r}")
    return text.encode("latin1")


def _dtype(letters: Any, *flags: Any) -> np.dtype[Any]:
    text = letters.decode("latin1") if isinstance(letters, bytes) else letters
    found = np.dtype(text) if isinstance(text, str) else None
    if found is None or found.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array must hold numbers, got dtype {letters!r}")
    return found


# What numpy's own pickles name; both module paths, of numpy before and since 2.0. The values are ours.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which plain data does not need")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside of the file")


def plain_pickle(path: Path) -> Any:
    """What a pickle of numpy arrays, lists, dicts, strings, bytes and numbers holds; text of Python 2 as bytes.

    Raises:
        DataError: it names anything else, is cut short or damaged.
    """
    try:
        with path.open("rb") as stream:
            return _Plain(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError,
            OSError, TypeError, ValueError) as error:  # fmt: skip
        raise DataError(
            f"{path} must be a whole pickle of numpy arrays, lists, dicts, strings and numbers: {error}; "
            "unpack the archive again"
        ) from error
