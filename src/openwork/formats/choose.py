"""Which format follows from what was pruned, and which one is the smallest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openwork.errors import FormatError
from openwork.formats.base import Format
from openwork.formats.bitmap import Bitmap
from openwork.formats.block import BlockSparse
from openwork.formats.csr import Csr
from openwork.formats.nm import NMSparse
from openwork.formats.stored import opened
from openwork.structure.shapes import NM, Block, Column, Element, Filter, GroupOf, InputChannel, Kernel, Row


@dataclass(frozen=True)
class Blocks:
    """Store as ``BlockSparse``; ``None`` is the full height or width of each matrix. ``by_row``: see there."""

    height: int | None
    width: int | None
    by_row: bool = field(default=False, repr=False)

    def pack(self, matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> BlockSparse:
        rows, cols = matrix.shape if matrix.ndim == 2 else (1, 1)  # another shape is refused below
        height, width = self.height or max(rows, 1), self.width or max(cols, 1)
        return BlockSparse.pack(matrix, mask, height=height, width=width, dtype=dtype, by_row=self.by_row)


@dataclass(frozen=True)
class Unstructured:
    """Store as ``Csr`` or ``Bitmap``, whichever is smaller; in float32 ``Csr`` wins below a density of about 1/16."""

    def pack(self, matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> Csr | Bitmap:
        opened("unstructured", matrix, mask, dtype)
        rows, cols = matrix.shape
        return (Csr if _csr_bytes(mask) < rows * -(-cols // 8) else Bitmap).pack(matrix, mask, dtype=dtype)


@dataclass(frozen=True)
class Runs:
    """Store as ``NMSparse``; with ``share = 4`` where four neighbouring outputs keep the same places."""

    n: int
    m: int

    def pack(self, matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> NMSparse:
        opened("nm", matrix, mask, dtype)
        share = 4 if _shared(mask) else 1
        return NMSparse.pack(matrix, mask, n=self.n, m=self.m, share=share, dtype=dtype)


Layout = Blocks | Unstructured | Runs


def choose(structure: object) -> Layout:
    """The layout that follows from what was pruned; its ``pack(matrix, mask, dtype=)`` makes the format.

    Whole rows become blocks of full width, whole columns blocks of full height. Kernels (their entries are not
    neighbours in ``(out, positions x in)``) and N:M along the outputs are stored unstructured.

    Args:
        structure: ``ow.Element()``, ``ow.Block(32, 32)``, ``ow.NM(keep=2, of=4)``, ...

    Raises:
        FormatError: no format follows from this object.

    Examples:
        >>> choose(Block(32, 32)), choose(GroupOf(4, dim=0)), choose(NM(keep=2, of=4))
        (Blocks(height=32, width=32), Blocks(height=4, width=1), Runs(n=2, m=4))
    """
    match structure:
        case Block(rows=rows, cols=cols):
            return Blocks(rows, cols)
        case GroupOf(size=size, dim=dim):
            return Blocks(1, size) if dim == 1 else Blocks(size, 1)
        case Row() | Filter():
            return Blocks(1, None)
        case Column() | InputChannel():
            return Blocks(None, 1)
        case NM(keep=keep, of=of, dim=1):
            return Runs(keep, of)
        case Element() | Kernel() | NM():
            return Unstructured()
    raise FormatError(
        f"no storage format follows from {structure!r}; pass one of the structures of openwork, for instance "
        "ow.Element(), which suits every mask"
    )


def smallest(matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> Format:
    """The format with the fewest bytes on disk; int8 with one scale per row or block.

    Candidates: ``Csr``, ``Bitmap``, blocks of 4 x 1, 8 x 1, 16 x 1, 8 x 8 to 64 x 64, whole rows, whole columns and the
    whole matrix as one block, and 1:4, 2:4, 2:8 and 4:8 per row and per four rows where the mask allows them. Sizes
    are computed from the mask, only the winner is packed; of equals the earlier one in this list wins.

    Raises:
        FormatError: the matrix and the mask do not fit together.
    """
    opened("smallest", matrix, mask, dtype)
    rows, cols = matrix.shape
    value = torch.empty(0, dtype=dtype).element_size()
    per_row = 4 * rows if dtype == torch.int8 else 0
    nnz = int(mask.sum())
    sizes: list[tuple[int, Callable[..., Format], dict[str, Any]]] = [
        (nnz * value + _csr_bytes(mask) + per_row, Csr.pack, {}),
        (nnz * value + rows * -(-cols // 8) + per_row, Bitmap.pack, {}),
    ]
    shapes = [(4, 1), (8, 1), (16, 1), (8, 8), (16, 16), (32, 32), (64, 64), (1, cols), (rows, 1), (rows, cols)]
    for height, width in dict.fromkeys((max(h, 1), max(w, 1)) for h, w in shapes):
        sizes.append((_block_bytes(mask, height, width, dtype), BlockSparse.pack, {"height": height, "width": width}))
    for n, m in ((1, 4), (2, 4), (2, 8), (4, 8)):
        for share in (1, 4):
            if _fits(mask, n, m, share):
                strips, entries = -(-rows // share), cols // m * n
                size = strips * (entries * share * value + -(-entries * (m - 1).bit_length() // 8)) + per_row
                sizes.append((size, NMSparse.pack, {"n": n, "m": m, "share": share}))
    _, pack, options = min(sizes, key=lambda s: s[0])
    return pack(matrix, mask, **options, dtype=dtype)


def _csr_bytes(mask: Tensor) -> int:
    """Columns and row starts, without the values."""
    rows, cols = mask.shape
    return int(mask.sum()) * (2 if cols <= 1 << 16 else 4) + 4 * (rows + 1)


def covered(mask: Tensor, height: int, width: int) -> float:
    """Share of a matrix that lies in blocks of this shape with a weight in them."""
    used = _blocks(mask, height, width).repeat_interleave(height, 0).repeat_interleave(width, 1)
    rows, cols = mask.shape
    return float(used[:rows, :cols].float().mean()) if mask.numel() else 0.0


def _blocks(mask: Tensor, height: int, width: int) -> Tensor:
    """Which blocks have a weight in them, bool ``[strips, blocks of a strip]``; those at the edges are filled up."""
    rows, cols = mask.shape
    down, across = -(-rows // height), -(-cols // width)
    padded = torch.nn.functional.pad(mask, (0, across * width - cols, 0, down * height - rows))
    return padded.view(down, height, across, width).any(3).any(1)


def _block_bytes(mask: Tensor, height: int, width: int, dtype: torch.dtype) -> int:
    used = _blocks(mask, height, width)
    (down, across), n = used.shape, int(used.sum())
    value = torch.empty(0, dtype=dtype).element_size()
    index = (2 if across <= 1 << 16 else 4) + (4 if dtype == torch.int8 else 0)
    return n * (height * width * value + index) + 4 * (down + 1)


def _strips(mask: Tensor, share: int) -> Tensor:
    """bool ``[strips, share, cols]``, the last strip filled up with False."""
    rows, cols = mask.shape
    strips = -(-rows // share)
    return torch.nn.functional.pad(mask, (0, 0, 0, strips * share - rows)).view(strips, share, cols)


def _shared(mask: Tensor) -> bool:
    """Whether four neighbouring rows always keep the same columns; a shorter last strip agrees among its own rows."""
    rows = mask.shape[0]
    if rows < 4:
        return False
    full, rest = mask[: rows // 4 * 4], mask[rows // 4 * 4 :]
    first = _strips(full, 4)[:, :1]
    same = bool((_strips(full, 4) == first).all())
    return same and bool((rest == rest[:1]).all())


def _fits(mask: Tensor, n: int, m: int, share: int) -> bool:
    cols = mask.shape[1]
    if cols % m or not mask.numel():
        return False
    used = _strips(mask, share).any(1).view(-1, m)
    return int(used.sum(1).max()) <= n
