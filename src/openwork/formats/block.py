"""Blocks of ``height`` outputs x ``width`` inputs; ``4 x 1`` and ``16 x 1`` columns are blocks of width 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.formats.base import Format, check_columns, check_starts, expect, row_of, starts_of
from openwork.formats.stored import DTYPES, LARGEST, check_scales, check_values, demand, opened, restore, store


@dataclass(frozen=True, eq=False, repr=False)
class BlockSparse(Format):
    """Dense blocks, sorted by (block row, block column).

    Args:
        rows: of the matrix.
        cols: of the matrix.
        height: outputs per block.
        width: inputs per block.
        values: float32, bfloat16 or int8 ``[n, height, width]``; zero where a block sticks out over the matrix.
        columns: int32 ``[n]``, the block column. On disk uint16 when no more than 65,536 block columns exist.
        row_starts: int32 ``[ceil(rows / height) + 1]``, where the blocks of each block row begin.
        scales: float32 for int8, otherwise None: ``[n]``, one per block, or ``[ceil(rows / height), height]``, one per
            row of the matrix. ``pack`` gives small blocks (less than 16 x anything and less than 64 values) the latter.

    Examples:
        >>> w = torch.zeros(4, 6)
        >>> w[2:, :3] = 5.0
        >>> packed = BlockSparse.pack(w, w != 0, height=2, width=3)
        >>> packed, packed.columns.tolist(), packed.row_starts.tolist()
        (BlockSparse(4 x 6, 2 height, 3 width, float32, density 0.25), [0], [0, 0, 1])
    """

    kind: ClassVar[str] = "block"
    numbers: ClassVar[tuple[str, ...]] = ("height", "width")
    parts: ClassVar[tuple[str, ...]] = ("values", "columns", "row_starts")

    rows: int
    cols: int
    height: int
    width: int
    values: Tensor
    columns: Tensor
    row_starts: Tensor
    scales: Tensor | None = None

    @classmethod
    def pack(
        cls,
        matrix: Tensor,
        mask: Tensor,
        *,
        height: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        by_row: bool = False,
    ) -> BlockSparse:
        """Store every block in which the mask keeps something.

        Args:
            matrix: float32, bfloat16 or float16 ``[rows, cols]``.
            mask: bool ``[rows, cols]``; False where the matrix must be zero.
            height: outputs per block, at least 1.
            width: inputs per block, at least 1.
            dtype: of the stored values.
            by_row: int8 gets one scale for each row of the matrix, whatever the size of its blocks.

        Raises:
            FormatError: the matrix and the mask do not fit together, a weight is NaN, more than 2^31 - 1 blocks.
        """
        wide, mask = opened(cls.kind, matrix, mask, dtype)
        _check_block(height, width)
        rows, cols = wide.shape
        tiles, kept = _tiles(wide, height, width), _tiles(mask, height, width).any(3).any(2)
        at = kept.nonzero()
        demand(
            len(at) <= LARGEST, cls.kind, f"at most {LARGEST} blocks can be numbered, got {len(at)}; use larger blocks"
        )
        shape = (len(kept), height) if by_row or (height < 16 and height * width < 64) else (len(at),)
        values, scales = store(tiles[at[:, 0], at[:, 1]], _groups(shape, at[:, 0]), shape, dtype)
        return cls(rows, cols, height, width, values, at[:, 1].int(), starts_of(kept.sum(1)), scales)

    @property
    def grid(self) -> tuple[int, int]:
        """Block rows and block columns."""
        return -(-self.rows // self.height), -(-self.cols // self.width)

    @property
    def stored(self) -> int:
        heights = (self.rows - row_of(self.row_starts) * self.height).clamp_max(self.height)
        widths = (self.cols - self.columns.long() * self.width).clamp_max(self.width)
        return int((heights * widths).sum())

    def unpack(self) -> Tensor:
        down, across = self.grid
        if not len(self.values):
            return torch.zeros(self.rows, self.cols, device=self.values.device)
        tiles = torch.zeros(down, across, self.height, self.width, device=self.values.device)
        row = row_of(self.row_starts)
        group = _groups((len(row),) if self.scales is None else tuple(self.scales.shape), row)
        tiles[row, self.columns.long()] = restore(self.values, self.scales, group)
        matrix = tiles.transpose(1, 2).reshape(down * self.height, across * self.width)
        return matrix[: self.rows, : self.cols].contiguous()

    def tensors(self) -> dict[str, Tensor]:
        short = self.grid[1] <= 1 << 16
        return {**super().tensors(), "columns": self.columns.to(torch.uint16) if short else self.columns}

    @classmethod
    def from_disk(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        columns = tensors["columns"]
        return {**tensors, "columns": columns.int() if columns.dtype == torch.uint16 else columns}

    def check(self) -> None:
        who, n = self.kind, len(self.values) if self.values.ndim else 0
        _check_block(self.height, self.width)
        down, across = self.grid
        expect(who, "values", self.values, tuple(DTYPES.values()), (n, self.height, self.width))
        expect(who, "columns", self.columns, (torch.int32,), (n,))
        expect(who, "row_starts", self.row_starts, (torch.int32,), (down + 1,))
        check_starts(who, self.row_starts, n)
        check_columns(who, self.columns, self.row_starts, across)
        check_values(who, self.values)
        check_scales(who, self.scales, self.values, ((n,), (down, self.height)))
        below, right = down * self.height - self.rows, across * self.width - self.cols
        if below:
            last = self.values[int(self.row_starts[-2]) :, self.height - below :]
            demand(not bool(last.any()), who, "values below the last row of the matrix must be zero")
        if right:
            last = self.values[self.columns == across - 1, :, self.width - right :]
            demand(not bool(last.any()), who, "values right of the last column of the matrix must be zero")


def _groups(shape: tuple[int, ...], row: Tensor) -> Tensor:
    """Flat index of the scale of each value of blocks that stand in block rows ``row``, ``[n, 1 or height, 1]``."""
    if len(shape) == 1:
        return torch.arange(len(row), device=row.device)[:, None, None]
    return (row[:, None] * shape[1] + torch.arange(shape[1], device=row.device))[:, :, None]


def _check_block(height: int, width: int) -> None:
    for name, value in (("height", height), ("width", width)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        demand(whole and 1 <= value <= LARGEST, "block", f"{name} must be a positive whole number, got {value!r}")


def _tiles(matrix: Tensor, height: int, width: int) -> Tensor:
    """``[rows, cols]`` -> ``[down, across, height, width]``, zeros beyond the edges."""
    rows, cols = matrix.shape
    down, across = -(-rows // height), -(-cols // width)
    padded = F.pad(matrix, (0, across * width - cols, 0, down * height - rows))
    return padded.view(down, height, across, width).transpose(1, 2)
