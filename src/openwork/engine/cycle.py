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
from openwork.engine.result import Result, conclude
from openwork.engine.session import Session
from openwork.engine.write import write_edits, write_masks
from openwork.errors import RecipeError
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

    Args:
        model: the (usually trained) dense model.
        recipe: a recipe with a ``Rounds`` schedule.
        rewind_to: the state dict of the rewind point, required when the recipe rewinds weights.
        data, loss: for rules that measure something.
        seed: for everything random.
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
    ):
        self._session = Session(model, recipe, data, loss, seed)
        if not isinstance(recipe.schedule, Rounds):
            raise RecipeError(
                f"{recipe.name}: cycle needs a Rounds schedule, got {type(recipe.schedule).__name__}; use "
                f"ow.{recipe.drive}"
            )
        if recipe.relaxation is not None or recipe.rule.needs_grads:
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
        self._session.state = recipe.rule.init(self._session.now(0))

    @property
    def finished(self) -> bool:
        return self.done >= self.schedule.rounds

    @property
    def masks(self) -> Masks:
        """The masks in force."""
        return Masks(self._session.masks())

    def prune_round(self) -> Round:
        """Prune to the density of the next round, rewind if asked, and say how to train now."""
        if self.finished:
            raise RecipeError(f"{self.recipe.name}: all {self.schedule.rounds} rounds are done; call finish()")
        session, index = self._session, self.done + 1
        with torch.enable_grad():
            update = session.decide(self.schedule(index), index)
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
        return conclude(self.model, self.recipe, s.parts, s.units, s.coverage, s.log, s.seed)

    def state_dict(self) -> dict[str, Any]:
        """Rounds done, units, rule state, generator and log; weights are the caller's."""
        s = self._session
        return {
            "recipe": self.recipe.to_dict(),
            "done": self.done,
            "units": {n: u.clone() for n, u in s.units.items()},
            "rule": s.state,
            "rng": s.rng.get_state(),
            "log": list(s.log),
            "served": s.feed.served,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``.

        Raises:
            RecipeError: the state belongs to another recipe or another model.
        """
        if state.get("recipe") != self.recipe.to_dict():
            raise RecipeError(f"{self.recipe.name}: the saved state belongs to another recipe; use the same one")
        s = self._session
        for name, units in s.units.items():
            if name not in state["units"] or state["units"][name].shape != units.shape:
                raise RecipeError(f"{name}: the saved state does not fit this model; build the model of the saved run")
        s.units = {n: state["units"][n].to(s.device).clone() for n in s.units}
        s.state, s.log, self.done = state["rule"], list(state["log"]), int(state["done"])
        s.rng.set_state(state["rng"])
        s.feed.skip(int(state["served"]))


def cycle(
    model: nn.Module,
    recipe: Recipe,
    train: Train,
    *,
    rewind_to: Mapping[str, Tensor] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Result:
    """Run all rounds: prune, rewind, ``train(model, round)`` with the masks held, again.

    ``train`` may use any optimiser; pruned weights stay zero through its steps without a word from it.

    Raises:
        OpenworkError: anything that cannot be done as asked; before the first round the model is untouched.
    """
    rounds = Cycle(model, recipe, rewind_to=rewind_to, data=data, loss=loss, seed=seed)
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
