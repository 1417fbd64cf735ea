"""Which blocks of a matrix are kept: compressed block rows, checked once, with the tables that kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.errors import StructureError
from openwork.gpu.schedule import chunks, limits, schedule

SIDES = (16, 32, 64, 128)
TABLES = (
    "columns",
    "lines",
    "turned_lines",
    "turned_places",
    "few_items",
    "few_splits",
    "many_items",
    "many_splits",
    "turned_few_items",
    "turned_few_splits",
    "turned_many_items",
    "turned_many_splits",
    "chunks",
)
"""Names of the int32 tensors that the operators take, in order. "Turned" ones list the blocks column by column."""


@dataclass(frozen=True, eq=False)
class BlockIndex:
    """The kept blocks of a ``(rows, cols)`` matrix in compressed block rows (BSR), without their values.

    Block ``i`` of block row ``r``, for ``row_starts[r] <= i < row_starts[r + 1]``, covers the rows from ``r * height``
    and the columns from ``columns[i] * width``. Values lie beside it as ``[n, height, width]``; those beyond the edge
    of the matrix should be zero; as finite numbers they have no effect. Made by `build`, `of_blocks` or `of_mask`,
    which do the checking.
    """

    rows: int
    cols: int
    height: int
    width: int
    columns: Tensor
    row_starts: Tensor
    tables: tuple[Tensor, ...]

    @property
    def blocks(self) -> int:
        """Number of kept blocks."""
        return int(self.columns.numel())

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns, ceil division."""
        return -(-self.rows // self.height), -(-self.cols // self.width)

    @property
    def device(self) -> torch.device:
        return self.columns.device

    @classmethod
    def build(
        cls,
        rows: int,
        cols: int,
        height: int,
        width: int,
        columns: Sequence[int] | Tensor,
        row_starts: Sequence[int] | Tensor,
    ) -> BlockIndex:
        """An index from block columns and row starts; every entry is checked before a kernel can see it.

        Args:
            rows: outputs of the matrix, >= 1; need not be a multiple of ``height``.
            cols: inputs of the matrix, >= 1; need not be a multiple of ``width``.
            height: outputs of a block: 16, 32, 64 or 128.
            width: inputs of a block: 16, 32, 64 or 128.
            columns: block column of every block, ``[n]`` integers, strictly rising inside a block row.
            row_starts: ``[ceil(rows / height) + 1]`` integers that rise from 0 to ``n``.

        Raises:
            StructureError: a size, a shape, a dtype or an entry is not as above.
        """
        down, across = grid_of(rows, cols, height, width)
        device = columns.device if isinstance(columns, Tensor) else torch.device("cpu")
        c, s = _integers(columns, "columns"), _integers(row_starts, "row_starts")
        if s.numel() != down + 1 or int(s[0]) != 0 or int(s[-1]) != c.numel() or bool((s.diff() < 0).any()):
            raise StructureError(
                f"BlockIndex: row_starts must be {down + 1} numbers that rise from 0 to {c.numel()}, got {_short(s)}"
            )
        if c.numel() and not 0 <= int(c.min()) <= int(c.max()) < across:
            raise StructureError(
                f"BlockIndex: columns must be in 0 .. {across - 1}, got {int(c.min())} .. {int(c.max())}"
            )
        line = torch.arange(down).repeat_interleave(s.diff())
        if bool(((line * across + c).diff() <= 0).any()):
            raise StructureError(
                "BlockIndex: columns must rise strictly inside a block row; sort them and drop repeats"
            )
        return cls(rows, cols, height, width, *_packed(c, s, line, height, width, across, device))

    @classmethod
    def of_blocks(cls, kept: Tensor, rows: int, cols: int, height: int, width: int) -> BlockIndex:
        """An index from a bool ``[ceil(rows / height), ceil(cols / width)]`` tensor of kept blocks.

        Raises:
            StructureError: a size is wrong, or ``kept`` is not bool of that shape.
        """
        grid = grid_of(rows, cols, height, width)
        if kept.dtype != torch.bool or tuple(kept.shape) != grid:
            raise StructureError(f"BlockIndex: kept must be bool {grid}, got {kept.dtype} {tuple(kept.shape)}")
        starts = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        return cls.build(rows, cols, height, width, kept.nonzero()[:, 1], starts)

    @classmethod
    def of_mask(cls, mask: Tensor, block: int | tuple[int, int]) -> BlockIndex:
        """The index of all blocks in which a bool ``(rows, cols)`` mask keeps at least one weight.

        Raises:
            StructureError: ``block`` is not one or two of 16, 32, 64, 128, or the mask is not a bool matrix.
        """
        height, width = sides(block)
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise StructureError(
                f"BlockIndex: mask must be a bool matrix (outputs, inputs), got {mask.dtype} {tuple(mask.shape)}"
            )
        rows, cols = mask.shape
        grid_of(rows, cols, height, width)
        return cls.of_blocks(cut(mask, height, width).any(3).any(1), rows, cols, height, width)

    def to(self, device: torch.device | str) -> BlockIndex:
        """The same index on another device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        tables = tuple(t.to(device) for t in self.tables)
        return BlockIndex(self.rows, self.cols, self.height, self.width, tables[0], self.row_starts.to(device), tables)

    def values_of(self, matrix: Tensor) -> Tensor:
        """The kept blocks of a ``(rows, cols)`` matrix as ``[n, height, width]``, zeros beyond its edges.

        Raises:
            StructureError: the matrix has another shape.
        """
        if tuple(matrix.shape) != (self.rows, self.cols):
            raise StructureError(
                f"BlockIndex: the matrix must be ({self.rows}, {self.cols}), got {tuple(matrix.shape)}"
            )
        blocks = cut(matrix, self.height, self.width).permute(0, 2, 1, 3)
        return blocks[self.tables[1].long(), self.columns.long()]

    def dense(self, values: Tensor) -> Tensor:
        """The ``(rows, cols)`` matrix with zeros where no block is kept; differentiable."""
        down, across = self.grid
        full = values.new_zeros(down, across, self.height, self.width)
        full = full.index_put((self.tables[1].long(), self.columns.long()), values)
        return full.permute(0, 2, 1, 3).reshape(down * self.height, across * self.width)[: self.rows, : self.cols]


def sides(block: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of ``block``; one number is a square.

    Raises:
        StructureError: a side is not 16, 32, 64 or 128.
    """
    pair = (block, block) if isinstance(block, int) else tuple(block)
    if len(pair) != 2 or any(isinstance(side, bool) or side not in SIDES for side in pair):
        raise StructureError(f"block must be one or two of {', '.join(map(str, SIDES))} (height, width), got {block!r}")
    return pair[0], pair[1]


def grid_of(rows: int, cols: int, height: int, width: int) -> tuple[int, int]:
    """Block rows and block columns of a matrix.

    Raises:
        StructureError: a size is no positive number below 2**31, or a side of the blocks is not 16, 32, 64 or 128.
    """
    height, width = sides((height, width))
    if any(isinstance(size, bool) or not 1 <= size < 2**31 - 128 for size in (rows, cols)):
        raise StructureError(f"rows and cols must be positive and below 2**31 - 128, got {rows!r} and {cols!r}")
    return -(-rows // height), -(-cols // width)


def cut(matrix: Tensor, height: int, width: int) -> Tensor:
    """``(rows, cols)`` to ``[down, height, across, width]``, padded with zeros."""
    rows, cols = matrix.shape
    down, across = -(-rows // height), -(-cols // width)
    full = matrix.new_zeros(down * height, across * width)
    full[:rows, :cols] = matrix
    return full.reshape(down, height, across, width)


def _integers(values: Sequence[int] | Tensor, name: str) -> Tensor:
    found = torch.as_tensor(values).detach().cpu()
    if found.numel() == 0:
        found = found.to(torch.int64)
    if found.ndim != 1 or found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise StructureError(f"BlockIndex: {name} must be a list of integers, got {found.dtype} {tuple(found.shape)}")
    return found.to(torch.int64)


def _short(values: Tensor) -> str:
    head = values[:6].tolist()
    return f"{values.numel()} numbers, {head}{' ...' if values.numel() > 6 else ''}"


def _packed(
    columns: Tensor, starts: Tensor, line: Tensor, height: int, width: int, across: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    turned = columns.argsort(stable=True)  # lines rise inside a column, because the sort is stable
    tables = [columns, line, line[turned], turned]
    for counts in (starts.diff(), torch.bincount(columns, minlength=across)):
        for limit in limits(counts, height * width):
            tables += schedule(counts, limit)
    tables.append(chunks(starts, max(1, 128 // width)))
    found = tuple(t.to(torch.int32).to(device) for t in tables)
    return found[0], starts.to(torch.int32).to(device), found
