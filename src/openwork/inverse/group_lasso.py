"""Group LASSO by accelerated proximal gradients, and its sequential form, which picks what group OMP picks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork.errors import DivergedError, RecipeError
from openwork.inverse.groups import Groups, GroupsLike, as_groups
from openwork.inverse.objective import Objective
from openwork.inverse.pursuit import NEGLIGIBLE, Pursuit, check_count, refitted


def soft_threshold(values: Tensor, groups: Groups, by: Tensor) -> Tensor:
    """Every group times ``max(0, 1 - by_i / |values_i|)``; ``by`` is ``(t,)`` float64, zero leaves a group as it is."""
    norms = groups.norms(values)
    factor = torch.where(norms > by, 1 - by / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    factor = groups.spread(torch.where(by > 0, factor, 1.0))
    return values * factor.reshape(-1, *[1] * (values.ndim - 1))


def group_lasso(
    objective: Objective,
    groups: GroupsLike,
    lam: float,
    free: Sequence[int] = (),
    tol: float = 1e-12,
    max_iter: int = 100_000,
) -> Tensor:
    """``argmin L(b) + lam sum_{i not in free} |b_i|`` by FISTA, whose momentum restarts when it points uphill.

    Args:
        objective: the loss.
        groups: a partition of its coordinates.
        lam: the penalty; groups that it switches off are exactly zero.
        free: groups without penalty.
        tol: the largest proximal gradient step that counts as none, relative to the gradient at zero.
        max_iter: proximal gradient steps at most.

    Returns:
        float64, the shape of the objective.

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``lam`` is negative or ``free`` names a group that does not exist.
        DivergedError: ``tol`` is not reached in ``max_iter`` steps.
    """
    parts = as_groups(groups, objective.shape[0])
    if not 0 <= lam < float("inf"):
        raise RecipeError(f"group_lasso: lam must be finite and not negative, got {lam}")
    _check_members("group_lasso: free", free, parts)
    rate = max(objective.lipschitz(), torch.finfo(torch.float64).tiny)
    by = torch.full((len(parts),), lam / rate, dtype=torch.float64)
    by[list(free)] = 0.0
    beta = ahead = objective.refit(parts.cover(free))
    limit = tol * max(float(objective.grad(torch.zeros_like(beta)).norm()), torch.finfo(torch.float64).tiny)
    momentum = 1.0
    for _ in range(max_iter):
        new = soft_threshold(ahead - objective.grad(ahead) / rate, parts, by)
        if rate * float((new - ahead).norm()) <= limit:
            return new
        if float(((ahead - new) * (new - beta)).sum()) > 0:
            momentum, ahead = 1.0, beta
            if torch.equal(new, beta):
                ahead = new
            else:
                new = soft_threshold(beta - objective.grad(beta) / rate, parts, by)
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead, beta, momentum = new + (momentum - 1) / after * (new - beta), new, after
    raise DivergedError(
        f"group_lasso: must converge in {max_iter} steps, got a step of {rate * float((new - ahead).norm()):.2g} "
        "at the end; raise max_iter, or tol if the columns are nearly dependent"
    )


def tau(objective: Objective, groups: GroupsLike, selected: Sequence[int] = ()) -> float:
    """``max_{i not in S} |grad L(beta_S)_i|``, ``beta_S`` the refit on S: from this penalty on no group joins S.

    Zero when every group is in S.

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``selected`` names a group that does not exist.
    """
    parts = as_groups(groups, objective.shape[0])
    _check_members("tau: selected", selected, parts)
    return max(0.0, float(_outside(objective, parts, refitted(objective, parts, tuple(selected))).max()))


def sequential_group_lasso(objective: Objective, groups: GroupsLike, k: int, margin: float = 0.02) -> Pursuit:
    """Let the penalty fall just below ``tau``, add the group that becomes active, leave it free, ``k`` times.

    The penalty is ``tau - margin (tau - second)``, between the two largest gradient norms, so the active group is the
    one that group OMP would pick: the order is the same. A tie takes the lowest index.

    Raises:
        StructureError: the groups are no partition.
        RecipeError: ``k`` is not in 1 .. number of groups, or ``margin`` not in (0, 1).
        DivergedError: the group LASSO did not converge, see `group_lasso`.
    """
    parts = as_groups(groups, objective.shape[0])
    check_count("sequential_group_lasso: k", k, 1, len(parts))
    if not 0 < margin < 1:
        raise RecipeError(f"sequential_group_lasso: margin must be in (0, 1), got {margin}")
    now = refitted(objective, parts, ())
    losses = [now.losses[-1]]
    floor = NEGLIGIBLE * tau(objective, parts)
    for _ in range(k):
        found = next_group(objective, parts, now, margin, floor)
        if found is None:
            break
        now = refitted(objective, parts, (*now.order, found[0]))
        losses.append(now.losses[-1])
    return Pursuit(now.order, now.beta, tuple(losses), now.support)


def next_group(
    objective: Objective, parts: Groups, now: Pursuit, margin: float, floor: float
) -> tuple[int, Tensor] | None:
    """The group outside ``now.order`` with the largest norm just below ``tau``, and all norms ``(t,)`` there.

    None when no group outside has a gradient above ``floor``.
    """
    outside = _outside(objective, parts, now)
    top = outside.topk(min(2, len(parts))).values.tolist()
    if top[0] <= floor:
        return None
    second = max(0.0, top[1]) if len(top) > 1 else 0.0
    lam = top[0] - margin * max(top[0] - second, 1e-3 * top[0])  # in a tie both groups become active
    sizes = parts.norms(group_lasso(objective, parts, lam, now.order))
    rest = sizes.index_fill(0, torch.tensor(now.order, dtype=torch.int64), -1.0)
    best = int((rest >= rest.max() * (1 - 1e-9)).nonzero()[0])  # rounding must not break a tie
    return best, sizes


def _outside(objective: Objective, parts: Groups, now: Pursuit) -> Tensor:
    """Gradient norms ``(t,)`` at a refit, -1 for its own groups."""
    norms = parts.norms(objective.grad(now.beta))
    return norms.index_fill(0, torch.tensor(now.order, dtype=torch.int64), -1.0)


def _check_members(name: str, chosen: Sequence[int], parts: Groups) -> None:
    wrong = [i for i in chosen if not 0 <= i < len(parts)]
    if wrong:
        raise RecipeError(f"{name} must name groups in 0 .. {len(parts) - 1}, got {wrong[0]}")
