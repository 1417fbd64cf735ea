"""Times that can be compared: candidates in turn, round after round, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int = 7, least: float = 2e-3, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of every candidate, ``rounds`` of them.

    A candidate runs as often in a round as ``least`` seconds take, so that short calls are averaged. One thread is
    timed by the processor's clock, which other programs disturb less; several by the wall's.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats: dict[str, int] = {}
    for name, call in candidates.items():
        for _ in range(max(1, warmup)):
            began = clock()
            call()
            took = clock() - began
        repeats[name] = max(1, min(1000, round(least / max(took, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            began = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - began) / repeats[name])
    return times


def spread(times: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    ordered = sorted(times)
    n = len(ordered)
    return {"ms": 1e3 * median(ordered), "low": 1e3 * ordered[n // 4], "high": 1e3 * ordered[(3 * n) // 4]}
