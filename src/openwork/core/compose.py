"""Rules made of rules. Every composer forwards all four moments; a test lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.core.stat import Stat
from openwork.core.targets import check_pattern, matches
from openwork.errors import RecipeError


@dataclass(frozen=True)
class Chain(Rule):
    """Rules in order: later ones see the units and edited weights of earlier ones; penalties add."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise RecipeError("Chain: needs at least one rule, got none")
        for rule in self.rules:
            _refuse_other("Chain", rule)

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset().union(*(r.needs for r in self.rules))

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return any(r.needs_grads for r in self.rules)

    def init(self, now: Now) -> Any:
        return [r.init(now) for r in self.rules]

    def penalty(self, now: Now, state: Any) -> Tensor | float:
        total: Tensor | float = 0.0
        for rule, own in zip(self.rules, state, strict=True):
            total = total + rule.penalty(now, own)
        return total

    def on_grad(self, now: Now, state: Any) -> Mapping[str, Tensor]:
        changed: dict[str, Tensor] = {}
        for rule, own in zip(self.rules, state, strict=True):
            changed.update(rule.on_grad(replace(now, grads={**now.grads, **changed}), own))
        return changed

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        edits: dict[str, Tensor] = {}
        fresh: dict[str, Tensor] = {}
        log: dict[str, Any] = {}
        states = []
        for rule, own in zip(self.rules, state, strict=True):
            step = rule.update(now, phase, own)
            edits.update(step.edits)
            for name, where in step.fresh.items():
                fresh[name] = fresh[name] | where if name in fresh else where
            log.update(step.log)
            states.append(step.state)
            now = replace(now, units=step.units, weights={**now.weights, **step.edits})
        return Update(now.units, edits, states, fresh, log)


@dataclass(frozen=True)
class On(Rule):
    """A rule restricted to the partitions whose name matches a pattern (glob or ``re:``)."""

    pattern: str
    rule: Rule

    def __post_init__(self) -> None:
        check_pattern("On", self.pattern)
        _refuse_other("On", self.rule)

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.rule.needs

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return self.rule.needs_grads

    def _seen(self, now: Now) -> Now:
        parts = {n: p for n, p in now.parts.items() if matches(self.pattern, n)}
        if not parts:
            raise RecipeError(
                f"On: pattern {self.pattern!r} matches none of the pruned tensors: {', '.join(now.parts)}"
            )
        return replace(now, parts=parts, units={n: now.units[n] for n in parts})

    def init(self, now: Now) -> Any:
        return self.rule.init(self._seen(now))

    def penalty(self, now: Now, state: Any) -> Tensor | float:
        return self.rule.penalty(self._seen(now), state)

    def on_grad(self, now: Now, state: Any) -> Mapping[str, Tensor]:
        return self.rule.on_grad(self._seen(now), state)

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        step = self.rule.update(self._seen(now), phase, state)
        return replace(step, units={**now.units, **step.units})


@dataclass(frozen=True)
class During(Rule):
    """A rule that acts only in phases of one name (``"dense"``, ``"soften"``, ``"sparsify"``, ``"sparse"``).

    Outside, units, gradients and the loss pass unchanged. A phase that keeps everything asks no rule for units, so in
    ``"dense"`` only penalties and gradients act.
    """

    phase: Literal["dense", "soften", "sparsify", "sparse"]
    rule: Rule

    def __post_init__(self) -> None:
        if self.phase not in ("dense", "soften", "sparsify", "sparse"):
            raise RecipeError(
                f"During: phase must be 'dense', 'soften', 'sparsify' or 'sparse', got {self.phase!r}; with any other "
                "the rule would never act"
            )
        _refuse_other("During", self.rule)

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.rule.needs

    @property
    def needs_grads(self) -> bool:  # type: ignore[override]
        return self.rule.needs_grads

    def init(self, now: Now) -> Any:
        return self.rule.init(now)

    def penalty(self, now: Now, state: Any) -> Tensor | float:
        return self.rule.penalty(now, state) if now.phase == self.phase else 0.0

    def on_grad(self, now: Now, state: Any) -> Mapping[str, Tensor]:
        return self.rule.on_grad(now, state) if now.phase == self.phase else {}

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        return self.rule.update(now, phase, state) if phase.name == self.phase else Update(now.units, state=state)


def _refuse_other(owner: str, rule: object) -> None:
    if not isinstance(rule, Rule):
        raise RecipeError(f"{owner}: every part must be a rule, got {rule!r}; TopK(Magnitude()) is one")
