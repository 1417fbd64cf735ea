"""Tokens and pixels rounded to int8, as the kernels of ``int8`` arithmetic do it."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 127


def round_tokens(x: Tensor) -> Tensor:
    """Every token in steps of its largest magnitude / 127, float32.

    Args:
        x: floating point ``(..., in)``. A token with an infinite number or a NaN becomes NaN.
    """
    top = x.float().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1).float()
    any_ = (top > 0) & top.isfinite()
    factor = torch.where(any_, top.new_tensor(STEPS) / top, 0.0).clamp(max=torch.finfo(torch.float32).max)
    steps = torch.where(any_, (x.float() * factor).round(), 0.0)
    return steps * (top / STEPS)


def round_pixels(x: Tensor) -> Tensor:
    """Every pixel in steps of its largest magnitude / 127, float32, in the same order in memory.

    Args:
        x: floating point images ``(batch, channels, height, width)``.
    """
    return torch.empty_like(x, dtype=torch.float32).copy_(round_tokens(x.movedim(1, -1)).movedim(-1, 1))
