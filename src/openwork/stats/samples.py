"""Gradients of single samples or small batches, one row each: what an empirical Fisher is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.distributed import rows_of_all, world
from openwork.core.machine import free_memory
from openwork.core.measuring import Measuring, seeded, weights_of
from openwork.core.stat import Stat
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
        RecipeError: less than one sample or input; gradients that do not fit into the memory that is free.
    """

    needs_loss: ClassVar[bool] = True
    samples: int = 400
    batch: int = 1

    def __post_init__(self) -> None:
        check_samples("SampleGradients", self.samples, self.batch)

    def measure(self, ctx: Measuring) -> Samples:
        refuse_too_large("SampleGradients", self.samples, weights_of(ctx))
        rows = drawn(ctx, self.samples, self.batch, "SampleGradients")

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


def refuse_too_large(
    owner: str, samples: int, weights: Mapping[str, Tensor], beside: str = "", more: int = 0, advice: str = ""
) -> None:
    """Say before the work that a gradient for each sample, and ``more`` bytes for what is ``beside``, do not fit."""
    numel, device = sum(w.numel() for w in weights.values()), next(iter(weights.values())).device
    needed = 4 * samples * numel + more
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if needed > free:
        raise RecipeError(
            f"{owner}: {samples} gradients of {numel:,} weights{beside} take {needed / 2**30:.1f} GiB, of which "
            f"{free / 2**30:.1f} are free; take fewer samples{advice}, or fewer tensors at a time with where"
        )


def check_samples(owner: str, samples: int, batch: int) -> None:
    """Refuse less than one sample or input."""
    if samples < 1 or batch < 1:
        raise RecipeError(f"{owner}: samples and batch must be at least 1, got {samples} and {batch}")


def drawn(ctx: Measuring, samples: int, batch: int, owner: str) -> list[Any]:
    """This rank's share of so many rows of ``batch`` inputs each, cut from the batches of the data in order.

    Raises:
        DataError: batches that are no tuples or mappings of tensors, or smaller than a row.
    """
    what = f"{samples} gradients of {batch} inputs each"
    rows: list[Any] = []
    wanted = -(-samples // world())
    while len(rows) < wanted:
        found = ctx.feed.next(what)
        tensors = list(found.values()) if isinstance(found, Mapping) else found
        if not isinstance(tensors, tuple | list) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
            raise DataError(f"{owner} cuts batches into rows, so they must be tuples or mappings of tensors; {what}")
        if len(tensors[0]) < batch:
            raise DataError(f"{owner}: batches must hold at least {batch} inputs, got {len(tensors[0])}")
        for at in range(0, len(tensors[0]) - batch + 1, batch):
            cut = [t[at : at + batch] for t in tensors]
            rows.append(dict(zip(found, cut, strict=True)) if isinstance(found, Mapping) else tuple(cut))
    return rows[:wanted]
