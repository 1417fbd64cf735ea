"""The machine that runs: its processor, whose name measurements carry, and the memory that is left."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path


@functools.cache
def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor as the system tells it; that of its architecture where it tells none."""
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line)
    return next(named, "") or platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
