"""A run that begins when a framework says so, travels in its checkpoints, and ends with its training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.core.batches import Loss
from openwork.core.recipe import Recipe
from openwork.engine.attach import Attached, attach
from openwork.engine.result import Result
from openwork.errors import OpenworkError, RecipeError


class LateRun:
    """What the adapters share.

    Args:
        owner: who speaks in error messages.
        recipe: for ``ow.attach``; recipes that work in rounds (``ow.cycle``) are refused.
        data, loss, seed: as in ``ow.attach``.
    """

    def __init__(
        self, owner: str, recipe: Recipe, data: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0
    ):
        if recipe.drive != "attach":
            use = "ow.cycle" if recipe.drive == "cycle" else "ow.prune, before or after the training"
            raise RecipeError(f"{owner}: {recipe.name} does not act while a model trains; use {use}")
        self.owner, self.recipe = owner, recipe
        self._given: dict[str, Any] = {"data": data, "loss": loss, "seed": seed}
        self._run: Attached | None = None
        self._done: Result | None = None
        self._state: Mapping[str, Any] | None = None

    @property
    def run(self) -> Attached:
        """The attached run.

        Raises:
            OpenworkError: the training has not begun.
        """
        if self._run is None:
            raise OpenworkError(
                f"{self.owner}: {self.recipe.name} is attached when the training begins; start it first"
            )
        return self._run

    @property
    def result(self) -> Result:
        """The result, once the training has ended.

        Raises:
            OpenworkError: it has not.
        """
        if self._done is None:
            raise OpenworkError(f"{self.owner}: no result yet; it is there when the training has ended")
        return self._done

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Attach, once; a state that was read before is loaded now."""
        if self._run is not None:
            raise OpenworkError(
                f"{self.owner}: {self.recipe.name} has trained already; make a new one for a new training"
            )
        self._run = attach(model, self.recipe, optimizer, **self._given)
        if self._state is not None:
            self.restore(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the ``state_dict`` of an earlier run, now or when this one begins.

        The framework loads the optimiser's state; weights must be loaded after ``begin``, which may have masked them
        and adds the gates that they may hold.

        Raises:
            RecipeError: the state belongs to another recipe or another model.
        """
        if self._run is None:
            self._state = state
            return
        self._state = None
        self._run.load_state_dict(state)

    def add_penalty(self) -> None:
        """Add the gradient of the recipe's penalty, if it has one; once before each optimiser step."""
        penalty = self.run.penalty()
        if isinstance(penalty, Tensor) and penalty.requires_grad:
            penalty.backward()

    def end(self) -> Result:
        """Finish.

        Raises:
            DensityMissed: fewer optimiser steps than the recipe needs.
        """
        self._done = self.run.finish()
        return self._done


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimiser inside the wrappers of frameworks, whose step is the one that happens."""
    while not isinstance(optimizer, Optimizer) or type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    return optimizer
