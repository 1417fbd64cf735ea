"""Scores from gradients: SNIP and Taylor saliency, GraSP, synaptic flow, the gradient of the current step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from openwork.core.now import Now
from openwork.core.protocols import Partition, Stat
from openwork.errors import DivergedError
from openwork.stats import GradientFlow, LossGradient, SynapticFlow


@dataclass(frozen=True)
class Saliency:
    """``|sum over the unit of w dL/dw|``: SNIP's connection sensitivity, which is also first-order Taylor.

    ``squared=True`` gives Taylor's ``(w g)^2``; the ranking of single weights is the same.
    """

    gradient: LossGradient = field(default_factory=LossGradient)
    squared: bool = False

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset({self.gradient})

    def __call__(self, part: Partition, now: Now) -> Tensor:
        grads = now.at_masks(self.gradient)
        for m in part.members:
            if not bool(grads[m].any()):
                raise DivergedError(
                    f"{m}: no gradient reaches it, so its connections cannot be scored; check for dead layers "
                    "and zero weights"
                )
        score = part.pool({m: now.weights[m] * grads[m] for m in part.members})
        return score.square() if self.squared else score.abs()


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

    @property
    def needs(self) -> frozenset[Stat]:
        return frozenset()

    def __call__(self, part: Partition, now: Now) -> Tensor:
        return part.pool({m: now.grad(m) for m in part.members}, "norm")
