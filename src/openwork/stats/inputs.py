"""Sums of squared layer inputs, shaped like the weight they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import forward
from openwork.core.distributed import summed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.protocols import Stat
from openwork.core.targets import is_transposed_linear
from openwork.errors import MissingStatistic, RecipeError


@dataclass(frozen=True)
class InputSquares(Stat):
    """For every weight, the sum over samples and positions of the squared input that it multiplies.

    The value maps parameter names to float32 tensors of the weight's shape (constant along the outputs; do not write
    into them), counted over ``batches`` batches in eval mode. Only linear layers, Conv1D and convolutions are known;
    others are refused.
    """

    batches: int = 8

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise RecipeError(f"InputSquares: batches must be at least 1, got {self.batches}")

    def measure(self, ctx: Measuring) -> dict[str, Tensor]:
        members = set(ctx.members)
        total: dict[str, Tensor] = {}
        handles = []
        for prefix, module in ctx.model.named_modules():
            name = f"{prefix}.weight" if prefix else "weight"
            if name in members:
                handles.append(module.register_forward_pre_hook(_watch(name, total), with_kwargs=True))
        try:
            with torch.no_grad(), ctx.calling("eval") as call:
                for _ in range(self.batches):
                    batch = ctx.feed.next(f"{self.batches} calibration batches")
                    forward(lambda *a, **k: call({}, *a, **k), batch)
        finally:
            for handle in handles:
                handle.remove()
        missing = members - set(total)
        if missing:
            raise MissingStatistic(
                f"{sorted(missing)[0]}: its inputs were never seen ({len(missing)} tensors); it is not the weight of a "
                "layer that the forward pass calls, leave it out with Select(exclude=...)"
            )
        summed(total[n] for n in sorted(total))
        return {n: total[n].expand(w.shape) for n, w in weights_of(ctx).items()}


def _watch(name: str, total: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        squares = _squares(module, (*args, *kwargs.values())[0].detach())
        total[name] = total[name] + squares if name in total else squares

    return hook


def _squares(module: nn.Module, x: Tensor) -> Tensor:
    """The sums, in a shape that broadcasts to the weight's."""
    squared = x.float().square()
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # the gradient of a convolution with respect to its kernel, for an output gradient of ones, is this sum
        leaf = torch.zeros_like(module.weight, dtype=torch.float32, requires_grad=True)
        with torch.enable_grad():
            out = module._conv_forward(squared, leaf, None)
            (grad,) = torch.autograd.grad(out.sum(), leaf)
        return grad
    if isinstance(module, nn.Linear):  # (out, in)
        return squared.reshape(-1, x.shape[-1]).sum(0)[None, :]
    if is_transposed_linear(module):  # (in, out)
        return squared.reshape(-1, x.shape[-1]).sum(0)[:, None]
    raise MissingStatistic(f"{type(module).__name__}: input norms are known for linear and convolution layers only")
