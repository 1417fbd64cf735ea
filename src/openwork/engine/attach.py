"""Sparse training inside the user's own loop: hooks on the optimiser's step, two changed lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.core.batches import Loss
from openwork.core.masks import Masks
from openwork.core.now import EMPTY, Now, Phase
from openwork.core.protocols import Rule
from openwork.core.recipe import Recipe
from openwork.core.shards import local
from openwork.engine.clock import Clock
from openwork.engine.gates import Gates
from openwork.engine.result import Result
from openwork.engine.session import Session
from openwork.engine.write import forget, inverted, write_edits, zero_gradients, zero_weights
from openwork.errors import DensityMissed, OpenworkError, RecipeError


def attach(
    model: nn.Module,
    recipe: Recipe,
    optimizer: Optimizer,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    target: Mapping[str, float] | None = None,
) -> Attached:
    """Let a recipe act while the user trains.

    ``loss = F.cross_entropy(model(x), y) + run.penalty()`` changes inside the loop, ``run.finish()`` ends it.
    Masks are kept beside the model and written after every optimiser step, so parameter names never change; only a
    soft relaxation (SequentialAttention++) puts a torch parametrisation on its weights, until ``finish`` folds it.

    Args:
        model: the module to be trained.
        recipe: from ``openwork.methods``.
        optimizer: the optimiser that trains ``model``; its steps are the clock of the schedule.
        data: batches, only for recipes that measure something (``recipe.rule.needs``).
        loss: likewise.
        seed: for everything random.
        target: a budget as in ``ow.prune``; the shares of the schedule are then shares of its cost.

    Raises:
        OpenworkError: anything that cannot be done as asked; model and optimiser are then untouched.
    """
    return Attached(model, recipe, optimizer, data=data, loss=loss, seed=seed, target=target)


class Attached:
    """A running recipe. Made by ``attach``; ends with ``finish``."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        optimizer: Optimizer,
        *,
        data: Iterable[Any] | None,
        loss: Loss | None,
        seed: int,
        target: Mapping[str, float] | None = None,
    ):
        self._session = Session(model, recipe, data, loss, seed, target)
        recipe = self._session.recipe
        if recipe.drive == "cycle":
            raise RecipeError(f"{recipe.name} works in rounds of training; use ow.cycle")
        _refuse_untrained(self._session.params, optimizer, recipe)
        self.model, self.recipe, self.optimizer = model, recipe, optimizer
        self.step = 0
        self._done: Result | None = None
        self._phase: Phase = recipe.schedule(0)
        self._grads: dict[str, Tensor] = {}
        self._detached = False
        self._moments = {m for m in ("penalty", "on_grad") if getattr(type(recipe.rule), m) is not getattr(Rule, m)}
        relaxation = recipe.relaxation if recipe.density < 1 else None
        if relaxation is not None and recipe.rule.needs:
            raise RecipeError(
                f"{recipe.name}: a rule that measures {', '.join(sorted(map(repr, recipe.rule.needs)))} cannot look "
                "through gates; take relaxation=None or another criterion"
            )
        self._gates = Gates(model, self._session, relaxation, optimizer)
        self._pruned = inverted(self._session.masks())
        try:
            self._session.state = recipe.rule.init(self._now())
            if self._phase.update:
                self._update(self._phase)
        except BaseException:
            self._gates.restore()
            raise
        self._clock = Clock(optimizer, self._before_step, self._after_step)

    # what the user calls -----------------------------------------------------------------------------

    def penalty(self) -> Tensor | float:
        """To be added to the loss; 0.0 for most methods."""
        if "penalty" not in self._moments:
            return 0.0
        return self.recipe.rule.penalty(self._now(), self._session.state)

    def finish(self) -> Result:
        """Fold gates, write the final masks, remove every hook, and return the result.

        Raises:
            DensityMissed: the schedule has not reached its promised density; training may go on and ``finish`` be
                called again.
            DivergedError: gates or the kept weights under them are NaN or infinite; nothing is folded or written.
        """
        if self._done is not None:
            return self._done
        if self._detached:
            raise OpenworkError(f"{self.recipe.name}: finish() after detach(), which gave up the run; attach again")
        if self.step < self.recipe.schedule.last:
            kept, total = self._session.kept()
            raise DensityMissed(
                f"{self.recipe.name}: finish() after {self.step} optimiser steps, but density "
                f"{self.recipe.density:g} is reached "
                f"at step {self.recipe.schedule.last} (now {kept / total:.4f}); train on, or give the recipe "
                "fewer steps"
            )
        session = self._session
        session.keeps_promise()
        self._gates.fold(self._phase.name)
        self._clock.remove()
        if self.recipe.density < 1:
            zero_weights(session.params, self._pruned)
        self._done = session.concluded()
        return self._done

    def detach(self) -> None:
        """Stop without a result: hooks and gates go, the weights stay as they are."""
        self._clock.remove()
        self._gates.remove()
        self._detached = True

    @property
    def masks(self) -> Masks:
        """The masks in force now."""
        return Masks(self._session.whole_masks())

    @property
    def density(self) -> float:
        """Kept share of the targeted parameters now."""
        kept, total = self._session.kept()
        return kept / total

    @property
    def phase(self) -> str:
        """The name of the current phase."""
        return self._phase.name

    @property
    def samples(self) -> int:
        """Forward passes that a training step averages the loss of: 1, or what a relaxation that draws masks asks."""
        return int(getattr(self.recipe.relaxation, "samples", 1))

    def averaged(self, loss: Callable[[], Tensor]) -> Tensor:
        """The mean of ``loss()`` over the forward passes of a training step, each of them with its own masks."""
        first, *more = (loss() for _ in range(self.samples))
        return sum(more, first) / self.samples

    @property
    def log(self) -> list[dict[str, Any]]:
        """One entry per mask update so far."""
        return self._session.log

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: step, units, rule state, generator, log. Gates travel in the model's state."""
        return {**self._session.state_dict(), "step": self.step, "gates": self._gates.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``; the model's and the optimiser's own states are loaded by the caller.

        Raises:
            RecipeError: the state belongs to another recipe or another model.
        """
        self.step = self._session.load_state_dict(state, "step")
        self._phase = self.recipe.schedule(self.step)
        self._pruned = inverted(self._session.masks())
        self._gates.set_units(self._session.units)
        self._gates.load_state_dict(state["gates"], self.step)

    # what the optimiser calls ------------------------------------------------------------------------

    def _now(self, grads: Mapping[str, Tensor] = EMPTY) -> Now:
        learned = self._gates.learned(self._phase.name)
        return self._session.now(self.step, grads, learned, weights=self._gates.weights())

    def _before_step(self) -> None:
        params, rule = self._session.params, self.recipe.rule
        dense = {n: local(p.grad) for n, p in params.items() if p.grad is not None}
        if rule.needs_grads and self.recipe.schedule(self.step + 1).update:
            self._grads = {n: g.detach().clone() for n, g in dense.items()}
        if "on_grad" in self._moments:
            for name, grad in rule.on_grad(self._now(dense), self._session.state).items():
                params[name].grad = grad.detach()
        if not self._gates.active:
            zero_gradients(params, self._pruned)
        self._gates.before_step()

    def _after_step(self) -> None:
        self.step += 1
        self._gates.after_step(self.step)
        if not self._gates.active:
            zero_weights(self._session.params, self._pruned)
        self._phase = self.recipe.schedule(self.step)
        if self._phase.restart and self.recipe.density < 1:
            self.optimizer.state.clear()
        if self._phase.update and self.recipe.density < 1:
            self._update(self._phase)

    def _update(self, phase: Phase) -> None:
        session, before = self._session, self._session.units
        with torch.enable_grad():
            learned = self._gates.learned(phase.name)
            update = session.decide(phase, self.step, self._grads, learned, self._gates.weights())
        self._grads = {}
        write_edits(session.params, self._gates.under(update.edits))
        self._pruned = inverted(session.masks())
        if self._gates.active:
            self._gates.updated(before, phase.name)
        else:
            zero_weights(session.params, self._pruned)
            for name, where in self._pruned.items():
                forget(self.optimizer, session.params[name], where)
        for name, where in update.fresh.items():
            forget(self.optimizer, session.params[name], where)


def _refuse_untrained(params: Mapping[str, nn.Parameter], optimizer: Optimizer, recipe: Recipe) -> None:
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [n for n, p in params.items() if id(p) not in known]
    if lost:
        raise OpenworkError(
            f"{recipe.name}: the optimiser does not train {lost[0]} ({len(lost)} of {len(params)} targets); "
            "build it from "
            "model.parameters(), or leave these out with Select(exclude=...)"
        )
