"""SpODE: masks travel along an ODE whose time is sparsity (PSO, ICML 2023). Weights stay frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.allocation import Global, Uniform
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule, Stat
from openwork.core.select import count_kept, keep_top
from openwork.errors import DivergedError, RecipeError
from openwork.rules.path import Measure, densities, direction, dot, norm
from openwork.rules.polarise import KINDS, polarise
from openwork.stats import MaskLoss


@dataclass(frozen=True)
class SpODE(Rule):
    """Integrate ``dm/dt = F(m)`` from the present density to the target in ``steps`` Euler steps, then cut exactly.

    ``radius`` (dimensionless, > 1) says how far from magnitude the path may turn. ``scope`` is where densities hold,
    ``field_scope`` where ``F`` is solved. ``density_from="measure"`` takes the polariser's density from ``G(m)`` as the
    paper's code does; the default follows the schedule. ``floor`` units stay in every tensor under global scope.
    """

    steps: int = 100
    radius: float = 1.1
    polariser: Literal["ohh", "ohm", "oh", "qt", "qtm", "gau", "id"] = "ohh"
    measure: Literal["l1", "l2"] = "l2"
    path: Literal["exp", "lin", "invexp", "hess"] = "exp"
    radius_path: Literal["fixed", "invexp", "hess"] = "fixed"
    scope: Literal["global", "local"] = "global"
    field_scope: Literal["global", "local"] = "global"
    momentum: float = 0.0
    density_from: Literal["schedule", "measure"] = "schedule"
    clamp: bool = False
    floor: int = 0
    energy: MaskLoss = field(default_factory=MaskLoss)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise RecipeError(f"SpODE: steps must be at least 1, got {self.steps}")
        if not self.radius > 1:
            raise RecipeError(f"SpODE: radius must be above 1 (1 is global magnitude), got {self.radius}")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"SpODE: momentum must be in [0, 1), got {self.momentum}")
        if self.floor < 0:
            raise RecipeError(f"SpODE: floor must not be negative, got {self.floor}")
        allowed = {
            "polariser": KINDS,
            "measure": ("l1", "l2"),
            "path": ("exp", "lin", "invexp", "hess"),
            "radius_path": ("fixed", "invexp", "hess"),
            "scope": ("global", "local"),
            "field_scope": ("global", "local"),
            "density_from": ("schedule", "measure"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise RecipeError(f"SpODE: {name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.energy})

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        total = sum(u.numel() for u in now.units.values())
        start = sum(int(u.sum()) for u in now.units.values()) / total
        if start < phase.share - 1 / total:
            raise RecipeError(f"SpODE: the path must fall, but the density is {start:.4f} and {phase.share:.4f} is asked")
        if self.scope == "global" and any(p.scope() is not None for p in now.parts.values()):
            raise RecipeError("SpODE: a structure with its own regions (N:M, per row) needs scope='local'")
        path = _Path(self, now)
        log = path.integrate(min(1.0, start), phase.share)
        scores = dict(zip(now.parts, path.scores(), strict=True))
        allocation = Global(floor=self.floor) if self.scope == "global" else Uniform()
        counts = allocation(now, scores, phase.share)
        units = {n: keep_top(scores[n], counts[n], now.parts[n].scope()) for n in scores}
        return Update(units, state=state, log={"path": log})


class _Path:
    """The soft masks of one integration: one float per unit, per partition."""

    def __init__(self, rule: SpODE, now: Now):
        self.rule, self.now = rule, now
        parts = list(now.parts.values())
        self.sizes = [p.n_units for p in parts]
        self.mass = [p.pool({m: now.weights[m].abs() for m in p.members}) for p in parts]
        self.cost = [p.cost.to(w.device, w.dtype) for p, w in zip(parts, self.mass, strict=True)]
        self.masks = [now.units[n].to(w.dtype) for n, w in zip(now.parts, self.mass, strict=True)]
        self._score: list[Tensor] | None = None
        self._energy = now[rule.energy]

    def scores(self) -> list[Tensor]:
        """``|m| W`` per unit, with momentum over the path."""
        return self._score if self._score is not None else self._context()

    def _context(self) -> list[Tensor]:
        return [m.abs() * w for m, w in zip(self.masks, self.mass, strict=True)]

    def integrate(self, start: float, end: float) -> list[dict[str, Any]]:
        """Euler steps from density ``start`` to ``end``; one log row per step."""
        rule, log = self.rule, []
        groups = [list(range(len(self.masks)))] if rule.field_scope == "global" else [[i] for i in range(len(self.masks))]
        measures = [Measure(rule.measure, sum(float(self.cost[i].sum()) for i in g)) for g in groups]
        plan = densities("lin" if rule.path == "hess" else rule.path, start, end, rule.steps)
        density, before, first = start, None, None
        for k in range(rule.steps):
            value = self._value(groups, measures)
            keep = density if rule.density_from == "schedule" else min(1.0, max(end, value))
            context = self._context()
            forward, backs = self._polarised(context, keep)
            hard = [b != 0 for b in forward] if rule.polariser.startswith("oh") else self._hard(context, keep)
            energy, slopes = self._slopes(forward, backs, k)
            pull = [-s for s in slopes]
            steep = norm(pull)
            first = first if first is not None else max(steep, 1e-30)
            dt = plan[k] - plan[k + 1]
            if rule.path == "hess" and k + 1 < rule.steps:
                dt = min((density - end) * 0.5, (density - end) / (rule.steps - k) * first / max(steep, 1e-30))
            elif rule.path == "hess":
                dt = density - end
            radius = self._radius(k, steep)
            along = []
            for group, measure in zip(groups, measures, strict=True):
                masks, costs = [self.masks[i] for i in group], [self.cost[i] for i in group]
                slope = [-x for x in measure.slope(masks, costs)]  # G is a density and must fall
                step = direction([pull[i] for i in group], slope, radius)
                along.append((dot(step, [pull[i] for i in group]), norm(step), norm(slope)))
                for i, f in zip(group, step, strict=True):
                    self.masks[i] = self.masks[i] + dt * f.to(self.masks[i].dtype)
                    if rule.clamp:
                        self.masks[i] = self.masks[i].clamp(0, 1)
            if rule.momentum:
                fresh = self._context()
                old = self._score
                self._score = fresh if old is None else [a + rule.momentum * b for a, b in zip(fresh, old, strict=True)]
            moved = (0, 0) if before is None else _moved(before, hard)
            log.append(
                {
                    "k": k,
                    "density": keep,
                    "G": value,
                    "energy": energy,
                    "kept": sum(int(h.sum()) for h in hard) / sum(self.sizes),
                    "e_norm": steep,
                    "g_norm": along[0][2],
                    "cos_Fe": along[0][0] / max(along[0][1] * steep, 1e-30),
                    "radius": radius,
                    "dt": dt,
                    "regrown": moved[0],
                    "removed": moved[1],
                    "negative": sum(int((m < 0).sum()) for m in self.masks),
                }
            )
            before, density = hard, density - dt
        return log

    def _value(self, groups: list[list[int]], measures: Sequence[Measure]) -> float:
        values = [m.value([self.masks[i] for i in g], [self.cost[i] for i in g]) * m.total for g, m in zip(groups, measures, strict=True)]
        return sum(values) / sum(m.total for m in measures)

    def _radius(self, k: int, steep: float) -> float:
        if self.rule.radius_path == "invexp":
            return max(1.0, 4 * (self.rule.radius / 4) ** (1 - (k + 1) / self.rule.steps))
        if self.rule.radius_path == "hess":
            return max(self.rule.radius, 1 + 3 * steep)
        return self.rule.radius

    def _polarised(self, context: list[Tensor], density: float) -> tuple[list[Tensor], list[Any]]:
        if self.rule.scope == "local":
            made = [polarise(self.rule.polariser, m, a, density) for m, a in zip(self.masks, context, strict=True)]
            return [b for b, _ in made], [back for _, back in made]
        flat, back = polarise(self.rule.polariser, torch.cat(self.masks), torch.cat(context), density)
        return list(flat.split(self.sizes)), [back]

    def _hard(self, context: list[Tensor], density: float) -> list[Tensor]:
        if self.rule.scope == "local":
            return [keep_top(a, count_kept(density, a.numel())) for a in context]
        flat = torch.cat(context)
        return list(keep_top(flat, count_kept(density, flat.numel())).split(self.sizes))

    def _slopes(self, forward: list[Tensor], backs: list[Any], k: int) -> tuple[float, list[Tensor]]:
        spread: dict[str, Tensor] = {}
        for part, b in zip(self.now.parts.values(), forward, strict=True):
            for member, mask in part.spread(b).items():
                spread[member] = spread[member] * mask if member in spread else mask
        energy, grads = self._energy(spread, k)
        pooled = [p.pool({m: grads[m] for m in p.members}) for p in self.now.parts.values()]
        slopes = [back(s) for back, s in zip(backs, pooled, strict=True)] if len(backs) > 1 or len(pooled) == 1 else list(backs[0](torch.cat(pooled)).split(self.sizes))
        if not all(bool(torch.isfinite(s).all()) for s in slopes):
            raise DivergedError(f"SpODE: the gradient of the loss is NaN or infinite at step {k} of the path")
        return energy, slopes


def _moved(before: list[Tensor], after: list[Tensor]) -> tuple[int, int]:
    """(regrown, removed) units between two hard masks."""
    pairs = list(zip(before, after, strict=True))
    return sum(int((a & ~b).sum()) for b, a in pairs), sum(int((b & ~a).sum()) for b, a in pairs)
