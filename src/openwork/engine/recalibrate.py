"""Recompute the running statistics of normalisation layers after pruning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from openwork.core.batches import Feed, device_of, forward
from openwork.errors import RecipeError


@torch.no_grad()
def recalibrate(model: nn.Module, data: Iterable[Any], batches: int = 10) -> int:
    """Reset BatchNorm statistics and average them anew over ``batches`` batches; returns how many layers it touched.

    The cumulative average replaces the single batch of SpODE's code (momentum 0.1 after a reset leaves 90 % of the
    statistics at their reset value). When the data fail, the old statistics come back.
    """
    if batches < 1:
        raise RecipeError(f"recalibrate: batches must be at least 1, got {batches}")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    was = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    old = [(b, b.clone()) for m in norms for b in m.buffers(recurse=False)]
    feed = Feed(data, device_of(model))
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for _ in range(batches):
            forward(model, feed.next(f"{batches} recalibration batches"))
    except BaseException:
        for buffer, value in old:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in was:
            module.training = training
    return len(norms)
