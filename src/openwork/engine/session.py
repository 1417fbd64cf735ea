"""What every driver sets up the same way: partitions, coverage, generator, a feed, and the read-only situation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed, Loss, device_of
from openwork.core.distributed import refuse_wrapped
from openwork.core.masks import masks_of
from openwork.core.measuring import Measuring, measure, refuse_missing
from openwork.core.now import EMPTY, Now, Phase, Update
from openwork.core.recipe import Recipe
from openwork.engine.budget import Budget, check_target, settled
from openwork.engine.result import Result, check_promise, conclude
from openwork.errors import DivergedError, RecipeError
from openwork.structure.cover import partition


class Session:
    """One recipe on one model. Reads the model, keeps the units and the rule's state, and writes nothing."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: Iterable[Any] | None,
        loss: Loss | None,
        seed: int,
        target: Mapping[str, float] | None = None,
    ):
        if not isinstance(recipe, Recipe):
            raise RecipeError(
                f"a recipe must be a Recipe, got {type(recipe).__name__}; call a method, e.g. magnitude(density=0.1)"
            )
        if target is not None:
            check_target(target)
        refuse_wrapped(model)
        self.target = None if target is None else dict(target)
        self.budget = Budget.of(target, model, recipe) if target is not None else None
        if self.budget is not None:
            recipe = settled(recipe, self.budget.share)
        self.model, self.recipe, self.seed = model, recipe, seed
        self.parts, self.coverage = partition(model, recipe.structure, recipe.where)
        named = dict(model.named_parameters())
        members = dict.fromkeys(m for part in self.parts.values() for m in part.members)
        self.params = {name: named[name] for name in members}
        refuse_bad_weights(self.params)
        self.device = device_of(model)
        self.feed = Feed(data, self.device)
        self.measuring = Measuring(model, self.parts, self.feed, loss, seed)
        if recipe.density < 1:
            refuse_missing(recipe.rule, self.measuring)
        self.rng = torch.Generator().manual_seed(seed)
        self.units: dict[str, Tensor] = {
            n: torch.ones(p.n_units, dtype=torch.bool, device=self.device) for n, p in self.parts.items()
        }
        self.state: Any = None
        self.log: list[dict[str, Any]] = []

    def now(
        self,
        step: int,
        grads: Mapping[str, Tensor] = EMPTY,
        learned: Mapping[str, Tensor] = EMPTY,
        stats: Any = EMPTY,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Now:
        """The situation at one step, for rules to read. ``weights`` replaces the parameters where gates stand."""
        weights = weights if weights is not None else {n: p.detach() for n, p in self.params.items()}
        phase = self.recipe.schedule(step).name
        return Now(self.parts, self.units, weights, stats, grads, learned, step, phase, self.rng)

    def decide(
        self,
        phase: Phase,
        step: int,
        grads: Mapping[str, Tensor] = EMPTY,
        learned: Mapping[str, Tensor] = EMPTY,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Update:
        """Ask the rule for new units, remember them and its state, and log what changed.

        Raises:
            OpenworkError: whatever the rule or a statistic raises; units and state are then as they were.
        """
        if phase.share >= 1:
            update = Update({n: torch.ones_like(u) for n, u in self.units.items()}, state=self.state)
        else:
            now = self.now(step, grads, learned, measure(self.recipe.rule, self.measuring), weights)
            if self.budget is not None:
                update = self.budget.decide(self.recipe, now, phase, self.state)
            else:
                update = self.recipe.rule.update(now, phase, self.state)
        for name, units in self.units.items():
            new = update.units.get(name)
            if new is None or new.shape != units.shape or new.dtype != torch.bool:
                raise RecipeError(
                    f"{self.recipe.name}: the rule must answer with bool units of shape {tuple(units.shape)} for {name}"
                )
        changed = sum(int((update.units[n] != u).sum()) for n, u in self.units.items())
        self.units = {n: update.units[n] for n in self.parts}
        self.state = update.state
        kept, total = self.kept()
        entry = {"step": step, "phase": phase.name, "share": phase.share, "density": kept / total, "changed": changed}
        if self.budget is not None:
            entry[self.budget.unit] = self.budget.of_units(self.units)
        self.log.append({**entry, **update.log})
        return update

    def state_dict(self) -> dict[str, Any]:
        """Units, rule state, generator, log and how many batches were drawn, with the recipe they belong to."""
        return {
            "recipe": self.recipe.to_dict(),
            "target": self.target,
            "units": {n: u.clone() for n, u in self.units.items()},
            "rule": self.state,
            "rng": self.rng.get_state(),
            "log": list(self.log),
            "served": self.feed.served,
        }

    def load_state_dict(self, state: Mapping[str, Any], counter: str) -> int:
        """Inverse of ``state_dict``; returns the value of ``counter``, which the driver has added.

        Raises:
            RecipeError: the state is incomplete or belongs to another recipe or model; nothing is then changed.
        """
        if state.get("recipe") != self.recipe.to_dict() or state.get("target") != self.target:
            raise RecipeError(f"{self.recipe.name}: the saved state belongs to another recipe; use the same one")
        for key in ("units", "rule", "rng", "log", "served", counter):
            if key not in state:
                raise RecipeError(f"{self.recipe.name}: the saved state has no {key!r}; it is not one of this driver")
        for name, units in self.units.items():
            if name not in state["units"] or state["units"][name].shape != units.shape:
                raise RecipeError(f"{name}: the saved state does not fit this model; build the model of the saved run")
        self.feed.skip(int(state["served"]))
        self.rng.set_state(state["rng"].cpu())
        self.units = {n: state["units"][n].to(self.device).clone() for n in self.units}
        self.state, self.log = state["rule"], list(state["log"])
        return int(state[counter])

    def concluded(self, written: bool = True) -> Result:
        """The result of what was decided, counted afresh.

        Raises:
            DensityMissed: the promise of the recipe or the budget was missed.
        """
        recipe, told = self.recipe, None
        if self.budget is not None:
            told = self.budget.told(recipe, self.units)
            recipe = settled(recipe, told["units_share"])
        result = conclude(
            self.model, recipe, self.parts, self.units, self.coverage, self.log, self.seed, written=written
        )
        if told is not None:
            result.manifest["budget"] = told
        return result

    def keeps_promise(self) -> None:
        """Nothing, or DensityMissed: the recipe's promise or the budget was missed."""
        if self.budget is not None:
            self.budget.refuse_missed(self.recipe, self.units)
        else:
            check_promise(self.recipe, self.parts, self.units)

    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool mask of the units alive now."""
        return masks_of(self.parts, self.units)

    def kept(self) -> tuple[int, int]:
        """(kept, all) parameters of the targets."""
        total = kept = 0
        for name, part in self.parts.items():
            cost = part.cost.to(self.device)
            kept += int(cost[self.units[name]].sum())
            total += int(cost.sum())
        return kept, total


def refuse_bad_weights(params: Mapping[str, nn.Parameter]) -> None:
    """NaN or infinite weights cannot be ranked."""
    for name, param in params.items():
        if not bool(torch.isfinite(param.detach()).all()):
            raise DivergedError(
                f"{name}: weights must be finite, got NaN or infinity; the model has diverged or was loaded wrongly"
            )
