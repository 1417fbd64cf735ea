"""Losses and gradients where weights are sharded: the model's own forward and backward, and all put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from openwork.core.batches import loss_on
from openwork.core.measuring import Measuring, Mode, seeded, weights_of
from openwork.core.shards import local, reshard
from openwork.errors import DataError


@contextmanager
def at_masks(ctx: Measuring, masks: Mapping[str, Tensor], mode: Mode) -> Iterator[None]:
    """Inside the block the model itself computes with masked weights.

    Functional calls would go around FSDP's hooks, so the masks are written into the weights for the time of the
    measurement; weights, buffers, gradients and the train/eval mode are as before when it ends, also by an error.
    """
    params = dict(ctx.model.named_parameters())
    pieces = weights_of(ctx)
    weights = {n: pieces[n].clone() for n in ctx.members if n in masks}
    grads = {n: p.grad for n, p in params.items()}
    buffers = [(b, b.detach().clone()) for b in ctx.model.buffers()]
    try:
        for name in weights:
            pieces[name].masked_fill_(~masks[name], 0)
        with ctx.calling(mode), seeded(ctx.seed):
            yield
    finally:
        reshard(ctx.model)
        for name, weight in weights.items():
            pieces[name].copy_(weight)
        for name, param in params.items():
            param.grad = grads[name]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def each_sharded_gradient(
    ctx: Measuring,
    masks: Mapping[str, Tensor],
    seen: Sequence[Any],
    mode: Mode,
    see: Callable[[dict[str, Tensor], dict[str, Tensor]], None],
) -> None:
    """As ``each_gradient``, for this rank's pieces; FSDP averages over the ranks."""
    params = dict(ctx.model.named_parameters())
    with at_masks(ctx, masks, mode):
        weights = weights_of(ctx)
        for i, batch in enumerate(seen):
            for param in params.values():
                param.grad = None
            loss = loss_on(ctx.model, batch, ctx.loss, step=i)
            if not loss.requires_grad:
                raise DataError("the loss does not depend on the weights: it is detached")
            loss.backward()
            found = {n: params[n].grad for n in weights}
            see(weights, {n: torch.zeros_like(w) if (g := found[n]) is None else local(g) for n, w in weights.items()})
