"""Prune-retrain rounds: train, prune a little more, rewind or not, train again (IMP, iterative SpODE)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.core.batches import Loss
from openwork.core.masks import Masks
from openwork.core.recipe import Recipe
from openwork.engine.hold import hold
from openwork.engine.result import Result
from openwork.engine.session import Session
from openwork.engine.write import write_edits, write_masks, write_values
from openwork.errors import DensityMissed, RecipeError
from openwork.relax import Masking
from openwork.schedules import Rounds


@dataclass(frozen=True)
class Round:
    """What the user's training function is told: the round, its density, and how to begin.

    ``rewind`` is ``"none"`` (fine-tune on), ``"weights"`` (the weights were put back to the rewind point: resume the
    learning-rate schedule there) or ``"lr"`` (weights kept: replay the learning-rate schedule from the rewind point).
    """

    index: int
    rounds: int
    density: float
    rewind: Literal["none", "weights", "lr"]


Train = Callable[[nn.Module, Round], None]


class Cycle:
    """Rounds one at a time, with ``state_dict`` between them; ``cycle`` is the loop around it.

    With the ``Masking`` relaxation a pruned weight keeps its last value beside the model and is judged by it in the
    next round, so that it may return (SpODE); without, it is zero for good unless the rule revives zeros.

    Args:
        model: the (usually trained) dense model.
        recipe: a recipe with a ``Rounds`` schedule.
        rewind_to: the state dict of the rewind point, required when the recipe rewinds weights.
        data, loss: for rules that measure something.
        seed: for everything random.
        target: a budget as in ``ow.prune``; the densities of the rounds are then shares of its cost.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        rewind_to: Mapping[str, Tensor] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        target: Mapping[str, float] | None = None,
    ):
        self._session = Session(model, recipe, data, loss, seed, target)
        recipe = self._session.recipe
        if not isinstance(recipe.schedule, Rounds):
            raise RecipeError(
                f"{recipe.name}: cycle needs a Rounds schedule, got {type(recipe.schedule).__name__}; use "
                f"ow.{recipe.drive}"
            )
        if recipe.rule.needs_grads or not isinstance(recipe.relaxation, Masking | None):
            raise RecipeError(f"{recipe.name}: gates and step gradients need ow.attach, not ow.cycle")
        self.schedule = recipe.schedule
        if self.schedule.rewind == "weights":
            if rewind_to is None:
                raise RecipeError(
                    f"{recipe.name}: rewinding weights needs rewind_to=, the state dict of the rewind point"
                )
            _refuse_foreign(rewind_to, model)
        self.model, self.recipe = model, recipe
        self._rewind_to = {k: v.detach().clone() for k, v in rewind_to.items()} if rewind_to is not None else None
        self.done = 0
        self._values: dict[str, Tensor] | None = None
        if recipe.relaxation is not None:
            self._values = {n: p.detach().clone() for n, p in self._session.params.items()}
        self._session.state = recipe.rule.init(self._session.now(0))

    @property
    def finished(self) -> bool:
        return self.done >= self.schedule.rounds

    @property
    def masks(self) -> Masks:
        """The masks in force."""
        return Masks(self._session.whole_masks())

    def prune_round(self) -> Round:
        """Prune to the density of the next round, rewind if asked, and say how to train now."""
        if self.finished:
            raise RecipeError(f"{self.recipe.name}: all {self.schedule.rounds} rounds are done; call finish()")
        session, index = self._session, self.done + 1
        if self._values is not None:
            write_values(session.params, self._values, session.masks())
        try:
            with torch.enable_grad():
                update = session.decide(self.schedule(index), index)
        finally:
            if self._values is not None:
                self._values = {n: p.detach().clone() for n, p in session.params.items()}
                write_masks(session.params, session.masks())
        write_edits(session.params, update.edits)
        if self._rewind_to is not None and self.schedule.rewind == "weights":
            self.model.load_state_dict(self._rewind_to)
        if self.recipe.density < 1:
            write_masks(session.params, session.masks())
        self.done = index
        return Round(index, self.schedule.rounds, self.schedule(index).share, self.schedule.rewind)

    def finish(self) -> Result:
        """Count and return.

        Raises:
            DensityMissed: rounds are missing.
        """
        s = self._session
        if not self.finished:
            raise DensityMissed(
                f"{self.recipe.name}: finish() after {self.done} of {self.schedule.rounds} rounds; call prune_round() "
                "and train until finished"
            )
        return s.concluded()

    def state_dict(self) -> dict[str, Any]:
        """Rounds done, units, rule state, generator, log, values under the masks; weights are the caller's."""
        return {**self._session.state_dict(), "done": self.done, "values": self._values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``.

        Raises:
            RecipeError: the state belongs to another recipe or another model.
        """
        self.done = self._session.load_state_dict(state, "done")
        if self._values is not None:
            self._values = {n: state["values"][n].to(v.device).clone() for n, v in self._values.items()}


def cycle(
    model: nn.Module,
    recipe: Recipe,
    train: Train,
    *,
    rewind_to: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    target: Mapping[str, float] | None = None,
) -> Result:
    """Run all rounds: prune, rewind, ``train(model, round)`` with the masks held, again.

    ``train`` may use any optimiser; pruned weights stay zero through its steps without a word from it.

    Raises:
        OpenworkError: anything that cannot be done as asked; before the first round the model is untouched.
    """
    rounds = Cycle(model, recipe, rewind_to=rewind_to, data=data, loss=loss, seed=seed, target=target)
    while not rounds.finished:
        now = rounds.prune_round()
        with hold(model, rounds.masks):
            train(model, now)
    return rounds.finish()


def _refuse_foreign(state: Mapping[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise RecipeError(
            f"rewind_to must be a state dict of this model; {wrong[0]} is missing, unknown or of another shape"
        )
