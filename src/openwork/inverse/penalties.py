"""Penalties that masks amount to (arXiv 2402.17902, Section 3): closed forms, Theorem 1.1's class, Algorithm 2.

A mask ``w_i`` on a group ``b_i``, both penalised, is a penalty on ``u_i = mask(w_i) b_i`` alone: the minimum over all
ways to write ``u_i`` so. Every ``*_penalty`` below is that minimum for ``a = |u_i|`` and ``lam = 1``, every
``*_minimiser`` the ``w`` that reaches it; both take and give float64 tensors of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.errors import RecipeError
from openwork.inverse.group_lasso import next_group, tau
from openwork.inverse.groups import GroupsLike, as_groups
from openwork.inverse.objective import Objective
from openwork.inverse.pursuit import NEGLIGIBLE, Pursuit, check_count, group_omp, refitted, swapped


def lambert_w(x: Tensor | float) -> Tensor:
    """The ``w >= -1`` with ``w exp(w) = x`` for ``x >= -1/e`` (principal branch), by Halley's iteration.

    Raises:
        RecipeError: NaN, infinity, or a value below -1/e.

    Examples:
        >>> round(float(lambert_w(math.e)), 12)
        1.0
    """
    x = torch.as_tensor(x, dtype=torch.float64)
    if not bool((x.isfinite() & (x >= -math.exp(-1))).all()):
        raise RecipeError("lambert_w: x must be finite and at least -1/e, got a smaller value, NaN or infinity")
    root = (2 * (math.e * x + 1)).clamp_min(0).sqrt()
    near = -1 + root - root.square() / 3 + 11 / 72 * root**3  # the series at the branch point
    large = x.clamp_min(math.e).log()
    w = torch.where(x < -0.25, near, torch.where(x < math.e, torch.log1p(x.clamp_min(-0.25)), large - large.log()))
    for _ in range(50):
        # f / exp(w) instead of f: nothing overflows
        f = w - x * torch.exp(-w)
        step = f / ((w + 1) - (w + 2) * f / (2 * (w + 1)).clamp_min(1e-8)).clamp_min(1e-8)
        w = w - step
        if bool((step.abs() <= 1e-16 * w.abs()).all()):
            break
    return w


def ridge_mask_penalty(a: Tensor) -> Tensor:
    """``min_w (w^2 + a^2 / w^2) / 2 = a``: a masked ridge penalty is the group LASSO."""
    return torch.as_tensor(a, dtype=torch.float64).clone()


def ridge_mask_minimiser(a: Tensor) -> Tensor:
    """``w = sqrt(a)``."""
    return torch.as_tensor(a, dtype=torch.float64).sqrt()


def attention_penalty(a: Tensor) -> Tensor:
    """Lemma 2.1: ``min_w w^2 + a^2 exp(-2 w) = W(2a^2)^2 / 4 + W(2a^2) / 2``, for the mask ``exp(w)``.

    Strictly increasing, but neither concave nor subadditive: ``q(2) > 2 q(1)``.
    """
    w = lambert_w(2 * torch.as_tensor(a, dtype=torch.float64).square())
    return w.square() / 4 + w / 2


def attention_minimiser(a: Tensor) -> Tensor:
    """``w = W(2a^2) / 2``."""
    return lambert_w(2 * torch.as_tensor(a, dtype=torch.float64).square()) / 2


def l1_mask_penalty(a: Tensor) -> Tensor:
    """Lemma 2.2: ``min_{w > 0} w + a^2 / w^2 = (3/2) 2^(1/3) a^(2/3)``, for an l1 penalty on the mask ``w``."""
    return 1.5 * l1_mask_minimiser(a)


def l1_mask_minimiser(a: Tensor) -> Tensor:
    """``w = (2 a^2)^(1/3)``."""
    return (2 * torch.as_tensor(a, dtype=torch.float64).square()) ** (1 / 3)


def group_power(b: Tensor, groups: GroupsLike) -> Tensor:
    """Lemma 2.3: ``u_i = |b_i| b_i`` for every group, so that ``sum |u_i| = |b|^2``; ``(n,)`` or ``(n, m)``."""
    b = torch.as_tensor(b, dtype=torch.float64)
    parts = as_groups(groups, len(b))
    return b * parts.spread(parts.norms(b)).reshape(-1, *[1] * (b.ndim - 1))


@dataclass(frozen=True)
class Penalty:
    """A strictly increasing ``q`` with ``q(0) = 0``; ``subadditive`` says whether ``q(a + b) <= q(a) + q(b)``.

    Theorem 1.1: where the group LASSO has at most one active group, its minimiser is that of every composite penalty
    ``q^-1(sum q(|b_i|))`` with a subadditive ``q``.
    """

    name: str
    q: Callable[[Tensor], Tensor]
    q_inverse: Callable[[Tensor], Tensor]
    subadditive: bool


def POWER(p: float) -> Penalty:  # noqa: N802
    """``q(x) = x^p``, subadditive for ``p <= 1``.

    Raises:
        RecipeError: ``p`` is not positive.
    """
    if not 0 < p < math.inf:
        raise RecipeError(f"POWER: p must be positive and finite, got {p}")
    return Penalty(f"x^{p:g}", lambda x: x**p, lambda y: y ** (1 / p), p <= 1)


def _attention_inverse(y: Tensor) -> Tensor:
    w = 2 * y / ((1 + 4 * y).sqrt() + 1)  # the root of w^2 + w = y; a^2 = w exp(2 w)
    return w.sqrt() * torch.exp(w)


LINEAR = Penalty("x", torch.clone, torch.clone, True)
SQRT = POWER(0.5)
LOG1P = Penalty("log(1 + x)", torch.log1p, torch.expm1, True)
SQUARE = POWER(2.0)
ATTENTION = Penalty("attention", attention_penalty, _attention_inverse, False)


def composite(q: Penalty, norms: Tensor) -> Tensor:
    """``q^-1(sum_i q(norms_i))`` over the last dimension, ``(..., t)`` to ``(...)``."""
    return q.q_inverse(q.q(norms).sum(-1))


def regularised_ompr(
    objective: Objective,
    groups: GroupsLike,
    k: int,
    k_prime: int | None = None,
    rounds: int | None = None,
    q: Penalty = LINEAR,
    margin: float = 0.02,
) -> Pursuit:
    """Algorithm 2: OMPR that finds its new group by a penalty on all groups outside S instead of by the gradient.

    Each round minimises ``L(b) + lam q^-1(sum_{i not in S} q(|b_i|))`` with ``lam`` just below ``tau``, adds the group
    outside S with the largest norm there and drops the one inside with the smallest. So near to ``tau`` one group is
    active, and by Theorem 1.1 the minimiser is the group LASSO's for *every* subadditive ``q``; that is how it is
    found. It starts from group OMP, stops when a set comes back, and returns the best set seen.

    Args:
        objective: the loss.
        groups: a partition of its coordinates.
        k: groups of the solution that is searched for.
        k_prime: groups that are used, ``k`` when None.
        rounds: swaps at most, ten for each group when None.
        q: a subadditive penalty.
        margin: how far ``lam`` stays below ``tau``, see `sequential_group_lasso`.

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``q`` is not subadditive, or a number is out of range.
        DivergedError: the group LASSO did not converge.
    """
    parts = as_groups(groups, objective.shape[0])
    check_count("regularised_ompr: k", k, 1, len(parts))
    size = k if k_prime is None else k_prime
    check_count("regularised_ompr: k_prime", size, k, len(parts))
    rounds = 10 * len(parts) if rounds is None else rounds
    check_count("regularised_ompr: rounds", rounds, 0, None)
    if not q.subadditive:
        raise RecipeError(f"regularised_ompr: q must be subadditive (Theorem 1.1), got {q.name}; LINEAR, SQRT or LOG1P")
    best = now = group_omp(objective, parts, size)
    losses, seen, floor = list(best.losses), {frozenset(best.order)}, NEGLIGIBLE * tau(objective, parts)
    for _ in range(rounds):
        found = next_group(objective, parts, now, margin, floor) if len(now.order) < len(parts) else None
        if found is None or not now.order:
            break
        now = swapped(objective, parts, now, *found)
        losses.append(now.losses[-1])
        if now.losses[-1] < best.losses[-1]:
            best = now
        if frozenset(now.order) in seen:
            break
        seen.add(frozenset(now.order))
    return Pursuit(best.order, best.beta, tuple(losses), refitted(objective, parts, best.order).support)
