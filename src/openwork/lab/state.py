"""A result as nested state for checkpoints, and back."""

from __future__ import annotations

from typing import Any

from openwork.core.masks import Masks
from openwork.core.recipe import Recipe
from openwork.engine.result import Result
from openwork.metrics.density import Densities
from openwork.structure.cover import Covered


def result_to_state(result: Result) -> dict[str, Any]:
    """Tensors and plain data only."""
    c = result.counts
    return {
        "masks": dict(result.masks),
        "units": dict(result.units),
        "counts": [c.kept, c.targeted_numel, c.prunable_numel, c.total_numel],
        "coverage": [[r.name, list(r.shape), r.numel, r.units, r.skipped, list(r.groups)] for r in result.coverage],
        "recipe": result.recipe.to_dict(),
        "log": result.log,
        "manifest": result.manifest,
    }


def result_from_state(state: dict[str, Any]) -> Result:
    """Inverse of ``result_to_state``."""
    coverage = [Covered(n, tuple(dims), size, k, why, tuple(g)) for n, dims, size, k, why, g in state["coverage"]]
    recipe = Recipe.from_dict(state["recipe"])
    masks, counts = Masks(state["masks"]), Densities(*state["counts"])
    return Result(recipe, masks, state["units"], counts, coverage, state["log"], state["manifest"])
