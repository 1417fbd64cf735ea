"""Memory for the weights that kernels read: large pages, and what belongs to a layer side by side.

A processor that streams weights from memory looks every page up. Pages of 2 MiB are looked up five hundred times more
seldom than those of 4 KiB, and its prefetchers stop at fewer borders.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

PAGE, CHUNK, LINE = 2 << 20, 8 << 20, 64  # bytes
_lock = threading.Lock()
_shared: list[tuple[memoryview, int]] = []  # the chunk that small layers still go to, and how much of it is taken


def placed(tensors: Sequence[Tensor]) -> tuple[list[Tensor], memoryview]:
    """Copies of a layer's tensors, each with a storage of its own, and the memory in which they lie side by side.

    It goes when neither a tensor nor anybody else holds it.
    """
    room = _taken(sum(_whole(t.nbytes, LINE) for t in tensors))
    copies, at = [], 0
    for tensor in tensors:
        copy = tensor.clone()
        if tensor.nbytes:
            copy.data = torch.frombuffer(room[at:], dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
            copy.copy_(tensor)
        copies.append(copy)
        at += _whole(tensor.nbytes, LINE)
    return copies, room


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _taken(size: int) -> memoryview:
    if size > CHUNK // 2:
        return _mapped(size)
    with _lock:
        if not _shared or _shared[0][1] + size > CHUNK:
            _shared[:] = [(_mapped(CHUNK), 0)]
        chunk, taken = _shared[0]
        _shared[0] = chunk, taken + size
        return chunk[taken : taken + size]


def _mapped(size: int) -> memoryview:
    """New memory, on large pages where this system has them."""
    found: mmap.mmap | bytearray
    unit = PAGE
    try:
        found = mmap.mmap(-1, size + unit, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        found.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # another system, or one without such pages
        unit = LINE
        found = bytearray(size + unit)
    first = -torch.frombuffer(found, dtype=torch.uint8).data_ptr() % unit
    return memoryview(found)[first : first + size]
