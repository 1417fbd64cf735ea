"""One-shot pruning: measure, decide once, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from openwork.core.batches import Loss
from openwork.core.recipe import Recipe
from openwork.engine.result import Result
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
        target: what compaction leaves, instead of the density of the recipe: a share below 1 or an amount of
            ``params``, ``macs`` or ``bytes``, a share of ``latency``, or ``latency_ms`` milliseconds from a measured
            table. Needs a coupled structure; met within 1 % or refused. A table is an estimate: what the small model
            really takes stands beside it in ``manifest["budget"]``.

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
    session = Session(model, recipe, data, loss, seed, target)
    recipe = session.recipe
    if recipe.drive != "prune":
        raise RecipeError(
            f"{recipe.name} works over many steps; use ow.{recipe.drive}, ow.prune does one-shot recipes only"
        )
    if recipe.rule.needs_grads:
        raise MissingStatistic(f"{recipe.name} reads the gradients of training steps; use ow.attach")
    if recipe.relaxation is not None:
        raise RecipeError(f"{recipe.name} trains gates ({type(recipe.relaxation).__name__}); use ow.attach")
    session.state = recipe.rule.init(session.now(0))
    with torch.enable_grad():
        update = session.decide(recipe.schedule(0), 0)
    result = session.concluded(written=False)
    if not dry_run and recipe.density < 1:
        write_edits(session.params, update.edits)
        write_masks(session.params, result.masks)
    return result
