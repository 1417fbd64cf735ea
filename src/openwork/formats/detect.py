"""What was pruned, told from where the zeros are."""

from __future__ import annotations

from torch import Tensor

from openwork.formats.choose import covered
from openwork.structure.shapes import Block, Element, GroupOf

SHAPES = ((64, 64), (32, 32), (16, 16), (4, 1), (2, 1))
"""Blocks that have kernels of their own, the fastest first."""
FULL = 0.9  # of what blocks store must not be zero (Elsen et al. 2020, for blocks of 4, 2 and 1)


def detect(mask: Tensor) -> Block | GroupOf | Element:
    """The largest block that the zeros of a matrix follow, else single weights.

    Args:
        mask: bool ``(out, in)``, true where the matrix is not zero.

    Examples:
        >>> import torch
        >>> mask = torch.zeros(64, 64, dtype=torch.bool)
        >>> mask[:32, 32:] = True
        >>> detect(mask), detect(mask & (torch.arange(64) % 2 == 0))
        (Block(rows=32, cols=32), GroupOf(size=4, dim=0, per='tensor'))
    """
    rows, cols = mask.shape
    nnz = int(mask.sum())
    if 0 < nnz < mask.numel():
        for height, width in SHAPES:
            if rows >= height and cols >= width and nnz >= FULL * covered(mask, height, width) * mask.numel():
                return Block(height, width) if width > 1 else GroupOf(height, dim=0)
    return Element()
