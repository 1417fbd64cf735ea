"""Sparse weights in the order in which kernels read them, made from any format; never written to disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.formats.bits import pack_rows
from openwork.kernels.native import reach_of, strip_of, visit_of

AFTER = 16  # numbers behind the last value of bits, which is read as part of a vector
LONGEST = 1 << 16  # inputs whose products of bytes a whole number of 32 bits holds
PART = 256  # outputs whose sums a column kernel keeps in the cache


@dataclass(frozen=True)
class Columns:
    """A sparse matrix as columns of ``height`` outputs: ``values[i]`` belongs to ``groups[i]`` and ``inputs[i]``.

    ``scales`` (one for each output) multiply int8 values.
    """

    rows: int
    cols: int
    groups: Tensor
    inputs: Tensor
    values: Tensor
    scales: Tensor | None = None

    @property
    def height(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True)
class Layout:
    """Tensors and numbers for a kernel, as the operators take them.

    ``block``: tensors ``values (blocks, depth, height)``, ``inputs``, ``starts``; sizes height, depth, outputs, inputs.
    bfloat16 of an even depth goes in pairs, ``(blocks, depth / 2, height, 2)``, as processors multiply it.
    ``bits``, for few tokens: tensors ``values (stored + AFTER,)``, ``bits``, ``starts``; sizes 1, 1, outputs, inputs.
    ``int8``, for tokens that are rounded to int8: tensors ``values (blocks, depth / 4, height, 4)``, ``inputs``,
    ``starts``, ``sums`` (of an output's weights, times 128), ``scales`` of the outputs; sizes as of ``block``.
    ``column``: tensors ``values (columns, height)``, ``inputs``, ``starts``, ``order``; sizes chunk, height, outputs,
    part, inputs. Scales of int8 values come last. What they mean stands in ``native/src/kernels.hpp``.
    """

    kind: Literal["block", "column", "bits", "int8"]
    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


def block_layout(
    values: Tensor, columns: Tensor, row_starts: Tensor, rows: int, cols: int, *, run: int, scales: Tensor | None = None
) -> Layout | None:
    """Blocks ``(n, height, width)`` cut into the strips of the block kernel; None when their height has none.

    Args:
        values: blocks sorted by block row, then block column; float32, bfloat16 or int8.
        columns: block column of each block, ``(n,)``.
        row_starts: first block of each block row, and the number of blocks.
        rows: outputs of the matrix.
        cols: inputs of the matrix.
        run: inputs that lie side by side in memory: all of a linear layer, the channels of a convolution.
        scales: one for each block, int8 only.
    """
    n, height, width = values.shape
    strip = strip_of(height)
    if strip == 0:
        return None
    depth = width if run == cols else math.gcd(width, run)
    tall, wide = height // strip, width // depth
    row = torch.repeat_interleave(torch.arange(len(row_starts) - 1), row_starts.long().diff())
    key = (row[:, None] * tall + torch.arange(tall)) * max(n, 1) + torch.arange(n)[:, None]
    order = key.flatten().argsort()  # (row, strip of the row, block)
    cut = values.reshape(n, tall, strip, wide, depth).permute(0, 1, 3, 4, 2).reshape(n * tall, wide, depth, strip)
    first = columns.long()[:, None] * width + torch.arange(wide) * depth
    first = first[:, None].expand(n, tall, wide).reshape(n * tall, wide)[order]
    inside = first < cols
    count = torch.zeros((len(row_starts) - 1) * tall, dtype=torch.long)
    strips = (row[:, None] * tall + torch.arange(tall)).flatten()[order]
    count.index_add_(0, strips, inside.sum(1))
    kept = cut[order][inside].contiguous()
    factors = None
    if scales is not None:
        factors = scales.float()[:, None, None].expand(n, tall, wide).reshape(n * tall, wide)[order][inside]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
    used = -(-rows // strip)  # strips below the last output hold nothing
    kept, starts = kept[: int(starts[used])], starts[: used + 1].clone()
    first = first[inside].int()[: len(kept)].contiguous()
    factors = None if factors is None else factors[: len(kept)].contiguous()
    if kept.dtype == torch.bfloat16 and depth % 2 == 0:
        kept = kept.view(len(kept), depth // 2, 2, strip).transpose(2, 3).contiguous()
    tensors = (kept, first, starts) if factors is None else (kept, first, starts, factors)
    return Layout("block", tensors, (strip, depth, rows, cols))


def int8_layout(
    values: Tensor, columns: Tensor, row_starts: Tensor, rows: int, cols: int, *, scales: Tensor
) -> Layout | None:
    """``block_layout`` of int8 blocks of a depth that four divides, in fours of inputs; None where there is none.

    Args:
        values: blocks ``(n, height, width)``.
        columns: block column of each block, ``(n,)``.
        row_starts: first block of each block row, and the number of blocks.
        rows: outputs of the matrix.
        cols: inputs of the matrix.
        scales: one for each row of the matrix, ``(block rows, height)``.
    """
    found = block_layout(values, columns, row_starts, rows, cols, run=cols)
    if found is None:
        return None
    kept, first, starts = found.tensors
    strip, depth, *_ = found.sizes
    strips = len(starts) - 1
    sums = torch.zeros(strips, strip, dtype=torch.int32)
    sums.index_add_(
        0, torch.repeat_interleave(torch.arange(strips), starts.diff()), 128 * kept.sum(1, dtype=torch.int32)
    )
    kept = kept.view(len(kept), depth // 4, 4, strip).transpose(2, 3).contiguous()
    factors = scales.float().flatten()[: strips * strip].contiguous()
    return Layout("int8", (kept, first, starts, sums.flatten(), factors), found.sizes)


def column_layout(c: Columns, *, few: bool = False) -> Layout:
    """Columns sorted for the column kernel; ``few`` makes one for products with at most four tokens."""
    height = c.height
    groups = max(1, -(-c.rows // height))
    part = max(1, PART // height)
    density = len(c.values) / max(1, groups * c.cols)
    # Wide enough for a worthwhile visit, else the sums are moved more often than they are used.
    reach = reach_of(height)
    chunk = min(max(reach, math.ceil(visit_of(height) / max(density, 1e-9))), 8 * reach)
    chunk = max(1, min(1 << 16 if few else chunk, c.cols, 1 << 16))
    chunk = max(
        1, min(-(-c.cols // max(1, round(c.cols / chunk))), 1 << 16)
    )  # all alike: a small rest would cost as much
    chunks = max(1, -(-c.cols // chunk))
    k = torch.div(c.inputs.long(), chunk, rounding_mode="floor")
    counts = torch.bincount(k * groups + c.groups.long(), minlength=chunks * groups).view(chunks, groups)
    # Inside a part, groups of equally many columns follow each other.
    key = (torch.arange(groups) // part) * (int(counts.max()) + 1) + counts
    order = key.argsort(dim=1, stable=True)
    slot_of = torch.empty_like(order)
    slot_of.scatter_(1, order, torch.arange(groups).expand(chunks, groups))
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.gather(1, order).flatten().cumsum(0)])
    slot = k * groups + slot_of[k, c.groups.long()]
    place = (slot * chunk + (c.inputs.long() - k * chunk)).argsort()
    inputs = (c.inputs.long() - k * chunk)[place].to(torch.uint16)
    factors = c.scales
    if factors is not None and len(factors) < groups * height:
        factors = torch.cat([factors.float(), factors.new_zeros(groups * height - len(factors)).float()])
    tensors = (c.values[place].contiguous(), inputs, starts, order.int().flatten())
    return Layout("column", tensors if factors is None else (*tensors, factors), (chunk, height, c.rows, part, c.cols))


def bits_layout(c: Columns) -> Layout:
    """Single weights as bits and values; of columns of height 1."""
    keys = c.groups.long() * c.cols + c.inputs.long()
    values = c.values[keys.argsort()].flatten()
    kept = torch.zeros(c.rows, -(-c.cols // 8) * 8, dtype=torch.bool, device="cpu")
    kept[c.groups.long(), c.inputs.long()] = True
    starts = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
    bits = pack_rows(kept)
    tensors = (torch.cat([values, values.new_zeros(AFTER)]), bits, starts)
    return Layout("bits", tensors if c.scales is None else (*tensors, c.scales.float()), (1, 1, c.rows, c.cols))


def columns_of_blocks(
    values: Tensor, columns: Tensor, row_starts: Tensor, rows: int, cols: int, height: int
) -> Columns:
    """Blocks ``(n, r, c)`` as columns of ``height`` outputs, which divides r."""
    n, tall, wide = values.shape
    row = torch.repeat_interleave(torch.arange(len(row_starts) - 1), row_starts.long().diff())
    cut = values.reshape(n, tall // height, height, wide).permute(0, 1, 3, 2).reshape(-1, height)
    groups = (row[:, None, None] * (tall // height) + torch.arange(tall // height)[:, None]).expand(n, -1, wide)
    inputs = (columns.long()[:, None] * wide + torch.arange(wide))[:, None].expand(n, tall // height, wide)
    keep = ((inputs < cols) & (groups < -(-rows // height))).flatten()
    return Columns(rows, cols, groups.flatten()[keep], inputs.flatten()[keep], cut[keep])


def columns_of_dense(matrix: Tensor, mask: Tensor) -> Columns:
    """The kept entries of a matrix, one output each."""
    groups, inputs = mask.nonzero(as_tuple=True)
    return Columns(matrix.shape[0], matrix.shape[1], groups, inputs, matrix[mask][:, None])
