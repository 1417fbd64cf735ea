"""Memory of this process: how much it held at most, and giving back what was freed."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path


def resident() -> int:
    """Largest resident memory of this program so far, bytes; not that of the process which started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(n for n in status.read_text().splitlines() if n.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Return freed memory to the system, where the C library (glibc) would keep it between blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
