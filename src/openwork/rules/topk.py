"""Keep the best units by a criterion; and the same, repeated with fresh scores on the way down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from openwork.allocation import Uniform
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Allocation, Criterion, Rule
from openwork.core.select import keep_top
from openwork.core.shards import on_any, summed_over, total_of
from openwork.core.shares import apportioned
from openwork.core.stat import Stat
from openwork.errors import DensityMissed, DivergedError, RecipeError


@dataclass(frozen=True)
class TopK(Rule):
    """Score every unit, let the allocation count, keep the top of each region.

    ``nested=True`` chooses among the units alive (dropped ones stay off) as long as there are enough of them.
    ``positive=True`` refuses to keep units that score zero or less: for learned sparsity, which may have gone further
    than the density asked for. ``connected=True`` refuses, before any work, a share that keeps fewer units than there
    are tensors, so that one would be empty.
    """

    criterion: Criterion
    allocation: Allocation = field(default_factory=Uniform)
    nested: bool = False
    positive: bool = False
    connected: bool = False

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.criterion.needs | getattr(self.allocation, "needs", frozenset())

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return getattr(self.criterion, "needs_grads", False)

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return all(getattr(p, "sharded", False) for p in (self.criterion, self.allocation)) and not self.positive

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        scores = {name: _wide(self.criterion(part, now)) for name, part in now.parts.items()}
        self._refuse_infinite(now, scores, phase)
        units = self._cut(now, scores, phase.share)
        if self.positive:
            empty = sum(int((scores[n][u] <= 0).sum()) for n, u in units.items())
            if empty:
                share = sum(int((s > 0).sum()) for s in scores.values()) / sum(s.numel() for s in scores.values())
                raise DensityMissed(
                    f"only {share:.4f} of the units are still above their learned threshold, but density "
                    f"{phase.share:g} is promised; lower the decay or start from a lower threshold"
                )
        return Update(units, state=state, scores=scores)

    def recut(self, now: Now, update: Update, share: float) -> Mapping[str, Tensor] | None:
        return None if self.positive else self._cut(now, update.scores, share)

    def _cut(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        if self.nested:
            alive = {n: s.masked_fill(~now.units[n], float("-inf")) for n, s in scores.items()}
            units = _top(now, alive, _within_alive(now, self.allocation(now, alive, share)))
            if not any(on_any(now.parts[n], bool((u & ~now.units[n]).any())) for n, u in units.items()):
                return units
        return _top(now, scores, self.allocation(now, scores, share))

    @staticmethod
    def _refuse_infinite(now: Now, scores: Mapping[str, Tensor], phase: Phase) -> None:
        wrong = summed_over(now.parts, {n: int((~torch.isfinite(s)).sum()) for n, s in scores.items()})
        for name, bad in wrong.items():
            if bad:
                raise DivergedError(
                    f"{name}: {bad} of {total_of(now.parts[name])} scores are NaN or infinite in the {phase.name} "
                    "phase; check the weights and the loss"
                )


def _top(now: Now, scores: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> dict[str, Tensor]:
    return {n: keep_top(scores[n], counts[n], now.parts[n].scope()) for n in scores}


def _within_alive(now: Now, counts: Mapping[str, int | Tensor]) -> Mapping[str, int | Tensor]:
    """Counts of unequal shares, none above the units alive as long as there are enough of them in all.

    A smaller total may give one tensor a unit more: rounding goes to the largest remainders.
    """
    whole = {n: c for n, c in counts.items() if isinstance(c, int)}
    if len(whole) < len(counts):
        return counts
    alive = summed_over(now.parts, {n: int(now.units[n].sum()) for n in whole})
    total = sum(whole.values())
    if total > sum(alive.values()) or all(c <= alive[n] for n, c in whole.items()):
        return counts
    return dict(zip(whole, apportioned(list(whole.values()), total, most=list(alive.values())), strict=True))


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


@dataclass(frozen=True)
class Repeat(Rule):
    """Apply a rule ``rounds`` times, the share falling exponentially, with scores measured anew on the pruned net.

    SynFlow needs this for its guarantee; iterative SNIP is the same around ``Saliency``. ``linear=True`` lets the
    share fall by equal amounts instead.
    """

    rule: Rule
    rounds: int = 100
    linear: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RecipeError(f"Repeat: rounds must be at least 1, got {self.rounds}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.rule.needs

    @property
    def connected(self) -> bool:
        return getattr(self.rule, "connected", False)

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return self.rule.needs_grads

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return self.rule.sharded

    def init(self, now: Now) -> Any:
        return self.rule.init(now)

    def penalty(self, now: Now, state: Any) -> Tensor | float:
        return self.rule.penalty(now, state)

    def on_grad(self, now: Now, state: Any) -> Any:
        return self.rule.on_grad(now, state)

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        shares = [self._share(phase.share, k / self.rounds) for k in range(1, self.rounds)] + [phase.share]
        step = Update(now.units, state=state)
        edits: dict[str, Tensor] = {}
        for share in shares:
            now = replace(now, units=step.units, weights={**now.weights, **step.edits})
            step = self.rule.update(now, replace(phase, share=share), step.state)
            edits.update(step.edits)
        return replace(step, edits=edits)

    def _share(self, share: float, done: float) -> float:
        return 1 - (1 - share) * done if self.linear else share**done
