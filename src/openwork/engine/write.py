"""Writing: masks and edits into weights, and zeros into optimiser moments. Nothing else writes into a model.

Of a sharded parameter every rank writes its own piece; masks and values are then those of the piece.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.core.shards import local
from openwork.errors import DivergedError

Params = Mapping[str, nn.Parameter]


@torch.no_grad()
def write_edits(params: Params, edits: Mapping[str, Tensor]) -> None:
    """New values of whole tensors; refused when they are not finite."""
    for name, value in edits.items():
        if not bool(torch.isfinite(value).all()):
            raise DivergedError(f"{name}: the rule returned NaN or infinite weights; nothing was written for it")
    for name, value in edits.items():
        local(params[name]).copy_(value)


def inverted(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """True = pruned, for tensors where something is. Made once per change of masks, since every step reads it twice."""
    pieces = {name: local(mask) for name, mask in masks.items()}
    return {name: (~mask).contiguous() for name, mask in pieces.items() if not bool(mask.all())}


def write_masks(params: Params, masks: Mapping[str, Tensor]) -> None:
    """Zeros wherever a mask says so, in place."""
    zero_weights(params, inverted(masks))


@torch.no_grad()
def zero_weights(params: Params, pruned: Mapping[str, Tensor]) -> None:
    """Zeros in place; filled, not multiplied, so that a pruned NaN or -0.0 becomes 0.0 as well."""
    for name, where in pruned.items():
        local(params[name]).masked_fill_(where, 0.0)


@torch.no_grad()
def zero_gradients(params: Params, pruned: Mapping[str, Tensor]) -> None:
    """Pruned weights get no gradient (not even an infinite one), so no momentum builds up behind them."""
    for name, where in pruned.items():
        grad = params[name].grad
        if grad is not None:
            local(grad).masked_fill_(where, 0.0)


@torch.no_grad()
def forget(optimizer: Optimizer, param: nn.Parameter, where: Tensor) -> None:
    """Zero the moments of some entries of one parameter, for any optimiser that keeps tensors of its shape."""
    for value in optimizer.state.get(param, {}).values():
        if isinstance(value, Tensor) and value.shape == param.shape:
            local(value).masked_fill_(where, 0.0)


@torch.no_grad()
def write_values(params: Params, values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Put values back wherever a mask prunes; kept entries stay as they are."""
    for name, mask in masks.items():
        weight = local(params[name])
        weight.copy_(torch.where(mask, weight, values[name]))
