"""The same products in plain torch: what runs without a GPU, and what kernels are compared with.

Memory grows with blocks times tokens; clear rather than fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.gpu.activations import activate


def product(
    x: Tensor,
    values: Tensor,
    tables: Sequence[Tensor],
    rows: int,
    cols: int,
    turned: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """``x @ W.T`` (or ``x @ W``, turned) with its epilogue, and the sum before the activation.

    Half-precision sums are carried in fp32, as the kernels do.
    """
    columns, lines = tables[0].long(), tables[1].long()
    sources, targets = (lines, columns) if turned else (columns, lines)
    blocks = _wide(values if turned else values.transpose(1, 2))  # [n, inner, outer]
    size = cols if turned else rows
    parts = _strips(_wide(x), blocks.shape[1], rows if turned else cols)  # [strips, T, inner]
    z = parts.new_zeros(-(-size // blocks.shape[2]), x.shape[0], blocks.shape[2])
    z = z.index_add(0, targets, torch.bmm(parts[sources], blocks))
    z = z.permute(1, 0, 2).reshape(x.shape[0], z.shape[0] * z.shape[2])[:, :size]
    z = z if bias is None else z + bias
    y = activate(activation, z)
    y = y if residual is None else y + residual
    return y.to(x.dtype).contiguous(), z.to(x.dtype).contiguous()


def outer(grad: Tensor, x: Tensor, tables: Sequence[Tensor], rows: int, cols: int, height: int, width: int) -> Tensor:
    """``grad.T @ x`` at the kept blocks only, ``[n, height, width]``."""
    left = _strips(_wide(grad), height, rows)[tables[1].long()]
    right = _strips(_wide(x), width, cols)[tables[0].long()]
    return torch.bmm(left.transpose(1, 2), right).to(x.dtype).contiguous()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _strips(x: Tensor, side: int, size: int) -> Tensor:
    """``[T, size]`` to ``[ceil(size / side), T, side]``."""
    count = -(-size // side)
    return F.pad(x, (0, count * side - size)).reshape(x.shape[0], count, side).transpose(0, 1)
