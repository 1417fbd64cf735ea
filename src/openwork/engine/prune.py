"""One-shot pruning: measure, decide once, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from openwork.core.batches import Loss
from openwork.core.recipe import Recipe
from openwork.engine.budget import check_target, decide_within
from openwork.engine.result import Result, conclude
from openwork.engine.session import Session
from openwork.engine.write import write_edits, write_masks
from openwork.errors import MissingStatistic, RecipeError


def prune(
    model: nn.Module,
    recipe: Recipe,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    dry_run: bool = False,
    target: Mapping[str, float] | None = None,
) -> Result:
    """Prune a model in place with a one-shot recipe.

    Args:
        model: any module with values in its parameters; names, dtypes, devices and train/eval mode stay.
        recipe: from ``openwork.methods``.
        data: batches ``(x, y)`` or mappings, when the method needs any; a loader is read again when it ends.
        loss: ``loss(model(x), y) -> scalar``; None for models that return their own ``.loss``.
        seed: for everything random.
        dry_run: compute and return the result, but write nothing.
        target: ``{"macs": 0.5}``, ``{"params": 0.5}`` or ``{"bytes": 0.5}``: the share that compaction leaves, instead
            of the density of the recipe. Needs a coupled structure; met within 1 % or refused.

    Returns:
        The result; its masks are already zeros in the model unless ``dry_run``.

    Raises:
        OpenworkError: anything that cannot be done as asked; the model is then untouched.

    Examples:
        >>> import openwork as ow
        >>> from openwork.methods import magnitude
        >>> x, model = torch.randn(2, 1, 8, 8), ow.build_model("mlp")
        >>> result = prune(model, magnitude(structure=ow.channels(example=x)), target={"params": 0.3})
        >>> abs(result.manifest["budget"]["share"] - 0.3) < 0.003
        True
    """
    if target is not None:
        check_target(target)
    session = Session(model, recipe, data, loss, seed)
    if recipe.drive != "prune":
        raise RecipeError(
            f"{recipe.name} works over many steps; use ow.{recipe.drive}, ow.prune does one-shot recipes only"
        )
    if recipe.rule.needs_grads:
        raise MissingStatistic(f"{recipe.name} reads the gradients of training steps; use ow.attach")
    if recipe.relaxation is not None:
        raise RecipeError(f"{recipe.name} trains gates ({type(recipe.relaxation).__name__}); use ow.attach")
    session.state = recipe.rule.init(session.now(0))
    budget: dict[str, Any] = {}
    with torch.enable_grad():
        if target is None:
            update = session.decide(recipe.schedule(0), 0)
        else:
            update, budget = decide_within(session, target)
            schedule: Any = recipe.schedule  # the share of units that was found takes the place of the one asked for
            recipe = replace(recipe, schedule=replace(schedule, density=budget["units_share"]))
    parts, units = session.parts, session.units
    result = conclude(model, recipe, parts, units, session.coverage, session.log, seed, written=False)
    if budget:
        result.manifest["budget"] = budget
    if not dry_run and recipe.density < 1:
        write_edits(session.params, update.edits)
        write_masks(session.params, result.masks)
    return result
