"""Scores become a choice here and nowhere else.

``keep_top`` is exact: it keeps as many units as it was told, ties go to the lower index, NaN is refused.
Five internal paths (threshold; rows partitioned, counted or sorted; sort) give one answer; a test holds them to it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from openwork.core.across import Across
from openwork.core.select_sharded import keep_top_sharded
from openwork.errors import OpenworkError

Rounding = Literal["ceil", "floor", "nearest"]


def count_kept(share: float, n: int, rounding: Rounding = "ceil") -> int:
    """How many of ``n`` units a share keeps.

    ``ceil`` prunes ``floor((1 - share) n)`` units (the library's rule), ``floor`` keeps
    ``floor(share n)`` (SequentialAttention++), ``nearest`` rounds half up (Global MP, gradual pruning).

    Examples:
        >>> count_kept(0.25, 10), count_kept(0.25, 10, "floor"), count_kept(0.1, 10, "floor")
        (3, 2, 1)
    """
    # (1 - 0.9) * 10 is 0.9999999999999998 in floating point: a product this close to an integer is that integer
    slack = 1e-9 + 1e-15 * n
    if rounding == "ceil":
        return max(0, min(n, math.ceil(share * n - slack)))
    if rounding == "floor":
        return max(0, min(n, math.floor(share * n + slack)))
    if rounding == "nearest":
        return max(0, min(n, math.floor(share * n + 0.5 + slack)))
    raise OpenworkError(f"rounding must be 'ceil', 'floor' or 'nearest', got {rounding!r}")


def keep_top(scores: Tensor, keep: int | Tensor, scope: int | Tensor | Across | None = None) -> Tensor:
    """Keep the units with the largest scores, exactly ``keep`` of them.

    Args:
        scores: ``[n]``, floating, integer or bool; larger means keep; infinities are allowed.
        keep: how many, an int, or an integer tensor with one count per region when ``scope`` is given.
        scope: where the quota holds. None: one region; an int: consecutive runs of that length
            (N:M, rows); a tensor ``[n]`` of region ids ``0..regions-1``: any regions; an ``Across``: one region
            whose units lie in pieces on several ranks, all of which must call.

    Returns:
        bool ``[n]``. Among equal scores the lower index is kept.

    Raises:
        OpenworkError: NaN scores, a quota that is no integer, below 0 or above the region's size, a run that does
            not divide ``n``, ids that are not one non-negative integer per unit.

    Examples:
        >>> keep_top(torch.tensor([3.0, 1.0, 3.0, 2.0]), 2).tolist()
        [True, False, True, False]
        >>> keep_top(torch.tensor([1.0, 1.0, 0.0, 5.0]), 1, scope=2).tolist()
        [True, False, False, True]
    """
    scores = scores.detach()
    if scores.ndim != 1:
        raise OpenworkError(f"keep_top: scores must be one-dimensional, got shape {tuple(scores.shape)}")
    if isinstance(scope, Across):
        counts = scores.to(torch.uint8) if scores.dtype == torch.bool else scores
        return keep_top_sharded([counts], int(keep), scope.group, scope.traffic)[0]
    if scores.is_floating_point() and bool(torch.isnan(scores).any()):
        bad = int(torch.isnan(scores).nonzero()[0])
        raise OpenworkError(f"keep_top: scores must not be NaN, got NaN at unit {bad}; check the loss and the weights")
    if scores.dtype == torch.bool:
        scores = scores.to(torch.uint8)
    if scope is None:
        return _threshold(scores, _single(keep, scores.numel()))
    if isinstance(scope, int):
        if scope < 1 or scores.numel() % scope:
            raise OpenworkError(f"keep_top: runs of {scope} do not divide {scores.numel()} units")
        return _rows(scores, keep, scope)
    return _sorted(scores, keep, scope)


def _single(keep: int | Tensor, n: int) -> int:
    k = int(_quota(keep, 1, torch.device("cpu")))
    if not 0 <= k <= n:
        raise OpenworkError(f"keep_top: keep must be between 0 and the {n} units, got {k}")
    return k


def _quota(keep: int | Tensor, regions: int, device: torch.device) -> Tensor:
    """``[regions]`` int64."""
    quota = torch.as_tensor(keep, device=device)
    if quota.is_floating_point() or quota.numel() not in (1, regions):
        raise OpenworkError(f"keep_top: keep must be an integer, or one per region ({regions}), got {keep!r}")
    return quota.long().flatten().expand(regions)


def _threshold(scores: Tensor, k: int) -> Tensor:
    """One region: everything above the k-th largest value, then ties by index until the count is right."""
    n = scores.numel()
    if k in (0, n):
        return torch.full((n,), k == n, dtype=torch.bool, device=scores.device)
    cut = _kth_largest(scores, k)
    above = scores > cut
    missing = k - int(above.sum())
    ties = (scores == cut).nonzero().flatten()[:missing]
    above[ties] = True
    return above


def _kth_largest(scores: Tensor, k: int) -> Tensor:
    if _is_plain(scores):
        import numpy as np  # numpy's partition is vectorised quickselect: 10 M floats in well under 0.3 s

        flat = scores.numpy()
        at = flat.size - k
        return torch.as_tensor(np.partition(flat, at)[at])
    ordered = scores if scores.dtype not in (torch.bfloat16, torch.float16) else scores.float()
    return ordered.kthvalue(scores.numel() - k + 1).values.to(scores.dtype)


LONG = 64
"""Rows from this length on are cut at a threshold each instead of being sorted."""


def _is_plain(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64)


AT_ONCE = 1 << 19
"""Scores whose rows are cut together: few enough that what is made on the way stays in the cache."""


def _partitioned(rows: Tensor, k: int) -> Tensor:
    """The largest k of every row: all above its k-th largest value, then ties by index."""
    import numpy as np

    length = rows.shape[1]
    kept = torch.full(rows.shape, k == length, dtype=torch.bool)
    if k in (0, length):
        return kept
    several = max(1, AT_ONCE // length)
    for part, out in zip(rows.split(several), kept.split(several), strict=True):
        cut = torch.from_numpy(np.partition(part.numpy(), length - k, axis=1)[:, length - k, None].copy())
        torch.ge(part, cut, out=out)
        if int(out.sum()) != k * len(part):
            ties = part == cut
            out ^= ties
            out |= ties & (ties.cumsum(1) <= k - out.sum(1, keepdim=True))
    return kept


SHORT = 16
"""Rows up to this length are ranked by comparing every two of their scores."""


def _counted(rows: Tensor, quota: Tensor) -> Tensor:
    """The largest of every short row: a score's rank is the number of those before it."""
    kept = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    several = max(1, AT_ONCE // rows.shape[1])
    for part, count, out in zip(rows.split(several), quota.split(several), kept.split(several), strict=True):
        columns = part.t().contiguous()
        rank = torch.zeros(columns.shape, dtype=torch.uint8, device=rows.device)
        for later in range(1, len(columns)):
            for earlier in range(later):
                first = columns[earlier] >= columns[later]
                rank[later] += first
                rank[earlier] += ~first
        out.copy_((rank < count).t())
    return kept


def _rows(scores: Tensor, keep: int | Tensor, run: int) -> Tensor:
    """Consecutive runs of equal length, by the path that suits the length."""
    rows = scores.reshape(-1, run)
    quota = _quota(keep, rows.shape[0], scores.device)
    if bool((quota < 0).any()) or bool((quota > run).any()):
        raise OpenworkError(f"keep_top: keep must be between 0 and {run} in every run, got {quota.unique().tolist()}")
    if run >= LONG and rows.shape[0] and bool((quota == quota[0]).all()) and _is_plain(scores):
        return _partitioned(rows, int(quota[0])).flatten()
    if run <= SHORT:
        return _counted(rows, quota).flatten()
    order = rows.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(run, device=scores.device).expand_as(order))
    return (rank < quota[:, None]).flatten()


def _sorted(scores: Tensor, keep: int | Tensor, ids: Tensor) -> Tensor:
    """Any regions: sort by region, then by falling score, then by index."""
    if ids.shape != scores.shape or ids.is_floating_point() or bool((ids < 0).any()):
        raise OpenworkError(
            f"keep_top: scope needs one id per unit {tuple(scores.shape)}, integers from 0, got {tuple(ids.shape)} of "
            f"{ids.dtype}"
        )
    regions = keep.numel() if isinstance(keep, Tensor) and keep.ndim else 0  # the last ones may be empty
    sizes = torch.bincount(ids, minlength=regions)
    quota = _quota(keep, sizes.numel(), scores.device)
    if bool((quota < 0).any()) or bool((quota > sizes).any()):
        raise OpenworkError("keep_top: keep must be between 0 and the size of its region in every region")
    order = scores.argsort(descending=True, stable=True)
    order = order[ids[order].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(scores.numel(), device=scores.device) - starts[ids[order]]
    alive = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    alive[order] = rank < quota[ids[order]]
    return alive
