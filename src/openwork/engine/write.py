"""Writing: masks and edits into weights, and zeros into optimiser moments. Nothing else writes into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.errors import DivergedError

Params = Mapping[str, nn.Parameter]


@torch.no_grad()
def write_edits(params: Params, edits: Mapping[str, Tensor]) -> None:
    """New values of whole tensors; refused when they are not finite."""
    for name, value in edits.items():
        if not bool(torch.isfinite(value).all()):
            raise DivergedError(f"{name}: the rule returned NaN or infinite weights; nothing was written for it")
    for name, value in edits.items():
        params[name].copy_(value)


@torch.no_grad()
def write_masks(params: Params, masks: Mapping[str, Tensor]) -> None:
    """Zeros wherever a mask says so, in place; a pruned NaN or -0.0 becomes 0.0 as well."""
    for name, mask in masks.items():
        params[name].masked_fill_(~mask, 0.0)


@torch.no_grad()
def mask_gradients(params: Params, masks: Mapping[str, Tensor]) -> None:
    """Pruned weights get no gradient, so no momentum builds up behind them."""
    for name, mask in masks.items():
        grad = params[name].grad
        if grad is not None:
            grad.mul_(mask)


@torch.no_grad()
def forget(optimizer: Optimizer, param: nn.Parameter, where: Tensor) -> None:
    """Zero the moments of some entries of one parameter, for any optimiser that keeps tensors of its shape."""
    for value in optimizer.state.get(param, {}).values():
        if isinstance(value, Tensor) and value.shape == param.shape:
            value.masked_fill_(where, 0.0)
