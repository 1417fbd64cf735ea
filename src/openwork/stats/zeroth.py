"""Gradient norms from forward passes only: a layer is moved to and fro along noise, and the loss is watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from openwork.core.batches import loss_on
from openwork.core.distributed import averaged
from openwork.core.measuring import Measuring, weights_of
from openwork.core.stat import Stat
from openwork.errors import RecipeError


@dataclass(frozen=True)
class ZerothNorms(Stat):
    """Partition -> sum over batches of |L(W + eps z) - L(W - eps z)| / (2 eps) with z ~ N(0, I): its gradient norm.

    E|g^T z| = sqrt(2 / pi) ||g||, so sums compare as norms do. One noise per batch and partition (a tensor, or all
    slices of a group of coupled units), in eval mode and without gradients: the memory of inference and 2 forward
    passes per partition and batch. The model is called with moved copies, so its weights are never written.
    """

    batches: int | None = 8
    eps: float = 1e-3
    needs_loss: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batches is not None and self.batches < 1:
            raise RecipeError(f"ZerothNorms: batches must be at least 1, got {self.batches}")
        if not self.eps > 0:
            raise RecipeError(f"ZerothNorms: eps must be positive, got {self.eps}")

    def measure(self, ctx: Measuring) -> dict[str, float]:
        weights = weights_of(ctx)
        rng = torch.Generator().manual_seed(ctx.seed)
        slopes: list[list[float]] = []
        with torch.no_grad(), ctx.calling("eval") as call:
            for step, batch in enumerate(ctx.feed.sweep(self.batches, "zeroth-order norms")):
                slopes.append([])
                for part in ctx.parts.values():
                    noise = {}
                    for name, outside in part.spread(torch.zeros(part.n_units)).items():
                        drawn = torch.randn(outside.shape, generator=rng) * (outside == 0)
                        noise[name] = drawn.to(weights[name].device) * self.eps
                    ends = []
                    for sign in (1, -1):
                        moved = {n: (weights[n].float() + sign * z).to(weights[n].dtype) for n, z in noise.items()}
                        at = lambda *a, _m=moved, **k: call(_m, *a, **k)  # noqa: E731
                        ends.append(float(loss_on(at, batch, ctx.loss, step).double()))
                    slopes[-1].append((ends[0] - ends[1]) / (2 * self.eps))
        found = torch.tensor(slopes, dtype=torch.float64)
        averaged([found])  # of the whole batch, before its sign goes
        return dict(zip(ctx.parts, found.abs().sum(0).tolist(), strict=True))
