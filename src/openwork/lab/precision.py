"""The precision of training and evaluation: float32, or bfloat16 under autocast with images channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


def computing_in(precision: str, forward: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """``forward`` in a precision; weights, gradients and optimiser states stay float32.

    In bfloat16 every product and convolution runs under ``torch.autocast``, and images ``[n, c, h, w]`` are laid out
    channels last, so that all activations are. Losses and accuracies are taken of float32 logits.

    Args:
        precision: ``"float32"``, which returns ``forward`` itself, or ``"bfloat16"``.
        forward: a model or what stands for one; gives logits or an object of transformers that holds them.
    """
    if precision == "float32":
        return forward

    def computed(x: Tensor) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            output = forward(channels_last(x))
        if isinstance(output, Tensor):
            return output.float()
        output.logits = output.logits.float()
        return output

    return computed


def channels_last(x: Tensor) -> Tensor:
    """Images ``[n, c, h, w]`` with strides that say channels last, for one channel too; anything else as it is."""
    if x.dim() != 4 or not x.is_floating_point():
        return x
    n, c, h, w = x.shape
    laid = x.contiguous(memory_format=torch.channels_last)
    return laid.as_strided((n, c, h, w), (h * w * c, 1, w * c, c))  # torch keeps other strides where c or h * w is 1
