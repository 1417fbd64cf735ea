"""Polarisers: from a soft mask to the mask used in the forward pass, and from its gradient back.

All work on concatenated vectors ``[n_units]``: the soft mask ``m``, the context ``a = |m| W`` (``W`` the sum of ``|w|`` over the
unit) and the density to keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from openwork.core.select import count_kept, keep_top

EPS, RATIO = 0.9, 0.9
Back = Callable[[Tensor], Tensor]
Polarised = tuple[Tensor, Back]
"""The forward mask, and the map from ``dE/db`` to ``dE/dm``."""

KINDS = ("ohh", "ohm", "oh", "qt", "qtm", "gau", "id")


def polarise(kind: str, m: Tensor, a: Tensor, density: float) -> Polarised:
    """Apply one polariser.

    ``ohh`` is binary and straight-through: every entry, pruned or not, gets the gradient of the binary mask, which is what
    lets entries regrow. ``ohm`` keeps the soft values of survivors, ``oh`` makes them one; both give no gradient to the
    rest. ``qt`` is a sigmoid between two quantiles, ``gau`` the same with Gaussian quantiles, ``qtm`` its value as a
    constant factor. ``id`` does nothing.
    """
    if kind == "id":
        return m, lambda slope: slope
    if kind in ("ohh", "ohm", "oh"):
        hard = keep_top(a, count_kept(density, a.numel())).to(m.dtype)
        if kind == "ohh":
            return hard, lambda slope: slope
        if kind == "ohm":
            return m * hard, lambda slope: slope * hard
        return hard, lambda slope: slope * hard / torch.where(hard > 0, m, torch.ones_like(m))
    low, high = _bounds(kind, a, 1 - density)
    if not high > low:
        return torch.ones_like(m), lambda slope: torch.zeros_like(slope)
    span = 2 * math.log(EPS / (1 - EPS)) / (high - low)
    soft = torch.sigmoid((a - low) * span - math.log(EPS / (1 - EPS)))
    if kind == "qtm":
        return soft * m, lambda slope: slope * soft
    weight = torch.where(m != 0, a / m, torch.zeros_like(a))  # da/dm = sign(m) W
    return soft, lambda slope: slope * soft * (1 - soft) * span * weight


def _bounds(kind: str, a: Tensor, share: float) -> tuple[float, float]:
    if share <= 0:
        return 0.0, 0.0
    if kind == "gau":
        mean, std = float(a.mean()), float(a.std())
        inner = NormalDist()
        return mean + inner.inv_cdf(RATIO * share) * std, mean + inner.inv_cdf(share) * std
    ordered = a.sort().values
    last = a.numel() - 1
    return float(ordered[int(RATIO * share * last)]), float(ordered[int(share * last)])
