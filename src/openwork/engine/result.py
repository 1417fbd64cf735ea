"""What a run leaves behind: masks, counts, coverage, log. Totals are recounted from the tensors."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.across import Across
from openwork.core.masks import Masks, masks_of
from openwork.core.partition import Partition
from openwork.core.recipe import Recipe
from openwork.core.select import count_kept
from openwork.core.shards import across_of, summed_over, total_of
from openwork.errors import DensityMissed
from openwork.metrics.density import Densities, densities
from openwork.structure.coupled import Coupled
from openwork.structure.cover import Covered
from openwork.version import __version__

FORMAT = 1


@dataclass
class Result:
    """The outcome of one run.

    Attributes:
        recipe: what was asked.
        masks: parameter name -> bool mask, True = kept.
        units: partition name -> bool ``[n_units]``.
        counts: densities with their three denominators, recounted from the tensors.
        coverage: one row per parameter, pruned or skipped with a reason.
        log: one plain dict per update (step, phase, share, density, changed, and what the rule adds).
        manifest: seed, versions and whatever the caller adds.
        metrics: accuracies and losses by stage, filled by the caller.
        curve: training curve, filled by the caller.
        groups: of a coupled structure, one plain row per group: name, kind, units, how many are
            kept, and where they lie.
        ranks: (kept entries, units alive) of every tensor, counted once over all ranks where the weights are sharded;
            ``masks`` and ``units`` are then sharded (``DTensor``).
    """

    recipe: Recipe
    masks: Masks
    units: dict[str, Tensor]
    counts: Densities
    coverage: list[Covered]
    log: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    ranks: dict[str, tuple[int, int]] | None = None

    @property
    def density(self) -> float:
        """Kept share of the targeted tensors, counted in parameters."""
        return self.counts.targeted

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """One row per parameter: name, shape, kept, density, units, and the reason when it was skipped."""
        return [self._row(c) for c in self.coverage]

    def _row(self, c: Covered) -> dict[str, Any]:
        if self.ranks is not None:
            kept, alive = self.ranks.get(c.name, (c.numel, 0))
        else:
            kept = int(self.masks[c.name].sum()) if c.name in self.masks else c.numel
            alive = sum(int(self.units[g].sum()) for g in c.groups or (c.name,) if g in self.units)
        return {
            "name": c.name,
            "shape": list(c.shape),
            "numel": c.numel,
            "kept": kept,
            "density": kept / c.numel if c.numel else 1.0,
            "units": c.units,
            "units_kept": alive,
            "skipped": c.skipped,
            **({"groups": list(c.groups)} if c.groups else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the content of ``openwork.json``."""
        return {
            "format": FORMAT,
            "openwork": __version__,
            "method": self.recipe.name,
            "recipe": self.recipe.to_dict(),
            "density": {"asked": self.recipe.density, **self.counts.to_dict()},
            "tensors": self.tensors,
            "log": self.log,
            "manifest": self.manifest,
            "metrics": self.metrics,
            "curve": self.curve,
            **({"groups": self.groups} if self.groups else {}),
        }

    def report(self) -> str:
        """The result as text, made for reading in a terminal."""
        from openwork.report import report_text

        return report_text(self.to_dict())

    def __repr__(self) -> str:
        c = self.counts
        share = f"{c.targeted:.4f}, {c.total:.4f} of all"
        return f"Result({self.recipe.name}: kept {c.kept:,} of {c.targeted_numel:,} targeted = {share})"


def conclude(
    model: nn.Module,
    recipe: Recipe,
    parts: Mapping[str, Partition],
    units: Mapping[str, Tensor],
    coverage: Sequence[Covered],
    log: list[dict[str, Any]],
    seed: int,
    written: bool = True,
    masks: Mapping[str, Tensor] | None = None,
) -> Result:
    """Count what was reached and refuse to call it a result when the promise was missed."""
    masks = Masks(masks_of(parts, units) if masks is None else masks)
    check_promise(recipe, parts, units)
    manifest = {"seed": seed, "torch": torch.__version__, "python": platform.python_version()}
    kept = {n: u.detach().clone() for n, u in units.items()}
    result = Result(recipe, masks, kept, densities(model, masks, written), list(coverage), log, manifest)
    result.groups = [part.told(kept[n]) for n, part in parts.items() if isinstance(part, Coupled)]
    if across_of(parts) is not None:
        alive = summed_over(parts, {n: int(u.sum()) for n, u in kept.items()})
        result.ranks = {n: (masks.kept(n), alive[n]) for n in masks}
    return result


def check_promise(recipe: Recipe, parts: Mapping[str, Partition], units: Mapping[str, Tensor]) -> None:
    """The kept unit count must be what the density promises, up to one unit of rounding per region or floor.

    Of coupled units, which are few, a selection that removes nothing is no result.

    Raises:
        DensityMissed: it is not.
    """
    total = sum(total_of(p) for p in parts.values())
    kept = sum(summed_over(parts, {n: int(units[n].sum()) for n in parts}).values())
    low, high, total_slack = 0, 0, 0
    floors = sum(getattr(part, "at_least", 1) > 1 for part in parts.values())
    for part in parts.values():
        for size, regions in _regions(part).items():
            if part.quota is not None and recipe.density < 1:
                low += regions * part.quota[0]
                high += regions * part.quota[0]
            else:
                low += regions * count_kept(recipe.density, size, "floor")
                high += regions * max(1, count_kept(recipe.density, size, "ceil"))
        slack = getattr(part, "multiple", 1) - 1  # counts in multiples can miss by less than one of them
        low, high, total_slack = low - slack, high + slack + getattr(part, "at_least", 0), total_slack + slack
    if not min(low, count_kept(recipe.density, total, "floor") - total_slack) <= kept <= high:
        raise DensityMissed(
            f"{recipe.name}: density {recipe.density:g} promises {low} to {high} of {total} units, but {kept} are kept "
            f"({kept / total:.4f}); the schedule did not reach its end or the rule did not follow it"
        )
    if kept == total > count_kept(recipe.density, total, "ceil") and total_slack + floors:
        raise DensityMissed(
            f"{recipe.name}: density {recipe.density:g} was asked, but multiple= and at_least= of {recipe.structure} "
            f"keep all {total} units; take smaller ones or another density"
        )
    if kept == total and recipe.density < 1 and any(isinstance(part, Coupled) for part in parts.values()):
        raise DensityMissed(
            f"{recipe.name}: density {recipe.density:g} was asked, but counts round up in each of {len(parts)} groups "
            f"of units and all {total} units stay; take a smaller density, finer units or scope='global'"
        )


def _regions(part: Partition) -> Counter[int]:
    """Size of a region -> how many regions have it."""
    scope = part.scope()
    if isinstance(scope, Tensor):
        return Counter(torch.bincount(scope).tolist())
    size = total_of(part) if scope is None or isinstance(scope, Across) else scope
    return Counter({size: total_of(part) // size})
