"""Essential sparsity: how far a model can be pruned before it drops, and where the curve bends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from openwork.errors import DataError

TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Curve:
    """Scores (larger is better) by sparsity, ascending from 0; ``std`` over seeds, 0 for one."""

    sparsity: tuple[float, ...]
    score: tuple[float, ...]
    std: tuple[float, ...] = ()
    seeds: Mapping[float, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.sparsity) != len(self.score) or list(self.sparsity) != sorted(set(self.sparsity)):
            raise DataError("a curve needs one score per sparsity, sparsities ascending and different")
        if not all(math.isfinite(p) for p in self.score):
            raise DataError(f"a curve needs finite scores, got {list(self.score)}")


def sparsity_curve(evaluate: Callable[[float, int], float], levels: Sequence[float] = TENTHS, seeds: int = 1) -> Curve:
    """``evaluate(sparsity, seed)`` prunes a fresh copy once and scores it; 0 is the dense model."""
    found = {s: tuple(float(evaluate(s, seed)) for seed in range(seeds)) for s in sorted(set(levels))}
    means = tuple(sum(v) / len(v) for v in found.values())
    stds = tuple(float(torch.tensor(v, dtype=torch.float64).std()) if len(v) > 1 else 0.0 for v in found.values())
    return Curve(tuple(found), means, stds, found)


@dataclass(frozen=True)
class Essential:
    """Three estimates of the last sparsity that is free.

    Attributes:
        tolerance: largest level up to which EVERY score is within ``allowed`` of the dense one.
        chord: level of the largest height above the straight line between the ends, both axes scaled to [0, 1].
        segments: break of the best two straight lines; ``slopes`` before and after it.
        allowed: the tolerance used: the one asked for, or two standard deviations where seeds scatter more.
        knee: False when the curve is flat, or no steeper behind the break than before it.
    """

    tolerance: float
    chord: float
    segments: float
    slopes: tuple[float, float]
    allowed: float
    knee: bool

    @property
    def sharpness(self) -> float:
        """How many times steeper the curve is behind the break."""
        before, after = (abs(s) for s in self.slopes)
        return math.inf if before == 0 < after else after / before if before else 1.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sharpness": self.sharpness}


def essential_sparsity(curve: Curve, tolerance: float = 0.01) -> Essential:
    """Where a curve drops.

    Args:
        curve: at least 4 levels.
        tolerance: in units of the score; two standard deviations of the seeds of a level, or of the dense model, where
            these are more.

    Raises:
        DataError: fewer than 4 levels, or a negative tolerance.
    """
    s, p = curve.sparsity, curve.score
    if len(s) < 4:
        raise DataError(f"essential_sparsity needs at least 4 levels, got {len(s)}")
    if tolerance < 0:
        raise DataError(f"essential_sparsity: tolerance must not be negative, got {tolerance}")
    std = curve.std or (0.0,) * len(s)
    room = [max(tolerance, 2 * std[0], 2 * noise) for noise in std]
    free = 0
    while free + 1 < len(s) and p[free + 1] >= p[0] - room[free + 1] - 1e-12:
        free += 1
    allowed = max(room[: free + 1])
    low, high = min(p), max(p)
    if high - low <= 1e-12:
        return Essential(s[-1], s[-1], s[-1], (0.0, 0.0), allowed, False)
    x = [(v - s[0]) / (s[-1] - s[0]) for v in s]
    y = [(v - low) / (high - low) for v in p]
    line = [y[0] + (y[-1] - y[0]) * v for v in x]
    chord = max(range(len(s)), key=lambda i: (y[i] - line[i], -i))
    at, slopes = _two_lines(s, p)
    knee = abs(slopes[1]) > abs(slopes[0]) and slopes[1] < 0
    return Essential(s[free], s[chord], s[at], slopes, allowed, knee)


def bisected(evaluate: Callable[[float, int], float], curve: Curve, tolerance: float = 0.01, times: int = 1) -> Curve:
    """The curve with up to ``times`` further levels, each halfway between the last free level and the next one.

    A level that is free moves the lower end up, one that is not the upper end down. A curve whose every level is free
    stays as it is. ``curve`` comes from ``sparsity_curve``: as many seeds are measured.
    """
    for _ in range(times):
        free = essential_sparsity(curve, tolerance).tolerance
        above = [s for s in curve.sparsity if s > free]
        if not above:
            break
        level = round((free + above[0]) / 2, 9)
        seeds = len(next(iter(curve.seeds.values())))
        more = sparsity_curve(evaluate, (level,), seeds)
        found = sorted([*zip(curve.sparsity, curve.score, curve.std, strict=True), (level, more.score[0], more.std[0])])
        s, p, std = zip(*found, strict=True)
        curve = Curve(s, p, std, {k: {**curve.seeds, **more.seeds}[k] for k in s})
    return curve


def _two_lines(s: Sequence[float], p: Sequence[float]) -> tuple[int, tuple[float, float]]:
    """The inner level at which two straight lines that share it leave the smallest squares."""
    best: tuple[float, int, tuple[float, float]] = (math.inf, 1, (0.0, 0.0))
    for i in range(1, len(s) - 1):
        left, right = _line(s[: i + 1], p[: i + 1]), _line(s[i:], p[i:])
        if left[1] + right[1] < best[0] - 1e-15:
            best = (left[1] + right[1], i, (left[0], right[0]))
    return best[1], best[2]


def _line(s: Sequence[float], p: Sequence[float]) -> tuple[float, float]:
    """(slope, summed squares) of the best line."""
    n = len(s)
    ms, mp = sum(s) / n, sum(p) / n
    slope = sum((a - ms) * (b - mp) for a, b in zip(s, p, strict=True)) / sum((a - ms) ** 2 for a in s)
    return slope, sum((b - mp - slope * (a - ms)) ** 2 for a, b in zip(s, p, strict=True))


def mask_cosine(one: Tensor, other: Tensor) -> float:
    """``|one and other| / sqrt(|one| |other|)``; 1 for equal masks, about d for random ones of density d."""
    if one.shape != other.shape or one.dtype != torch.bool or other.dtype != torch.bool:
        raise DataError(f"mask_cosine needs two bool masks of one shape, got {tuple(one.shape)}, {tuple(other.shape)}")
    size = math.sqrt(int(one.sum()) * int(other.sum()))
    return int((one & other).sum()) / size if size else 0.0


def induced_sparsity(checkpoints: Sequence[Mapping[str, Tensor]], threshold: float) -> dict[str, list[float]]:
    """Share of entries below one absolute threshold, by tensor and ``"total"``, checkpoint after checkpoint."""
    if not checkpoints or not threshold > 0:
        raise DataError(f"induced_sparsity needs checkpoints and a positive threshold, got {threshold}")
    found: dict[str, list[float]] = {name: [] for name in (*checkpoints[0], "total")}
    for tensors in checkpoints:
        small = {n: int((t.abs() < threshold).sum()) for n, t in tensors.items()}
        for name, count in small.items():
            found[name].append(count / tensors[name].numel())
        found["total"].append(sum(small.values()) / sum(t.numel() for t in tensors.values()))
    return found


def abrupt(values: Sequence[float]) -> tuple[int, float]:
    """The step with the largest increase, and how many times the median increase it is (more than 5: abrupt)."""
    if len(values) < 3:
        raise DataError(f"abrupt needs at least 3 values, got {len(values)}")
    rises = [b - a for a, b in pairwise(values)]
    median = sorted(rises)[len(rises) // 2]
    at = max(range(len(rises)), key=rises.__getitem__)
    return at + 1, rises[at] / median if median > 0 else math.inf
