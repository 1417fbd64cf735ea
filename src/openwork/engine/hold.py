"""Keep fixed masks through any training loop: two hooks on the optimiser, nothing in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from openwork.core.shards import piece_like, reshard
from openwork.engine.write import inverted, zero_gradients, zero_weights
from openwork.errors import OpenworkError


@contextmanager
def hold(model: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> Iterator[None]:
    """Inside the block pruned weights stay zero after every optimiser step, whatever momentum or decay wants.

    Args:
        model: the pruned model.
        masks: ``result.masks``; whole masks serve a sharded model too.
        optimizer: the optimiser to watch; None watches every optimiser that steps inside the block.

    Raises:
        OpenworkError: a mask that is not bool, whose parameter the model does not have, or of another shape.
    """
    reshard(model)
    params = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in params:
            raise OpenworkError(f"{name}: the masks name it but {type(model).__name__} has no such parameter")
        if mask.dtype != torch.bool:
            raise OpenworkError(f"{name}: a mask must be bool, got {mask.dtype}")
        if params[name].shape != mask.shape:
            raise OpenworkError(
                f"{name}: the mask has shape {tuple(mask.shape)}, the parameter {tuple(params[name].shape)}"
            )
    pruned = inverted({n: piece_like(params[n], m).to(params[n].device) for n, m in masks.items()})

    def before(*_: object) -> None:
        zero_gradients(params, pruned)

    def after(*_: object) -> None:
        zero_weights(params, pruned)

    zero_weights(params, pruned)
    if optimizer is None:
        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    else:
        handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
