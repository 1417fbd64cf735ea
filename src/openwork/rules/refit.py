"""Linear algebra of removing groups of inputs from a layer: what it costs, and the best weights without them.

For one layer with weights ``W`` [rows, in] and ``H = X X^T`` of its inputs, removing the columns ``p`` and correcting
the others changes the outputs by at least ``tr(W_p ([H^-1]_pp)^-1 W_p^T)`` in squares, reached by
``W - W_:p ([H^-1]_pp)^-1 [H^-1]_p:``. With ``K`` the columns that stay this is the least-squares refit
``W H_:K H_KK^-1``, in whatever order the groups go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.errors import DivergedError

TRIES = 4


def damped(grams: Tensor, damp: float, name: str) -> Tensor:
    """``H + damp mean(diag H) I`` in float64, per group; ``grams`` [groups, in, in].

    Inputs that never fire have the damping alone, without any 1e-12 of the mean, so that they rank last, by size. Where
    a matrix is not positive definite the damping is raised ten times, at most three times.

    Raises:
        DivergedError: not positive definite even then.
    """
    hessian = grams.double()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    mean = diagonal.mean(1, keepdim=True)
    mean = torch.where(mean > 0, mean, 1.0)
    for attempt in range(TRIES):
        used = damp * 10**attempt
        made = hessian.clone()
        made.diagonal(dim1=1, dim2=2).add_(mean * torch.where(dead, max(used, 1e-12), used))
        _, info = torch.linalg.cholesky_ex(made)
        if not bool(info.any()):
            return made
        if damp == 0:
            break
    raise DivergedError(
        f"{name}: the Gram matrix of its inputs cannot be inverted, even with damp={used:g}; use more calibration data "
        "or a larger damp"
    )


def removal_costs(weight: Tensor, inverse: Tensor, units: Tensor, n_units: int) -> Tensor:
    """What the removal of each unit alone costs, ``[n_units]`` float64, summed over the groups of a convolution.

    Args:
        weight: ``[groups, rows, in]``.
        inverse: ``H^-1`` of the columns alive, ``[groups, in, in]``.
        units: the unit of every column, -1 for columns of none, ``[in]``.
        n_units: how many there are; a unit without columns costs nothing here.
    """
    costs = torch.zeros(n_units, dtype=torch.float64, device=weight.device)
    owned = units >= 0
    sizes = torch.bincount(units[owned], minlength=n_units)
    order = torch.where(owned, units, n_units).argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for size in sizes.unique().tolist():
        if size == 0:
            continue
        mine = (sizes == size).nonzero().flatten()
        at = order[starts[mine][:, None] + torch.arange(size, device=order.device)]  # [units, size]
        blocks = inverse[:, at[:, :, None], at[:, None, :]]  # [groups, units, size, size]
        columns = weight[:, :, at].permute(0, 2, 3, 1)  # [groups, units, size, rows]
        solved = torch.cholesky_solve(columns, torch.linalg.cholesky(blocks))
        costs[mine] += (columns * solved).sum((0, 2, 3))
    return costs


def refit(weight: Tensor, hessian: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The weights on the columns ``after`` whose outputs are nearest to those of ``weight`` on ``before``.

    ``W_K + W_P H_PK H_KK^-1`` with K the columns that stay and P those that go; zero elsewhere, ``[groups, rows, in]``.
    """
    found = torch.zeros_like(weight)
    keep, gone = after.nonzero().flatten(), (before & ~after).nonzero().flatten()
    if not len(keep):
        return found
    within = hessian[:, keep][:, :, keep]
    across = hessian[:, gone][:, :, keep]  # [groups, gone, keep]
    moved = torch.cholesky_solve(across.transpose(1, 2), torch.linalg.cholesky(within))  # H_KK^-1 H_KP
    found[:, :, keep] = weight[:, :, keep] + weight[:, :, gone] @ moved.transpose(1, 2)
    return found
