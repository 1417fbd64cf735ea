"""PQ index: how sparse a vector is by the ratio of two norms, and how many entries it can spare (Diao et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.errors import RecipeError


def pq_index(w: Tensor, mask: Tensor | None = None, p: float = 0.5, q: float = 1.0, dim: int | None = None) -> Tensor:
    """``1 - d^(1/q - 1/p) |w|_p / |w|_q`` over the ``d`` unmasked entries; 0 is flat, larger is sparser.

    Scale does not matter; equal sizes give 0; a single nonzero entry gives ``1 - d^(1/q - 1/p)``. Zero vectors and
    empty masks give 0.

    Args:
        w: any shape; computed in float64.
        mask: bool of the same shape, True where an entry counts; None counts all.
        p: order of the upper norm, above 0.
        q: order of the lower norm, above p.
        dim: one index per slice along the other dimensions (``dim`` is summed over), or None for one number.

    Returns:
        float64, a scalar or the shape of ``w`` without ``dim``.

    Raises:
        RecipeError: p or q out of range, a mask of another shape, NaN.

    Examples:
        >>> float(pq_index(torch.tensor([2.0, -2.0, 2.0])))
        0.0
        >>> float(pq_index(torch.tensor([5.0, 0.0, 0.0, 0.0])))
        0.75

    References:
        Diao et al. Pruning Deep Neural Networks from a Sparsity Perspective. ICLR 2023, arXiv 2302.05601 (eq. 1).
    """
    _check(p, q)
    if mask is not None and mask.shape != w.shape:
        raise RecipeError(f"pq_index: the mask must have the shape {tuple(w.shape)}, got {tuple(mask.shape)}")
    if bool(torch.isnan(w).any()):
        raise RecipeError("pq_index: w holds NaN")
    size = w.detach().double().abs()
    alive = torch.ones_like(size) if mask is None else mask.to(size.dtype)
    where = tuple(range(w.ndim)) if dim is None else (dim,)
    top = (size * alive).amax(where, keepdim=True) if w.numel() else size.new_ones(())
    scaled = torch.where(top > 0, size / top.clamp_min(torch.finfo(size.dtype).tiny), size)
    count = alive.sum(where).clamp_min(1)
    means = [((scaled**r * alive).sum(where) / count) ** (1 / r) for r in (p, q)]
    index = 1 - means[0] / torch.where(means[1] > 0, means[1], torch.ones_like(means[1]))
    return torch.where(means[1] > 0, index.clamp_min(0.0), torch.zeros_like(index))


def entries_needed(index: Tensor, count: Tensor | int, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> Tensor:
    """Lower bound on the entries that must stay: ``d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p))`` (Theorem 2).

    ``eta`` is what the entries that go may weigh: the sum of their ``|w|^p`` over that of those that stay.

    Raises:
        RecipeError: p or q out of range, or a negative eta.
    """
    _check(p, q)
    if eta < 0:
        raise RecipeError(f"entries_needed: eta must not be negative, got {eta}")
    return count * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p))


def _check(p: float, q: float) -> None:
    if not 0 < p < q:
        raise RecipeError(f"the PQ index needs 0 < p < q, got {p} and {q}")
