"""Gradients of single inputs for one tensor at a time, on other inputs at every call: what iCBS is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.distributed import rows_of_all
from openwork.core.measuring import Measuring, seeded
from openwork.core.stat import Stat
from openwork.errors import DivergedError, RecipeError
from openwork.stats.gradients import grads_of
from openwork.stats.samples import drawn

AtStep = Callable[[Mapping[str, Tensor], str, int], Tensor]


@dataclass(frozen=True)
class LayerGradients(Stat):
    """The value is a function of (weights, name, step): ``[samples, numel]`` float32 gradients of one tensor.

    Step t sees group ``t % groups`` of the inputs, ``samples`` each, drawn once. Runs in eval mode at exactly the
    weights that are given. Several processes share the inputs of a step.

    Raises:
        DataError: too few inputs, or batches that cannot be cut into single inputs.
        DivergedError: a gradient that is not finite.
    """

    needs_loss: ClassVar[bool] = True
    samples: int = 16
    groups: int = 8

    def __post_init__(self) -> None:
        if self.samples < 1 or self.groups < 1:
            raise RecipeError(
                f"LayerGradients: samples and groups must be at least 1, got {self.samples} and {self.groups}"
            )

    def measure(self, ctx: Measuring) -> AtStep:
        rows = drawn(ctx, self.samples * self.groups, 1, "LayerGradients")
        per = len(rows) // self.groups

        def gradients(weights: Mapping[str, Tensor], name: str, step: int) -> Tensor:
            group = step % self.groups
            leaf = weights[name].detach().clone().requires_grad_()
            tensors = {**weights, name: leaf}
            found = torch.empty(per, leaf.numel(), device=leaf.device)
            with ctx.calling("eval") as call, seeded(ctx.seed), torch.enable_grad():
                for i, row in enumerate(rows[group * per : (group + 1) * per]):
                    loss = loss_on(lambda *a, **k: call(tensors, *a, **k), row, ctx.loss, step=step)
                    found[i] = grads_of(loss, {name: leaf})[0].flatten()
            if not bool(torch.isfinite(found).all()):
                raise DivergedError(f"{name}: a gradient at step {step} is NaN or infinite; check the data")
            return rows_of_all(found)

        return gradients
