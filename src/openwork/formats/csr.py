"""Compressed sparse rows with columns of 16 bits where they suffice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.formats.base import Format, check_columns, check_starts, expect, row_of, starts_of
from openwork.formats.stored import (
    DTYPES,
    check_scales,
    check_values,
    opened,
    restore,
    scale_of,
    scale_shapes,
    scale_width,
    store,
    width_of,
)


@dataclass(frozen=True, eq=False, repr=False)
class Csr(Format):
    """Kept values row by row, each with its column. The smallest format below a density of 1/16 (float32).

    Args:
        rows: of the matrix.
        cols: of the matrix.
        values: float32, bfloat16 or int8 ``[nnz]``.
        columns: uint16 ``[nnz]`` when ``cols <= 65536``, otherwise int32; strictly increasing inside a row.
        row_starts: int32 ``[rows + 1]``, or int64 when there are 2^31 values or more.
        scales: float32 ``[rows, groups]`` for int8: one per row, per 64 or per 128 columns; otherwise None.

    Examples:
        >>> w = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
        >>> packed = Csr.pack(w, w != 0)
        >>> packed.columns.tolist(), packed.row_starts.tolist()
        ([1, 0, 2], [0, 1, 1, 3])
    """

    kind: ClassVar[str] = "csr"
    parts: ClassVar[tuple[str, ...]] = ("values", "columns", "row_starts")

    rows: int
    cols: int
    values: Tensor
    columns: Tensor
    row_starts: Tensor
    scales: Tensor | None = None

    @classmethod
    def pack(cls, matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32, group: int | None = None) -> Csr:
        """Store what the mask keeps, zeros included.

        Args:
            matrix: float32, bfloat16 or float16 ``[rows, cols]``.
            mask: bool ``[rows, cols]``; False where the matrix must be zero.
            dtype: of the stored values.
            group: int8 only: columns that share a scale, 64 or 128; None is the whole row.

        Raises:
            FormatError: the matrix and the mask do not fit together, a weight is NaN, another ``group``.
        """
        wide, mask = opened(cls.kind, matrix, mask, dtype)
        rows, cols = wide.shape
        width = scale_width(cls.kind, group, dtype, cols)
        at = mask.nonzero()
        shape = (rows, max(1, -(-cols // width)))
        values, scales = store(wide[mask], scale_of(at[:, 0], at[:, 1], cols, width), shape, dtype)
        columns = at[:, 1].to(_column_dtype(cols))
        return cls(rows, cols, values, columns, starts_of(mask.sum(1)), scales)

    @property
    def stored(self) -> int:
        return self.values.numel()

    def unpack(self) -> Tensor:
        rows, columns = row_of(self.row_starts), self.columns.long()
        group = scale_of(rows, columns, self.cols, width_of(self.scales, self.cols))
        matrix = torch.zeros(self.rows, self.cols, device=self.values.device)
        matrix[rows, columns] = restore(self.values, self.scales, group)
        return matrix

    def check(self) -> None:
        who, n = self.kind, self.values.numel()
        expect(who, "values", self.values, tuple(DTYPES.values()), (n,))
        expect(who, "columns", self.columns, (_column_dtype(self.cols),), (n,))
        expect(who, "row_starts", self.row_starts, (torch.int32, torch.int64), (self.rows + 1,))
        check_starts(who, self.row_starts, n)
        check_columns(who, self.columns.int(), self.row_starts, self.cols)
        check_values(who, self.values)
        check_scales(who, self.scales, self.values, scale_shapes(self.rows, self.cols))


def _column_dtype(cols: int) -> torch.dtype:
    return torch.uint16 if cols <= 1 << 16 else torch.int32
