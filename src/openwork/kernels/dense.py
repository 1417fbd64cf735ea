"""Layouts turned back into matrices: the Python path, and what tests compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork.formats.bits import unpack_rows
from openwork.kernels.layout import AFTER


def dense_of(kind: str, tensors: Sequence[Tensor], sizes: Sequence[int], cols: int) -> Tensor:
    """The matrix ``(outputs, cols)`` of a layout, float32."""
    return {"block": _of_blocks, "column": _of_columns, "bits": _of_bits, "int8": _of_int8}[kind](tensors, sizes, cols)


def _of_blocks(tensors: Sequence[Tensor], sizes: Sequence[int], cols: int) -> Tensor:
    values, inputs, starts = tensors[:3]
    height, depth, outputs, _ = sizes
    strips = len(starts) - 1
    if values.dim() == 4:  # pairs of inputs
        values = values.transpose(2, 3).flatten(1, 2)
    blocks = values.float()
    if values.dtype == torch.int8:
        blocks = blocks * tensors[3][:, None, None]
    matrix = blocks.new_zeros(strips * height, -(-cols // depth) * depth)
    strip = torch.repeat_interleave(torch.arange(strips), starts.diff())
    rows = (strip[:, None] * height + torch.arange(height))[:, None]
    matrix[rows, (inputs.long()[:, None] + torch.arange(depth))[:, :, None]] = blocks
    return matrix[:outputs, :cols]


def _of_int8(tensors: Sequence[Tensor], sizes: Sequence[int], cols: int) -> Tensor:
    values, inputs, starts, _, scales = tensors
    whole = _of_blocks((values.transpose(2, 3).flatten(1, 2).float(), inputs, starts), sizes, cols)
    return whole * scales[: len(whole), None]


def _of_columns(tensors: Sequence[Tensor], sizes: Sequence[int], cols: int) -> Tensor:
    values, inputs, starts, order = tensors[:4]
    chunk, height, outputs, *_ = sizes
    groups = max(1, -(-outputs // height))
    slot = torch.repeat_interleave(torch.arange(len(order)), starts.diff())
    columns = inputs.long() + slot // groups * chunk
    matrix = torch.zeros(groups * height, cols, dtype=torch.float32, device="cpu")
    matrix[order.long()[slot][:, None] * height + torch.arange(height), columns[:, None]] = values.float()
    if values.dtype == torch.int8:
        matrix *= tensors[4][: len(matrix), None]
    return matrix[:outputs]


def _of_bits(tensors: Sequence[Tensor], sizes: Sequence[int], cols: int) -> Tensor:
    values, bits = tensors[:2]
    matrix = torch.zeros(sizes[2], cols, dtype=torch.float32, device="cpu")
    matrix[unpack_rows(bits)[:, :cols]] = values[:-AFTER].float()
    return matrix * tensors[3][:, None] if values.dtype == torch.int8 else matrix
