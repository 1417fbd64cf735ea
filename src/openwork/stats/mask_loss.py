"""Loss and mask gradient at any soft mask, on the next batch at each call: what path methods integrate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from openwork.core.batches import device_of, loss_on
from openwork.core.distributed import averaged, mean_of
from openwork.core.measuring import Measuring, Mode, seeded, weights_of
from openwork.core.stat import Stat
from openwork.errors import DivergedError, RecipeError
from openwork.stats.gradients import grads_of
from openwork.stats.sharded_gradients import at_masks

Energy = Callable[..., tuple[float, dict[str, Tensor]]]
"""``(masks, step, again=False)``; ``again`` evaluates on the batches of the call before instead of fresh ones."""


@dataclass(frozen=True)
class MaskLoss(Stat):
    """``E(b) = loss(b * w)`` and ``dE/db`` for tensor-shaped soft masks ``b``; the mean over ``batches`` fresh ones.

    The value is a function ``(masks, step) -> (energy, {name: dE/db})``. Weights stay frozen, running statistics are
    not touched. In ``train`` mode normalisation layers use batch statistics, as in the paper's code.
    """

    needs_loss: ClassVar[bool] = True
    mode: Mode = "train"
    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise RecipeError(f"MaskLoss: batches must be at least 1, got {self.batches}")

    def measure(self, ctx: Measuring) -> Energy:
        seen: list[Any] = []

        def energy(masks: Mapping[str, Tensor], step: int, again: bool = False) -> tuple[float, dict[str, Tensor]]:
            if not again:
                with seeded(ctx.seed + step):  # a loader that shuffles draws its order from the recipe's seed
                    seen[:] = [ctx.feed.next(f"step {step} of the path") for _ in range(self.batches)]
            weights = weights_of(ctx)
            # dE/db = w * dE/d(w b): one gradient with respect to the product serves both
            leaves = {n: (weights[n] * masks[n]).requires_grad_() for n in masks}
            with ctx.calling(self.mode) as call, seeded(ctx.seed + step):
                total, slopes = 0.0, dict[str, Tensor]()
                for batch in seen:
                    loss = loss_on(lambda *a, **k: call(leaves, *a, **k), batch, ctx.loss, step=step) / len(seen)
                    for n, g in zip(leaves, grads_of(loss, leaves), strict=True):
                        slopes[n] = slopes[n].add_(g) if n in slopes else g
                    total += float(loss.detach())
            averaged(slopes.values())
            return mean_of(total, device_of(ctx.model)), {n: weights[n] * g for n, g in slopes.items()}

        return energy


@dataclass(frozen=True)
class LossAtMasks(Stat):
    """The mean loss over ``batches`` batches, drawn once, as a function of masks; infinite where it diverges.

    ``train`` mode normalises by the statistics of each batch, which is what an untrained network needs; running
    statistics are not touched.
    """

    needs_loss: ClassVar[bool] = True
    sharded: ClassVar[bool] = True
    mode: Mode = "train"
    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise RecipeError(f"LossAtMasks: batches must be at least 1, got {self.batches}")

    def measure(self, ctx: Measuring) -> Callable[[Mapping[str, Tensor]], float]:
        seen = [ctx.feed.next(f"{self.batches} scoring batches") for _ in range(self.batches)]

        def loss(masks: Mapping[str, Tensor]) -> float:
            def mean(call: Callable[..., Any]) -> float:
                total = 0.0
                for i, batch in enumerate(seen):  # all of them, since other ranks may wait for this one
                    try:
                        total += float(loss_on(call, batch, ctx.loss, step=i))
                    except DivergedError:  # noqa: PERF203
                        total = math.inf
                return mean_of(total / len(seen), device_of(ctx.model))

            if ctx.sharded:
                with torch.no_grad(), at_masks(ctx, masks, self.mode):
                    return mean(ctx.model)
            weights = weights_of(ctx)
            leaves = {n: weights[n] * masks[n] for n in masks}
            with torch.no_grad(), ctx.calling(self.mode) as call, seeded(ctx.seed):
                return mean(lambda *a, **k: call(leaves, *a, **k))

        return loss
