"""Greedy and swapping selection of groups: group OMP and group OMPR (OMP with replacement)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.errors import RecipeError
from openwork.inverse.groups import Groups, GroupsLike, as_groups
from openwork.inverse.objective import Objective, solve

Score = Literal["grad", "ortho", "gain"]
NEGLIGIBLE = 1e-10  # a gradient below this share of the one at zero is rounding: the group lies in the span


@dataclass(frozen=True, eq=False)
class Pursuit:
    """What a selection found.

    Attributes:
        order: the groups in the order in which they came in.
        beta: the refitted solution, float64 ``(n,)`` or ``(n, m)``.
        losses: the loss with no group, and after every pick or round.
        support: bool ``(n,)``, the coordinates of the groups in ``order``.
    """

    order: tuple[int, ...]
    beta: Tensor
    losses: tuple[float, ...]
    support: Tensor


def group_omp(objective: Objective, groups: GroupsLike, k: int, score: Score = "grad") -> Pursuit:
    """Add the group with the largest score and refit on all chosen groups, ``k`` times; ties take the lowest index.

    Each pick shrinks the gap to the best ``k`` groups by ``1 - mu / (k L_1)`` at least, with the score ``"grad"``.

    Args:
        objective: the loss.
        groups: a partition of its ``n`` coordinates, see `as_groups`.
        k: how many groups. Fewer come back when every group left lies in the span of those chosen.
        score: ``"grad"`` is ``|grad_i|``, as in the guarantee; it favours large groups. ``"ortho"`` is
            ``sqrt(grad_i^T H_ii^+ grad_i)``, for least squares ``|Q_i^T r|`` with an orthonormal basis ``Q_i`` of the
            group. ``"gain"`` is the fall of the loss by the refit (forward stepwise).

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``k`` is not in 1 .. number of groups, or ``score`` is unknown.

    Examples:
        >>> from openwork.inverse import LeastSquares
        >>> loss = LeastSquares(torch.eye(4), torch.tensor([1.0, 2.0, 0.0, 4.0]))
        >>> group_omp(loss, [0, 0, 1, 1], 2).order
        (1, 0)
    """
    parts = as_groups(groups, objective.shape[0])
    check_count("group_omp: k", k, 1, len(parts))
    if score not in ("grad", "ortho", "gain"):
        raise RecipeError(f"group_omp: score must be 'grad', 'ortho' or 'gain', got {score!r}")
    now = refitted(objective, parts, ())
    losses = [now.losses[-1]]
    floor = NEGLIGIBLE * float(parts.norms(objective.grad(now.beta)).max())
    for _ in range(k):
        scores = _scores(objective, parts, now, score, floor)
        if not bool((scores >= 0).any()):
            break
        now = refitted(objective, parts, (*now.order, int(scores.argmax())))
        losses.append(now.losses[-1])
    return Pursuit(now.order, now.beta, tuple(losses), now.support)


def group_ompr(
    objective: Objective,
    groups: GroupsLike,
    k: int,
    k_prime: int | None = None,
    rounds: int | None = None,
    accept: Literal["if_better", "always"] = "if_better",
) -> Pursuit:
    """Start from group OMP; swap the group outside with the largest gradient for the one inside with the smallest norm.

    The best set seen comes back, so the loss is never above group OMP's. With ``k_prime >= k (L_2^2 / mu^2 + 1)`` it
    comes as near as wanted to the best ``k`` groups (Theorem B.3 of arXiv 2402.17902).

    Args:
        objective: the loss.
        groups: a partition of its coordinates.
        k: groups of the solution that is searched for.
        k_prime: groups that are used, ``k`` when None.
        rounds: swaps at most, ten for each group when None.
        accept: ``"if_better"`` stops at the first swap that does not lower the loss; ``"always"`` may cycle.

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``k``, ``k_prime``, ``rounds`` or ``accept`` is out of range.
    """
    parts = as_groups(groups, objective.shape[0])
    check_count("group_ompr: k", k, 1, len(parts))
    size = k if k_prime is None else k_prime
    check_count("group_ompr: k_prime", size, k, len(parts))
    if accept not in ("if_better", "always"):
        raise RecipeError(f"group_ompr: accept must be 'if_better' or 'always', got {accept!r}")
    rounds = 10 * len(parts) if rounds is None else rounds
    check_count("group_ompr: rounds", rounds, 0, None)
    best = now = group_omp(objective, parts, size)
    losses = list(best.losses)
    for _ in range(rounds):
        outside = parts.norms(objective.grad(now.beta)).index_fill(0, torch.tensor(now.order, dtype=torch.int64), -1.0)
        if len(now.order) in (0, len(parts)) or float(outside.max()) <= 0:
            break
        tried = swapped(objective, parts, now, int(outside.argmax()), parts.norms(now.beta))
        losses.append(tried.losses[-1])
        better = tried.losses[-1] < best.losses[-1]
        if accept == "if_better" and not better:
            break
        now = tried
        best = now if better else best
    return Pursuit(best.order, best.beta, tuple(losses), best.support)


def refitted(objective: Objective, parts: Groups, order: tuple[int, ...]) -> Pursuit:
    """The refit on some groups, with its loss."""
    support = parts.cover(order)
    beta = objective.refit(support)
    return Pursuit(order, beta, (objective.value(beta),), support)


def swapped(objective: Objective, parts: Groups, now: Pursuit, add: int, sizes: Tensor) -> Pursuit:
    """``add`` in place of the chosen group whose entry of ``sizes`` ``(t,)`` is smallest, lowest index first."""
    drop = min(now.order, key=lambda i: (float(sizes[i]), i))
    return refitted(objective, parts, (*(i for i in now.order if i != drop), add))


def check_count(name: str, value: int, low: int, high: int | None) -> None:
    """Refuse anything but an integer in ``low .. high``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limit = f"an integer in {low} .. {high}" if high is not None else f"an integer of at least {low}"
        raise RecipeError(f"{name} must be {limit}, got {value!r}")


def _scores(objective: Objective, parts: Groups, now: Pursuit, score: Score, floor: float) -> Tensor:
    """``(t,)`` float64; -1 for the chosen groups and those without a gradient."""
    grad = objective.grad(now.beta)
    sizes = parts.norms(grad)
    open_ = sizes > floor
    open_[list(now.order)] = False
    if score == "grad":
        return torch.where(open_, sizes, -1.0)
    scores = torch.full_like(sizes, -1.0)
    for i in open_.nonzero().flatten().tolist():
        if score == "ortho":
            inside = grad[parts.indices[i]]
            solved = solve(objective.curvature(now.beta, parts.indices[i]), inside)
            scores[i] = (inside * solved).sum().clamp_min(0).sqrt()
        else:
            scores[i] = max(0.0, now.losses[-1] - refitted(objective, parts, (*now.order, i)).losses[-1])
    return scores
