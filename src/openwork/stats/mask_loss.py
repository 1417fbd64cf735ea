"""Loss and mask gradient at any soft mask, on the next batch at each call: what path methods integrate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.measuring import Measuring, Mode, seeded, weights_of
from openwork.core.protocols import Stat
from openwork.stats.gradients import grads_of

Energy = Callable[[Mapping[str, Tensor], int], tuple[float, dict[str, Tensor]]]


@dataclass(frozen=True)
class MaskLoss(Stat):
    """``E(b) = loss(b * w)`` and ``dE/db`` for tensor-shaped soft masks ``b``; one fresh batch a call.

    The value is a function ``(masks, step) -> (energy, {name: dE/db})``. Weights stay frozen, running statistics are
    not touched. In ``train`` mode normalisation layers use batch statistics, as in the paper's code.
    """

    needs_loss: ClassVar[bool] = True
    mode: Mode = "train"

    def measure(self, ctx: Measuring) -> Energy:
        def energy(masks: Mapping[str, Tensor], step: int) -> tuple[float, dict[str, Tensor]]:
            with seeded(ctx.seed + step):  # a loader that shuffles draws its order from the recipe's seed
                batch = ctx.feed.next(f"step {step} of the path")
            weights = weights_of(ctx)
            # dE/db = w * dE/d(w b): one gradient with respect to the product serves both
            leaves = {n: (weights[n] * masks[n]).requires_grad_() for n in masks}
            with ctx.calling(self.mode) as call, seeded(ctx.seed + step):
                loss = loss_on(lambda *a, **k: call(leaves, *a, **k), batch, ctx.loss, step=step)
                slopes = {n: weights[n] * g for n, g in zip(leaves, grads_of(loss, leaves), strict=True)}
            return float(loss.detach()), slopes

        return energy
