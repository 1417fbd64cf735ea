"""The gradient of the loss where weights are sharded: the model's own forward and backward, and all put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.measuring import Measuring, Mode, seeded
from openwork.core.shards import local
from openwork.errors import DataError


def sharded_gradient(
    ctx: Measuring, seen: Sequence[Any], mode: Mode, absolute: bool
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A function masks -> ``dL/dw`` of every member, this rank's piece, averaged over the ranks by FSDP.

    Functional calls would go around FSDP's hooks, so the masks are written into the weights for the time of the
    measurement; weights, buffers, gradients and the train/eval mode are as before when it ends, also by an error.
    """

    def gradient(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        params = dict(ctx.model.named_parameters())
        pieces = {n: local(params[n]) for n in ctx.members}
        weights = {n: pieces[n].clone() for n in ctx.members if n in masks}
        grads = {n: p.grad for n, p in params.items()}
        buffers = [(b, b.detach().clone()) for b in ctx.model.buffers()]
        total = {n: torch.zeros_like(piece) for n, piece in pieces.items()}
        try:
            for name in weights:
                pieces[name].masked_fill_(~masks[name], 0)
            with ctx.calling(mode), seeded(ctx.seed):
                for i, batch in enumerate(seen):
                    for param in params.values():
                        param.grad = None
                    loss = loss_on(ctx.model, batch, ctx.loss, step=i)
                    if not loss.requires_grad:
                        raise DataError("the loss does not depend on the weights: it is detached")
                    loss.backward()
                    for name, piece in total.items():
                        grad = params[name].grad
                        if grad is not None:
                            piece += local(grad).abs() if absolute else local(grad)
        finally:
            for name, weight in weights.items():
                pieces[name].copy_(weight)
            for name, param in params.items():
                param.grad = grads[name]
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
        return total

    return gradient
