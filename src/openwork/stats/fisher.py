"""The diagonal of the empirical Fisher: mean squares of the gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.distributed import averaged
from openwork.core.measuring import Measuring, seeded, weights_of
from openwork.core.stat import Stat
from openwork.stats.gradients import grads_of, masked
from openwork.stats.samples import check_samples, drawn


@dataclass(frozen=True)
class FisherDiagonal(Stat):
    """``E[(dL/dw)^2]`` per entry over ``samples`` gradients of ``batch`` inputs each; a function of the masks.

    Memory is one copy of the weights, whatever the number of samples. Runs in eval mode. Several processes average.

    Raises:
        DataError: too few inputs, or batches that cannot be cut into single inputs.
        RecipeError: less than one sample or input.
    """

    needs_loss: ClassVar[bool] = True
    samples: int = 128
    batch: int = 1

    def __post_init__(self) -> None:
        check_samples("FisherDiagonal", self.samples, self.batch)

    def measure(self, ctx: Measuring) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        rows = drawn(ctx, self.samples, self.batch, "FisherDiagonal")

        def squares(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            leaves = masked(weights_of(ctx), masks)
            total = {n: torch.zeros_like(w) for n, w in leaves.items()}
            with ctx.calling("eval") as call, seeded(ctx.seed):
                for i, row in enumerate(rows):
                    loss = loss_on(lambda *a, **k: call(leaves, *a, **k), row, ctx.loss, step=i)
                    for n, g in zip(leaves, grads_of(loss, leaves), strict=True):
                        total[n] += g.square() / len(rows)
            averaged(total.values())
            return total

        return squares
