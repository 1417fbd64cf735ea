"""The IDX format: a type byte, the sizes, the values."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openwork.errors import DataError

UINT8 = 8


def unpacked(path: Path) -> bytes:
    """The bytes of a file, after gunzip when its name ends in ``.gz``.

    Raises:
        DataError: the archive is damaged or cut short.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from error


def parse_idx(content: bytes, owner: str) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of bytes.

    Raises:
        DataError: another format, another type, or a length that does not fit the sizes.

    Examples:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "three").tolist()
        [7, 8, 9]
    """
    if len(content) < 4 or content[:2] != b"\0\0" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{owner} is not an IDX file: it starts with {content[:4].hex() or 'nothing'}")
    if content[2] != UINT8:
        raise DataError(f"{owner} must hold bytes (IDX type 8), got type {content[2]}")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        found = len(content) - start
        raise DataError(f"{owner} must hold {math.prod(shape)} values for {shape}, got {found}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
