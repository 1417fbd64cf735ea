"""What a step of training costs: the formulas by which every page counts it."""

from __future__ import annotations

from openwork.errors import RecipeError


def step_macs(forward: float, gradients: float | None = None) -> float:
    """``2 f + g`` multiply-accumulates for one example: the forward pass, the gradients of inputs, those of weights.

    Args:
        forward: ``f``, multiply-accumulates of a forward pass with the weights in force.
        gradients: ``g`` of the gradients of the weights; None takes ``f``, gradients for these weights only. Where all
            weights get one, it is that of the dense network.

    Raises:
        RecipeError: a negative number, or fewer gradients than weights in force.

    Examples:
        >>> step_macs(10.0), step_macs(10.0, gradients=100.0)
        (30.0, 120.0)
    """
    if forward < 0 or (gradients is not None and gradients < forward):
        raise RecipeError(f"step_macs: forward must be >= 0 and gradients at least as many, got {forward}, {gradients}")
    return 2 * forward + (forward if gradients is None else gradients)


def drop_grow_macs(sparse: float, dense: float, every: float) -> float:
    """``(3 f_S T + 2 f_S + f_D) / (T + 1)``: the mean step where one in ``T + 1`` asks for dense gradients (RigL).

    Args:
        sparse: ``f_S``, forward multiply-accumulates of the sparse network.
        dense: ``f_D``, of the dense one.
        every: ``T``, sparse steps between two dense gradients.

    Raises:
        RecipeError: see ``step_macs``, or ``every`` below 0.

    Examples:
        >>> drop_grow_macs(10.0, 100.0, every=1), round(drop_grow_macs(10.0, 100.0, every=1e9), 6)
        (75.0, 30.0)

    References:
        Evci et al. Rigging the Lottery. ICML 2020, arXiv 1911.11134 (appendix H).
    """
    if every < 0:
        raise RecipeError(f"drop_grow_macs: every must not be negative, got {every}")
    return (every * step_macs(sparse) + step_macs(sparse, dense)) / (every + 1)
