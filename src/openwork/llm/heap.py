"""Memory of this process: how much it held at most, and giving back what was freed."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MMAP_THRESHOLD = -3
"""glibc's name for the size from which memory comes from the system at once, instead of from the heap."""


def resident() -> int:
    """Largest resident memory of this program so far, bytes; not that of the process which started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(n for n in status.read_text().splitlines() if n.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Return freed memory to the system, where the C library (glibc) would keep it between blocks."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def at_once(size: int = 1 << 20) -> Iterator[None]:
    """Memory of ``size`` bytes and more comes from the system, and goes back when it is freed.

    glibc raises that size by itself, up to 32 MiB, whenever such memory is freed; matrices then leave holes in the heap
    that nothing else fits into. Afterwards the size is 32 MiB. Does nothing where the C library is another one.
    """
    set_option = _glibc("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, size)
    try:
        yield
    finally:
        if set_option is not None:
            set_option(_MMAP_THRESHOLD, 1 << 25)


def _glibc(name: str) -> Any:
    """A function of the C library; None where it is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
