"""What was pruned, told from where the zeros are."""

from __future__ import annotations

from torch import Tensor

from openwork.formats.choose import covered
from openwork.structure.shapes import Block, Element, GroupOf

SHAPES = ((64, 64), (32, 32), (16, 16), (4, 1))
"""Blocks that have kernels of their own, the fastest first."""
SPARE = 1.05  # a shape may store this much more than is not zero, for zeros that training left inside of kept blocks


def detect(mask: Tensor) -> Block | GroupOf | Element:
    """The largest block that the zeros of a matrix follow, else single weights.

    Args:
        mask: bool ``(out, in)``, true where the matrix is not zero.

    Examples:
        >>> import torch
        >>> mask = torch.zeros(64, 64, dtype=torch.bool)
        >>> mask[:32, 32:] = True
        >>> detect(mask), detect(mask & (torch.arange(64) % 2 == 0))
        (Block(rows=32, cols=32), GroupOf(size=4, dim=0))
    """
    rows, cols = mask.shape
    nnz = int(mask.sum())
    if 0 < nnz < mask.numel():
        for height, width in SHAPES:
            if rows >= height and cols >= width and covered(mask, height, width) * mask.numel() <= SPARE * nnz:
                return Block(height, width) if width > 1 else GroupOf(height, dim=0)
    return Element()
