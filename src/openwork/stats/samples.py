"""Gradients of single samples or small batches, one row each: what an empirical Fisher is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.distributed import rows_of_all, world
from openwork.core.measuring import Measuring, seeded
from openwork.core.protocols import Stat
from openwork.errors import DataError, DivergedError, RecipeError
from openwork.stats.gradients import grads_of, masked

Samples = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class SampleGradients(Stat):
    """``[samples, numel]`` float32 gradients per tensor, of the mean loss over ``batch`` inputs each.

    The value is a function of (weights, masks); the inputs are drawn once. Runs in eval mode, so BatchNorm uses its
    running statistics and every row depends on its own inputs only. Several processes share the work.

    Raises:
        DataError: too few inputs, or batches that cannot be cut into single inputs.
        DivergedError: a gradient that is not finite, with the number of the row.
    """

    needs_loss: ClassVar[bool] = True
    samples: int = 400
    batch: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise RecipeError(
                f"SampleGradients: samples and batch must be at least 1, got {self.samples} and {self.batch}"
            )

    def measure(self, ctx: Measuring) -> Samples:
        rows = self._draw(ctx)

        def gradients(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
            leaves = masked({n: weights[n] for n in ctx.members}, masks)
            found = {n: torch.empty(len(rows), w.numel(), device=w.device) for n, w in leaves.items()}
            with ctx.calling("eval") as call, seeded(ctx.seed):
                for i, row in enumerate(rows):
                    loss = loss_on(lambda *a, **k: call(leaves, *a, **k), row, ctx.loss, step=i)
                    for n, g in zip(leaves, grads_of(loss, leaves), strict=True):
                        found[n][i] = g.flatten()
                        if not bool(torch.isfinite(found[n][i]).all()):
                            raise DivergedError(f"{n}: the gradient of sample {i} is NaN or infinite; check the data")
            found = {n: rows_of_all(g) for n, g in found.items()}
            return {n: g.mul_(masks[n].flatten()) if n in masks else g for n, g in found.items()}

        return gradients

    def _draw(self, ctx: Measuring) -> list[tuple[Tensor, ...]]:
        what = f"{self.samples} gradients of {self.batch} inputs each"
        rows: list[tuple[Tensor, ...]] = []
        wanted = -(-self.samples // world())
        while len(rows) < wanted:
            batch = ctx.feed.next(what)
            if not isinstance(batch, tuple | list) or not all(isinstance(t, Tensor) for t in batch):
                raise DataError(f"SampleGradients cuts batches into rows, so they must be tuples of tensors; {what}")
            if len(batch[0]) < self.batch:
                raise DataError(f"SampleGradients: batches must hold at least {self.batch} inputs, got {len(batch[0])}")
            starts = range(0, len(batch[0]) - self.batch + 1, self.batch)
            rows.extend(tuple(t[at : at + self.batch] for t in batch) for at in starts)
        return rows[:wanted]
