"""What every driver sets up the same way: partitions, coverage, generator, a feed, and the read-only situation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed, Loss, device_of
from openwork.core.distributed import refuse_wrapped
from openwork.core.masks import masks_of
from openwork.core.measured import measure, refuse_missing
from openwork.core.measuring import Measuring
from openwork.core.now import EMPTY, Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.recipe import Recipe
from openwork.core.select import count_kept
from openwork.core.shards import across_of, is_sharded, like, local, reshard, summed_over, total_of
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
        reshard(model)
        if any(is_sharded(p) for p in model.parameters()):
            refuse_unable(recipe, target)
        self.target = None if target is None else dict(target)
        self.budget = Budget.of(target, model, recipe) if target is not None else None
        if self.budget is not None:
            recipe = settled(recipe, self.budget.share)
        self.model, self.recipe, self.seed = model, recipe, seed
        self.parts, self.coverage = partition(model, recipe.structure, recipe.where)
        named = dict(model.named_parameters())
        members = dict.fromkeys(m for part in self.parts.values() for m in part.members)
        self.params = {name: named[name] for name in members}
        refuse_bad_weights(self.params, self.parts)
        self.across = across_of(self.parts)
        self.device = device_of(model)
        self.feed = Feed(data, self.device)
        self.measuring = Measuring(model, self.parts, self.feed, loss, seed)
        if recipe.density < 1:
            refuse_missing(recipe.rule, self.measuring)
            refuse_disconnecting(recipe, self.parts)
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
        weights = weights if weights is not None else {n: local(p.detach()) for n, p in self.params.items()}
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
        changed = summed_over(self.parts, {n: int((update.units[n] != u).sum()) for n, u in self.units.items()})
        self.units = {n: update.units[n] for n in self.parts}
        self.state = update.state
        kept, total = self.kept()
        entry = {"step": step, "phase": phase.name, "share": phase.share, "density": kept / total}
        entry["changed"] = sum(changed.values())
        if self.across is not None:
            entry["sent_bytes"] = self.across.traffic.bytes
        if self.budget is not None:
            entry[self.budget.unit] = self.budget.of_units(self.units)
        self.log.append({**entry, **update.log})
        return update

    def state_dict(self) -> dict[str, Any]:
        """Units, rule state, generator, log and how many batches were drawn, with the recipe they belong to."""
        return {
            "recipe": self.recipe.to_dict(),
            "target": self.target,
            "units": self.joined({n: u.clone() for n, u in self.units.items()}),
            "rule": self.joined(self.state),
            "rng": self.rng.get_state(),
            "log": list(self.log),
            "served": self.feed.served,
        }

    def load_state_dict(self, state: Mapping[str, Any], counter: str) -> int:
        """Inverse of ``state_dict``; returns the value of ``counter``, which the driver has added.

        Raises:
            RecipeError: the state is incomplete or belongs to another recipe or model; nothing is then changed.
        """
        if not _same(state.get("recipe"), self.recipe) or state.get("target") != self.target:
            raise RecipeError(f"{self.recipe.name}: the saved state belongs to another recipe; use the same one")
        for key in ("units", "rule", "rng", "log", "served", counter):
            if key not in state:
                raise RecipeError(f"{self.recipe.name}: the saved state has no {key!r}; it is not one of this driver")
        for name, units in self.units.items():
            saved = state["units"].get(name)
            if saved is None or self.cut({name: saved})[name].shape != units.shape:
                raise RecipeError(f"{name}: the saved state does not fit this model; build the model of the saved run")
        self.feed.skip(int(state["served"]))
        self.rng.set_state(state["rng"].cpu())
        self.units = {
            n: u.to(self.device).clone() for n, u in self.cut({n: state["units"][n] for n in self.units}).items()
        }
        self.state, self.log = self.cut(state["rule"]), list(state["log"])
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
            self.model, recipe, self.parts, self.units, self.coverage, self.log, self.seed, written=written,
            masks=self.whole_masks(),
        )  # fmt: skip
        result.units = self.joined(result.units)
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
        """Parameter name -> bool mask of the units alive now; of a sharded parameter, of this rank's piece."""
        return masks_of(self.parts, self.units)

    def whole_masks(self) -> dict[str, Tensor]:
        """The same, sharded like their parameters."""
        return {n: like(self.params[n], mask) for n, mask in self.masks().items()}

    def joined(self, state: Any) -> Any:
        """Nested state with the values of units (under the name of their partition) sharded like the weights."""
        return self._walked(state, lambda name, u: self.parts[name].joined(u, self.params[name]))  # type: ignore[attr-defined]

    def cut(self, state: Any) -> Any:
        """Inverse of ``joined``; also takes values of all units, from a run in one process."""
        return self._walked(state, lambda name, u: self.parts[name].cut(u))  # type: ignore[attr-defined]

    def _walked(self, state: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
        if self.across is None:
            return state
        if isinstance(state, dict):
            return {
                k: change(k, v) if k in self.parts and isinstance(v, Tensor) else self._walked(v, change)
                for k, v in state.items()
            }
        if isinstance(state, list | tuple):
            return type(state)(self._walked(v, change) for v in state)
        return state

    def kept(self) -> tuple[int, int]:
        """(kept, all) parameters of the targets."""
        kept, total = {}, {}
        for name, part in self.parts.items():
            cost = part.cost.to(self.device)
            kept[name] = int(cost[self.units[name]].sum())
            total[name] = int(cost.sum())
        found = [sum(summed_over(self.parts, numbers).values()) for numbers in (kept, total)]
        return found[0], found[1]


def _same(saved: Any, recipe: Recipe) -> bool:
    """Whether a saved recipe is this one; what it was saved without, since an option came later, is the default."""
    try:
        return saved == recipe.to_dict() or Recipe.from_dict(saved).to_dict() == recipe.to_dict()
    except RecipeError:
        return False


def refuse_unable(recipe: Recipe, target: Mapping[str, float] | None) -> None:
    """Refuse what needs whole weights when the model's are sharded, before anything is looked at."""
    advice = "prune before fully_shard, use DDP or one process, or a method that works on shards (openwork methods)"
    if target is not None:
        raise RecipeError(f"{recipe.name}: a target {dict(target)} needs whole weights, but they are sharded; {advice}")
    if recipe.relaxation is not None:
        raise RecipeError(
            f"{recipe.name}: {type(recipe.relaxation).__name__} puts gates on whole weights, but they are sharded; "
            f"{advice}"
        )
    wrong = [type(s).__name__ for s in sorted(recipe.rule.needs, key=repr) if not s.sharded]
    if wrong or not recipe.rule.sharded:
        what = f"{wrong[0]} measures" if wrong else f"{type(recipe.rule).__name__} works on"
        raise RecipeError(f"{recipe.name}: {what} whole weights, but the model's are sharded (DTensor); {advice}")


def refuse_disconnecting(recipe: Recipe, parts: Mapping[str, Partition]) -> None:
    """Refuse a density that must empty a tensor, where the method's purpose is that none is."""
    if not getattr(recipe.rule, "connected", False):
        return
    total = sum(total_of(p) for p in parts.values())
    keep = count_kept(recipe.density, total)
    if keep < len(parts):
        rounds = getattr(recipe.schedule, "rounds", None)
        levels = f" after {rounds} rounds at rate {1 - recipe.density ** (1 / rounds):.2g}" if rounds else ""
        raise RecipeError(
            f"{recipe.name}: density {recipe.density:g}{levels} keeps {keep} of {total:,} units in {len(parts)} "
            f"tensors, so one would be empty; ask for at least {len(parts) / total:.2g}, or for fewer tensors with "
            "where"
        )


def refuse_bad_weights(params: Mapping[str, nn.Parameter], parts: Mapping[str, Partition]) -> None:
    """NaN or infinite weights cannot be ranked."""
    wrong = {n: int((~torch.isfinite(local(p.detach()))).any()) for n, p in params.items()}
    for name, bad in summed_over(parts, wrong).items():
        if bad:
            raise DivergedError(
                f"{name}: weights must be finite, got NaN or infinity; the model has diverged or was loaded wrongly"
            )
