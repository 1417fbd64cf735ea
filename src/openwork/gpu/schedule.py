"""How a list of blocks is dealt out to programs: long lines are cut, the longest pieces start first.

A *line* is a block row (forward product) or a block column (product with the transposed matrix). Every piece of a line
is one *item* of work; the pieces of a cut line leave partial sums that a second pass adds up in a fixed order, so no
atomic is needed and a result never depends on timing.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW_TOKENS = 64
"""Up to so many tokens lines are cut until there are about ``PROGRAMS`` pieces; above, there are token tiles."""
PROGRAMS = 512
"""Four for each of the 132 multiprocessors of an H100 or H200."""
LEAST_WORK = 8192
"""Weights in a piece that pay for writing a partial sum and reading it again."""


def schedule(counts: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Items and splits of lines with ``counts`` (int64 ``[L]``) blocks, none longer than ``limit`` blocks.

    Returns:
        items: int32 ``[S, 4]``, longest first: line, first block, end (exclusive), slot of the partial sum; -1 is a
            line in one piece, which is finished at once. An empty line has one item without blocks.
        splits: int32 ``[Q, 3]``: line, its first slot, its number of slots.
    """
    pieces = counts.add(limit - 1).div(limit, rounding_mode="floor").clamp(min=1)
    line = torch.arange(counts.numel()).repeat_interleave(pieces)
    number = torch.arange(line.numel()) - (pieces.cumsum(0) - pieces)[line]
    base, extra = counts.div(pieces, rounding_mode="floor")[line], counts.remainder(pieces)[line]
    start = (counts.cumsum(0) - counts)[line] + base * number + torch.minimum(number, extra)
    length = base + (number < extra)
    cut = pieces[line] > 1
    slot = torch.where(cut, cut.cumsum(0) - 1, -1)
    order = length.argsort(descending=True, stable=True)
    items = torch.stack([line, start, start + length, slot], 1)[order]
    lines = (pieces > 1).nonzero().flatten()
    slots = pieces[lines]
    splits = torch.stack([lines, slots.cumsum(0) - slots, slots], 1)
    return items.to(torch.int32).contiguous(), splits.to(torch.int32).contiguous()


def limits(counts: Tensor, weights: int) -> tuple[int, int]:
    """The longest piece for few and for many tokens, in blocks of ``weights`` weights.

    Few tokens: total work over ``PROGRAMS``, but at least ``LEAST_WORK`` weights. Many: four times the mean line, so
    that only lines that stand out are cut.
    """
    total, lines = int(counts.sum()), counts.numel()
    least = max(1, LEAST_WORK // weights)
    return max(least, -(-total // PROGRAMS)), max(least, 4 * -(-total // lines))


def chunks(row_starts: Tensor, most: int) -> Tensor:
    """Int32 ``[M, 3]``: block row, first block, end; neighbours in one row, at most ``most`` of them."""
    counts = row_starts.to(torch.int64).diff()
    items, _ = schedule(counts, most)
    return items[items[:, 2] > items[:, 1], :3].contiguous()
