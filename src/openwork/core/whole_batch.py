"""Batch normalisation by the statistics of the whole batch, wherever its parts lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openwork.core.distributed import world


@contextmanager
def whole_batch(model: nn.Module) -> Iterator[None]:
    """Inside the block, normalisation by batch statistics takes those of the parts of all ranks together.

    The gradient passes through the statistics, so the mean of the ranks' gradients is that of one process that sees
    the whole batch. All ranks run the model equally often, forward and backward. Running statistics are not updated.
    ``nn.SyncBatchNorm``, which does this by itself, and norms in evaluation mode stay as they are.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    held = [(m, vars(m).get("forward")) for m in norms if world() > 1 and (m.training or m.running_mean is None)]
    try:
        for module, _ in held:
            vars(module)["forward"] = _Norm(module)
        yield
    finally:
        for module, was in held:
            if was is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = was


class _Norm:
    """The forward of one norm; weight and bias are read at every call, since others may stand in for them."""

    def __init__(self, module: _BatchNorm) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        module, dims = self.module, [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = _sum(wide.new_tensor([x.numel() // x.shape[1]]))
        centred = wide - (_sum(wide.sum(dims)) / count).view(shape)
        variance = _sum(centred.square().sum(dims)) / count
        out = centred * (variance + module.eps).rsqrt().view(shape)
        if module.weight is not None:
            out = out * module.weight.view(shape)
        if module.bias is not None:
            out = out + module.bias.view(shape)
        return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the ranks; so is its gradient, since the loss of every rank depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = x.contiguous().clone()
        distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _sum(grads[0])


def _sum(x: Tensor) -> Tensor:
    found: Tensor = _Sum.apply(x)
    return found
