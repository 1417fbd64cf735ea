"""Polarisers: from a soft mask to the mask of the forward pass, and from the gradient there back to the soft mask.

All work on vectors ``[units]``: the soft mask ``m``, its context ``a = |m| sum |w|`` and the density to keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from openwork.core.select import count_kept, keep_top
from openwork.errors import RecipeError

EPS, RATIO = 0.9, 0.9  # the values of all scripts of the paper's code
LOGIT = math.log(EPS / (1 - EPS))

Polarised = tuple[Tensor, Callable[[Tensor], Tensor]]
"""The forward mask ``b``, and the map from ``dE/db`` to ``dE/dm``."""

KINDS = ("ohh", "ohm", "oh", "qt", "qtm", "gau", "id")


def polarise(kind: str, m: Tensor, a: Tensor, density: float, alive: Tensor | None = None) -> Polarised:
    """Apply one polariser to a soft mask.

    ``ohh``: binary and straight-through, every entry gets the gradient of the binary mask, which is what lets entries
    regrow. ``ohm``: survivors keep their soft value; ``oh``: survivors become one; both give the rest no gradient.
    ``qt``: a sigmoid of the context that is 0.1 at its 0.9 q quantile and 0.9 at its q quantile, q = 1 - density;
    ``gau``: the same with Gaussian quantiles; ``qtm``: the value of ``qt`` as a constant factor of ``m``.
    ``id``: nothing. Quantiles count as constants in the gradient.

    Args:
        kind: one of ``KINDS``.
        m: soft mask ``[units]``.
        a: context ``[units]``.
        density: kept share.
        alive: the hard choice at that density when it is known, for instance because it was made by regions; else the
            exact top of ``a``, ties going to the lower index.

    Raises:
        RecipeError: an unknown kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"polariser must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "id":
        return m, _same
    if alive is None:
        alive = keep_top(a, count_kept(density, a.numel()))
    hard = alive.to(m.dtype)
    if kind == "ohh":
        return hard, _same
    if kind == "ohm":
        return m * hard, lambda slope: slope * hard
    if kind == "oh":
        # m / m.detach(): the value is 1, the derivative 1 / m; a survivor at m = 0 can only be a tie
        return hard, lambda slope: torch.where(m != 0, slope * hard / m, slope.new_zeros(()))
    low, high = (_gaussian if kind == "gau" else _ranked)(a, 1 - density)
    if not high > low:  # density 1, or so many ties that both quantiles meet: the limit of an ever steeper sigmoid
        return (m * hard, lambda slope: slope * hard) if kind == "qtm" else (hard, torch.zeros_like)
    steep = 2 * LOGIT / (high - low)
    soft = torch.sigmoid((a - low) * steep - LOGIT)
    if kind == "qtm":
        return soft * m, lambda slope: slope * soft
    inner = torch.where(m != 0, a / m, a.new_zeros(()))  # da/dm = sign(m) sum |w|
    return soft, lambda slope: slope * soft * (1 - soft) * inner * steep


def _same(slope: Tensor) -> Tensor:
    return slope


def _ranked(a: Tensor, q: float) -> tuple[float, float]:
    """The quantiles ``0.9 q`` and ``q``, as the entries at those ranks."""
    last = a.numel() - 1
    return float(a.kthvalue(1 + int(RATIO * q * last)).values), float(a.kthvalue(1 + int(q * last)).values)


def _gaussian(a: Tensor, q: float) -> tuple[float, float]:
    """The same for a normal distribution with the mean and deviation of ``a``."""
    if q <= 0 or a.numel() < 2:
        return 0.0, 0.0
    spread = NormalDist(float(a.mean()), float(a.std()))
    if not spread.stdev > 0:
        return 0.0, 0.0
    return spread.inv_cdf(RATIO * q), spread.inv_cdf(q)
