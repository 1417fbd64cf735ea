"""SpODE: masks travel along an ODE whose time is sparsity (PSO: Mo, Shi, Pan, ICML 2023). Weights stay frozen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.allocation import Global, Uniform
from openwork.allocation.uniform import keep_in
from openwork.core.now import Now, Phase, Units, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import count_kept, keep_top
from openwork.core.stat import Stat
from openwork.errors import DivergedError, RecipeError
from openwork.rules.path import MEASURES, PATHS, RADII, Measure, densities, direction, dot, hess_step, norm, radius_at
from openwork.rules.polarise import KINDS, polarise
from openwork.schedules.shapes import check_density
from openwork.stats import MaskLoss

Row = dict[str, Any]
Spread = dict[str, Tensor]
SEARCHED = (0.25, 1.0, 4.0, 16.0)
NEAR = 0.05
"""A path may be cut at another density than its end when they differ by less than this share."""
CHOICES = {
    "polariser": KINDS,
    "measure": MEASURES,
    "path": PATHS,
    "radius_path": RADII,
    "scope": ("global", "local"),
    "field_scope": ("global", "local"),
    "density_from": ("schedule", "measure"),
    "sizes": ("auto", "even", "raw"),
}


@dataclass(frozen=True)
class SpODE(Rule):
    """Integrate ``dm/dt = F(m)`` from the present density to the target in ``steps`` Euler steps, then cut exactly.

    ``radius > 1`` says how far from magnitude the path may turn. ``scope`` is where densities hold (polariser and final
    cut), ``field_scope`` where ``F`` is solved. ``density_from="measure"`` polarises at ``G(m)`` as the paper's code
    does; the default follows the schedule, since after a binary start the l2 measure is the square root of the density.
    ``radius_path="search"`` tries ``SEARCHED`` multiples of ``radius - 1`` at every step and takes the one whose hard
    mask at the next density has the smallest loss on the same batches. ``momentum`` accumulates the score
    ``|m| sum |w|``; ``clamp`` keeps masks in [0, 1]; ``floor`` units stay in every tensor.

    ``sizes="even"`` compares units of different sizes fairly: a unit counts in the length of ``F`` as often as it has
    weights, so that no size falls faster than another, and its ``sum |w|`` is that over the mean of its partition.
    ``"raw"`` does neither, as the paper's code, which cuts every layer by itself; with one ranking of channels it
    empties the layers with the largest. ``"auto"`` is even for coupled units under a global scope.

    ``log["path"]`` has a row per step: ``k``; ``density``, which the step leads to; ``dt``; ``radius``; at its start
    ``G``, ``energy``, ``kept`` (share of the polarised mask), ``e_norm``, ``g_norm``, ``cos_Fe``, ``cos_Fg``; and what
    it did: units ``regrown`` and ``removed`` (between the hard masks before and after; the last is the final mask) and
    ``negative`` mask entries.
    """

    steps: int = 100
    radius: float = 1.1
    polariser: Literal["ohh", "ohm", "oh", "qt", "qtm", "gau", "id"] = "ohh"
    measure: Literal["l1", "l2"] = "l2"
    path: Literal["exp", "lin", "invexp", "hess"] = "exp"
    radius_path: Literal["fixed", "invexp", "hess", "search"] = "fixed"
    scope: Literal["global", "local"] = "global"
    field_scope: Literal["global", "local"] = "global"
    momentum: float = 0.0
    density_from: Literal["schedule", "measure"] = "schedule"
    clamp: bool = False
    floor: int = 0
    sizes: Literal["auto", "even", "raw"] = "auto"
    energy: MaskLoss = field(default_factory=MaskLoss)

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise RecipeError(f"SpODE: steps must be an integer of at least 1, got {self.steps!r}")
        if not 1 < self.radius < math.inf:
            raise RecipeError(
                f"SpODE: radius must be above 1 and finite, got {self.radius}; at 1 it is global magnitude pruning, "
                "use magnitude for that"
            )
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"SpODE: momentum must be in [0, 1), got {self.momentum}")
        if self.floor < 0:
            raise RecipeError(f"SpODE: floor must not be negative, got {self.floor}")
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise RecipeError(f"SpODE: {name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.energy})

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        check_density(phase.share, "SpODE")
        run = _Run(self, now)
        units, rows = run.integrate(phase.share, self.radius)
        return Update(units, state=state, scores=run.scores(), log={"path": rows})

    def recut(self, now: Now, update: Update, share: float) -> Mapping[str, Tensor] | None:
        """Another cut of the same masks, as long as it lies near the density that the path has led to."""
        rows = update.log["path"]
        if not rows or not 1 - NEAR <= share / rows[-1]["density"] <= 1 + NEAR:
            return None
        run = _Run(self, now)
        counts = run.allocated(update.scores, share)
        return {n: keep_top(s, counts[n], now.parts[n].scope()) for n, s in update.scores.items()}


def total_regrowth(path: Iterable[Mapping[str, Any]]) -> int:
    """Units that came back, summed over the rows of ``log["path"]``; one that left and returned twice counts twice."""
    return sum(int(row["regrown"]) for row in path)


def integrate(rule: SpODE, now: Now, share: float, radius: float) -> tuple[Units, list[Row]]:
    """From the units alive now to ``share``: the new units and one row per step. ``radius`` 1 is allowed here.

    Raises:
        RecipeError: a share above the present density, or a structure that the scope cannot serve.
        DivergedError: a NaN or infinite loss or gradient; the message names the step.
    """
    return _Run(rule, now).integrate(share, radius)


class _Run:
    """One integration: the soft masks of all partitions as one vector ``[units]``."""

    def __init__(self, rule: SpODE, now: Now):
        if not now.parts:
            raise RecipeError("SpODE: there is nothing to prune; no partition was given")
        self.rule, self.now, self.parts = rule, now, list(now.parts.values())
        if rule.scope == "global":
            for name, part in now.parts.items():
                if part.scope() is not None:
                    raise RecipeError(
                        f"{name}: SpODE cannot rank a structure with its own regions (N:M, per row) over the whole "
                        "model; use scope='local'"
                    )
        self.soft: list[Partition] = [getattr(p, "reading", p) for p in self.parts]
        """Where soft masks stand: coupled units are scaled once, where they are read."""
        self.sizes = [p.n_units for p in self.parts]
        self.n = sum(self.sizes)
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        each = [slice(a, b) for a, b in pairwise(ends)]
        self.spans = each if rule.scope == "local" else [slice(0, self.n)]
        wide = any(now.weights[m].dtype == torch.float64 for p in self.parts for m in p.members)
        self.dtype = torch.float64 if wide else torch.float32
        self.mass = _joined([p.pool({m: now.weights[m].abs().to(self.dtype) for m in p.members}) for p in self.parts])
        cost = _joined([p.cost.to(self.mass) for p in self.parts])
        self.lengths: Tensor | None = None
        """Square roots of the weights behind every unit, where sizes are evened out."""
        coupled = rule.scope == "global" and any(hasattr(p, "reading") for p in self.parts)
        if rule.sizes == "even" or (rule.sizes == "auto" and coupled):
            self.mass = _joined(
                [m / m.mean().clamp_min(torch.finfo(m.dtype).tiny) for m in self.mass.split(self.sizes)]
            )
            self.lengths = (cost / cost.mean()).sqrt()
        self.mask = _joined([now.units[n].to(self.dtype) for n in now.parts])
        # equal costs (unstructured: all 1) need no vector
        cost = cost[:1].clone().expand(self.n) if bool((cost == cost[0]).all()) else cost
        self.measure = Measure(rule.measure, cost)
        self.fields = [(slice(0, self.n), self.measure)]
        if rule.field_scope == "local":
            self.fields = [(s, Measure(rule.measure, cost[s])) for s in each]
        self.smoothed: Tensor | None = None
        self.alive = _joined([now.units[n] for n in now.parts])

    def scores(self) -> dict[str, Tensor]:
        """``|m| sum |w|`` per unit, or its running sum with momentum; exact products, so that none collide."""
        score = self.mask.double().abs() * self.mass.double() if self.smoothed is None else self.smoothed
        return dict(zip(self.now.parts, score.split(self.sizes), strict=True))

    def allocated(self, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]:
        """How many units every partition (or region) keeps."""
        rule = self.rule
        allocation: Allocation = Global(floor=rule.floor) if rule.scope == "global" else Uniform(at_least=rule.floor)
        return allocation(self.now, scores, share)

    def integrate(self, share: float, radius: float) -> tuple[Units, list[Row]]:
        """The path to ``share`` and the exact cut at its end."""
        now = self.now
        counts = self.allocated(self.scores(), share)  # what the allocation refuses, it refuses before the first step
        wanted = sum(int(torch.as_tensor(c).sum()) * _runs(now.parts[n]) for n, c in counts.items())
        alive = sum(int(now.units[n].sum()) for n in now.parts)
        if alive < wanted:
            raise RecipeError(
                f"SpODE: the density can only fall along the path, but {alive / self.n:.4g} of the units are alive and "
                f"{share:.4g} is asked; start from the dense model or ask for less"
            )
        if alive == wanted:
            return {n: now.units[n].clone() for n in now.parts}, []
        rows = self.walk(alive / self.n, share, radius)
        scores = self.scores()
        counts = self.allocated(scores, share)
        units = {n: keep_top(s, counts[n], now.parts[n].scope()) for n, s in scores.items()}
        self.count_moves(rows[-1], torch.cat(list(units.values())))
        empty = [n for n, u in units.items() if not bool(u.any())]
        if empty:
            warnings.warn(f"SpODE: no unit of {', '.join(empty)} is kept (layer collapse); set floor=1", stacklevel=3)
        return units, rows

    def walk(self, start: float, end: float, radius: float) -> list[Row]:
        """All Euler steps."""
        rule, rows = self.rule, list[Row]()
        plan = None if rule.path == "hess" else densities(rule.path, start, end, rule.steps)
        density, steepness = start, list[float]()
        for k in range(rule.steps):
            grads = [m.value_and_grad(self.mask[s]) for s, m in self.fields]
            value = grads[0][0] if len(grads) == 1 else self.measure.value(self.mask)
            keep = density if rule.density_from == "schedule" else min(1.0, max(end, value))
            context = self.mask.abs().mul_(self.mass)
            alive = self.choose(context, keep)
            if rows:
                self.count_moves(rows[-1], alive)
            energy, kept, pull = self.pull(context, alive, keep, k)
            slope = _joined([grad.neg_() for _, grad in grads])  # G is a density and must fall
            steepness.append(norm(pull))
            if not math.isfinite(steepness[-1]):
                raise DivergedError(
                    f"SpODE: the gradient of the loss is NaN or infinite at step {k} of the path; check the model and "
                    "the data"
                )
            left = rule.steps - k
            to = plan[k + 1] if plan else density - hess_step(density - end, steepness, left) if left > 1 else end
            wide = radius_at(rule.radius_path, radius, k, rule.steps, steepness[-1])
            if rule.radius_path == "search":
                wide = self.searched(pull, slope, wide, density - to, to, k)
            step = self.field(pull, slope, wide)
            row = {"k": k, "density": to, "dt": density - to, "radius": wide, "G": value}
            row |= {"energy": energy, "kept": kept, **_angles(step, pull, slope, steepness[-1])}
            self.mask = self.mask.add_(step, alpha=density - to)
            if rule.clamp:
                self.mask.clamp_(0, 1)
            if rule.momentum:
                score = self.mask.double().abs() * self.mass.double()
                self.smoothed = score if self.smoothed is None else score.add_(self.smoothed, alpha=rule.momentum)
            rows.append(row | {"negative": int(torch.count_nonzero(self.mask < 0))})
            density = to
        return rows

    def field(self, pull: Tensor, slope: Tensor, radius: float) -> Tensor:
        """``F``, solved wherever the field scope says."""
        if self.lengths is None:
            return _joined([direction(pull[s], slope[s], radius) for s, _ in self.fields])
        long = self.lengths
        return _joined([direction(pull[s] / long[s], slope[s] / long[s], radius) / long[s] for s, _ in self.fields])

    def searched(self, pull: Tensor, slope: Tensor, radius: float, dt: float, density: float, k: int) -> float:
        """The radius whose hard mask after this step has the smallest loss on the batches of this step."""
        found: list[tuple[float, float]] = []
        for factor in SEARCHED:
            wide = 1 + factor * (radius - 1)
            mask = self.mask.add(self.field(pull, slope, wide), alpha=dt)
            hard = self.choose(mask.abs_().mul_(self.mass), density).to(self.dtype)
            found.append((self.energy(hard, k, again=True)[0], wide))
        return min(found)[1]

    def choose(self, context: Tensor, density: float) -> Tensor:
        """The hard mask of that density, by the counts of the scope."""
        if self.rule.scope == "global":
            return keep_top(context, count_kept(density, self.n))
        least = self.rule.floor
        pairs = zip(self.parts, context.split(self.sizes), strict=True)
        return _joined([keep_top(a, keep_in(p, density, "ceil", least), p.scope()) for p, a in pairs])

    def count_moves(self, row: Row, alive: Tensor) -> None:
        """Say in a step's row what it changed, and remember the hard mask that it led to."""
        row["regrown"] = int(torch.count_nonzero(alive > self.alive))
        row["removed"] = int(torch.count_nonzero(self.alive > alive))
        self.alive = alive

    def pull(self, context: Tensor, alive: Tensor, density: float, k: int) -> tuple[float, float, Tensor]:
        """Energy at the polarised mask, its mean entry, and ``-dE/dm``."""
        kind = self.rule.polariser
        made = [polarise(kind, self.mask[s], context[s], density, alive[s]) for s in self.spans]
        mask = _joined([b for b, _ in made])
        energy, grads, spreads = self.energy(mask, k)
        slopes = []
        for i, part in enumerate(self.soft):
            others = [s for j, s in enumerate(spreads) if j != i]  # product rule where partitions overlap
            at = {n: math.prod((s[n] for s in others if n in s), start=grads[n].to(self.dtype)) for n in part.members}
            slopes.append(part.pool(at))
        slope = _joined(slopes)
        back = _joined([turn(slope[s]) for s, (_, turn) in zip(self.spans, made, strict=True)])
        kept = float((alive if kind in ("ohh", "ohm", "oh") else mask).sum(dtype=torch.float64))
        return float(energy), kept / self.n, back.neg()

    def energy(self, mask: Tensor, k: int, again: bool = False) -> tuple[float, dict[str, Tensor], list[Spread]]:
        """Loss and its gradient at a mask of units, and that mask spread over the tensors of each partition."""
        spreads = [p.spread(b) for p, b in zip(self.soft, mask.split(self.sizes), strict=True)]
        masks: Spread = {}
        for spread in spreads:
            for name, b in spread.items():
                masks[name] = masks[name] * b if name in masks else b
        weights = self.now.weights
        cast = {n: b.to(weights[n].dtype) for n, b in masks.items()}
        energy, grads = self.now[self.rule.energy](cast, k, again)
        return energy, grads, spreads


def _runs(part: Partition) -> int:
    """How many regions of a partition one count stands for."""
    scope = part.scope()
    return part.n_units // scope if isinstance(scope, int) else 1


def _angles(step: Tensor, pull: Tensor, slope: Tensor, steep: float) -> Row:
    length, fall = norm(step), norm(slope)
    return {
        "e_norm": steep,
        "g_norm": fall,
        "cos_Fe": dot(step, pull) / (length * steep) if steep else 0.0,
        "cos_Fg": dot(step, slope) / (length * fall),
    }


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
