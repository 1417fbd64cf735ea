"""What a smaller budget of a random search would have found, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openwork.errors import RecipeError


def expected_best(losses: Sequence[float], budget: int) -> float:
    """The expected minimum of ``budget`` losses drawn without replacement from ``losses``.

    ``sum_i v_(i) C(n - i, budget - 1) / C(n, budget)`` over the ascending losses ``v_(1) <= ... <= v_(n)``.

    Raises:
        RecipeError: a budget that is not in 1 .. number of losses, or a NaN among them.

    Examples:
        >>> expected_best([3.0, 1.0, 2.0], 1), expected_best([3.0, 1.0, 2.0], 3)
        (2.0, 1.0)
    """
    n = len(losses)
    if not 1 <= budget <= n:
        raise RecipeError(f"expected_best: budget must be 1 to {n}, the number of losses, got {budget}")
    if any(math.isnan(v) for v in losses):
        raise RecipeError("expected_best: a loss is NaN; leave such draws out")
    chosen = math.comb(n, budget)
    return sum(v * (math.comb(n - i, budget - 1) / chosen) for i, v in enumerate(sorted(losses)[: n - budget + 1], 1))
