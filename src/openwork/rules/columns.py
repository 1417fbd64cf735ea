"""Optimal brain surgery inside one layer, column by column, against the Gram matrix of its inputs (SparseGPT).

With ``H = X X^T + damp mean(diag) I`` and ``H^-1 = U^T U`` (U upper triangular) the columns of a weight are visited
from left to right; what is removed from column i, divided by ``U_ii``, is the error ``e_i``, and ``e_i U_ij`` is taken
from the columns j to the right. ``sum e^2 = tr(dW H dW^T)`` holds exactly for the whole change ``dW``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.errors import DivergedError

Choose = Callable[[int, int, Tensor, Tensor], Tensor]
"""(first column, behind the last, weights [rows, width], diagonal of U [width]) -> bool mask, True = kept."""

TRIES = 4
SMALL = 32
"""Columns of the inner blocks: what lies to their right is updated by one product instead of rank-one steps."""


@dataclass(frozen=True)
class Factor:
    """``upper`` [in, in] with ``(H + added I)^-1 = upper^T upper``; ``dead`` [in]: never fires.

    ``added`` is ``damp mean(diag H)``.
    """

    upper: Tensor
    dead: Tensor
    damp: float
    added: float


def factorise(gram: Tensor, damp: float, name: str = "layer") -> Factor:
    """The triangular factor of the inverse, from one Cholesky factorisation and one triangular inverse.

    Both work where the copy of the matrix lies: at 11,008 inputs one more would be half a gigabyte.

    Dead inputs get 1 on the diagonal. ``H = R R^T`` with R upper triangular is the Cholesky factor of H with its rows
    and columns reversed; then ``upper = R^-1``. Where the matrix is not positive definite, the damping is raised ten
    times, at most three times.

    Raises:
        DivergedError: not positive definite even then.
    """
    diagonal = gram.diagonal()
    dead = diagonal == 0
    scale = float(diagonal.double().sum() / max(1, int((~dead).sum()))) or 1.0
    # the mean runs over all inputs, as in the reference class, where a dead one counts as 1
    mean = float((diagonal.double().sum() + dead.sum()) / len(diagonal))
    for attempt in range(TRIES):
        used = damp * 10**attempt
        upper = gram.flip(0, 1).contiguous()
        upper.diagonal().add_(dead.flip(0).to(gram.dtype) + used * mean)
        if _decompose(upper):
            _reverse(upper)
            _invert(upper)
            if bool(torch.isfinite(upper.diagonal()).all()):
                return Factor(upper, dead, used, used * mean)
        del upper
        if damp == 0:
            break
    raise DivergedError(
        f"{name}: the Gram matrix of its inputs is not positive definite, even with damp={used:g} (mean of the "
        f"diagonal {scale:g}); use more calibration data, a larger damp, or double=True"
    )


def _decompose(matrix: Tensor) -> bool:
    """Put the lower Cholesky factor L, ``L L^T = matrix``, in the place of a contiguous matrix; whether there is one.

    The library's factor lies column by column, so it is asked for ``L^T`` in the transposed view.
    """
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix.mT, upper=True, out=(matrix.mT, info))
    return int(info) == 0 and bool(torch.isfinite(matrix.diagonal()).all())


def _reverse(matrix: Tensor, piece: int = 1 << 20) -> None:
    """Reverse rows and columns of a contiguous matrix where it lies."""
    flat = matrix.view(-1)
    n = len(flat)
    for first in range(0, n // 2, piece):
        last = min(first + piece, n // 2)
        begin = flat[first:last].flip(0)
        flat[first:last] = flat[n - last : n - first].flip(0)
        flat[n - last : n - first] = begin


def _invert(upper: Tensor, base: int = 128) -> None:
    """Invert an upper triangular matrix where it lies, by halves: [[A, B], [0, D]] -> [[A', -A' B D'], [0, D']]."""
    n = len(upper)
    if n <= base:
        eye = torch.eye(n, dtype=upper.dtype, device=upper.device)
        upper.copy_(torch.linalg.solve_triangular(upper, eye, upper=True))
        return
    half = n // 2
    _invert(upper[:half, :half], base)
    _invert(upper[half:, half:], base)
    upper[:half, half:] = -(upper[:half, :half] @ upper[:half, half:]) @ upper[half:, half:]


@dataclass(frozen=True)
class Solved:
    """``weight`` [rows, in] with zeros where ``mask`` [rows, in] is False; ``loss`` = sum of e^2 [rows]."""

    weight: Tensor
    mask: Tensor
    loss: Tensor


def solve_columns(weight: Tensor, factor: Factor, choose: Choose, width: int, step: int = 0) -> Solved:
    """Prune ``weight`` [rows, in] from left to right.

    Args:
        weight: taken in the dtype of the factor.
        factor: of the inputs.
        choose: gives the mask of a run of columns from their already updated weights.
        width: columns between two updates of everything to the right. Without adaptive choices the result does not
            depend on it.
        step: 0: ``choose`` is asked once for ``width`` columns; otherwise for every ``step`` columns (N:M).
    """
    u = factor.upper
    work = weight.to(u.dtype, copy=True)
    work[:, factor.dead] = 0
    rows, columns = work.shape
    work = work.T.contiguous()  # [in, rows]: a column lies in one piece of memory
    mask = torch.ones(columns, rows, dtype=torch.bool, device=work.device)
    loss = torch.zeros(rows, dtype=u.dtype, device=u.device)
    diagonal = u.diagonal()
    for first, last in _runs(0, columns, width):
        part, errors = work[first:last], torch.zeros(last - first, rows, dtype=u.dtype, device=u.device)
        if not step:
            mask[first:last] = choose(first, last, part.T, diagonal[first:last]).T
        for begin, end in _inner(first, last, step):
            for lo, hi in _runs(begin, end, step or end - begin):
                if step:
                    mask[lo:hi] = choose(lo, hi, part[lo - first : hi - first].T, diagonal[lo:hi]).T
                _sweep(part, errors, mask, u, diagonal, first, lo, hi)
                _push(part, errors, u, first, (lo, hi), (hi, end))
            _push(part, errors, u, first, (begin, end), (end, last))
        if last < columns:
            work[last:].addmm_(u[first:last, last:].T, errors, alpha=-1)
        loss += errors.square().sum(0)
    return Solved(work.mul_(mask).T.contiguous(), mask.T.contiguous(), loss)


def _push(part: Tensor, errors: Tensor, u: Tensor, first: int, done: tuple[int, int], right: tuple[int, int]) -> None:
    """Take the errors of some finished columns from columns to their right, in one product."""
    (begin, end), (lo, hi) = done, right
    if lo < hi:
        part[lo - first : hi - first].addmm_(u[begin:end, lo:hi].T, errors[begin - first : end - first], alpha=-1)


def _sweep(
    part: Tensor, errors: Tensor, mask: Tensor, u: Tensor, diagonal: Tensor, first: int, begin: int, end: int
) -> None:
    for i in range(begin, end):
        row = part[i - first]
        error = errors[i - first]
        torch.mul(row, ~mask[i], out=error)
        error /= diagonal[i]
        if i + 1 < end:
            part[i + 1 - first : end - first].addr_(u[i, i + 1 : end], error, alpha=-1)


def _runs(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    for begin in range(first, last, width):
        yield begin, min(begin + width, last)


def _inner(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    """Inner blocks of about ``SMALL`` columns that hold whole groups of ``step``."""
    return _runs(first, last, max(step, SMALL // step * step) if step else SMALL)
