"""Scores from gradients: SNIP's saliency, Taylor, GraSP, synaptic flow, the gradient of the current step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.shards import on_any
from openwork.core.stat import Stat
from openwork.errors import DivergedError
from openwork.stats import GradientFlow, LossGradient, SynapticFlow, UnitImportance
from openwork.stats.taylor import key


@dataclass(frozen=True)
class Saliency:
    """``|sum over the unit of w dL/dw|``: SNIP's connection sensitivity."""

    sharded: ClassVar[bool] = True
    gradient: LossGradient = field(default_factory=LossGradient)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.gradient})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        grads = now.at_masks(self.gradient)
        for m in part.members:
            _refuse_dead(m, grads[m], part)
        return part.pool({m: now.weights[m] * grads[m] for m in part.members}).abs()


@dataclass(frozen=True)
class Taylor:
    """``sum over batches of (sum over the unit of w dL/dw)^2``: what removing the unit costs, to first order.

    The slices of a coupled unit are summed before the square, so ``Grouped`` asks for the whole unit.
    """

    whole: ClassVar[bool] = True
    sharded: ClassVar[bool] = True
    importance: UnitImportance = field(default_factory=UnitImportance)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.importance})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        score: Tensor = now.at_masks(self.importance)[key(part)]
        _refuse_dead(part.members[0], score, part)
        return score


def _refuse_dead(name: str, values: Tensor, part: Partition) -> None:
    if not on_any(part, bool(values.any())):
        raise DivergedError(
            f"{name}: no gradient reaches it, so its connections cannot be scored; check for dead layers "
            "and zero weights"
        )


@dataclass(frozen=True)
class Grasp:
    """``w (H g)`` with its sign: what pruning costs in gradient flow (the paper prunes the largest ``-w H g``)."""

    flow: GradientFlow = field(default_factory=GradientFlow)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.flow})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        _, hg = now.at_masks(self.flow)
        return part.pool({m: now.weights[m] * hg[m] for m in part.members})


@dataclass(frozen=True)
class Flow:
    """``|w| dR/d|w|``, SynFlow's score; needs no data."""

    flow: SynapticFlow = field(default_factory=SynapticFlow)

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.flow})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        grads = now.at_masks(self.flow)
        masks = now.masks
        return part.pool({m: now.weights[m].double().abs() * masks[m] * grads[m] for m in part.members})


@dataclass(frozen=True)
class StepGradient:
    """``|dL/dw|`` of the current training step, dense: where RigL grows. Needs ``ow.attach``."""

    needs_grads: ClassVar[bool] = True
    sharded: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        return part.pool({m: now.grad(m) for m in part.members}, "norm")
