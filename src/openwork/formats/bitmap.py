"""One bit per entry says whether it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.formats.base import Format, expect, starts_of
from openwork.formats.bits import count_rows, pack_rows, unpack_rows
from openwork.formats.stored import (
    DTYPES,
    check_scales,
    check_values,
    demand,
    opened,
    restore,
    scale_of,
    scale_shapes,
    scale_width,
    store,
    width_of,
)


@dataclass(frozen=True, eq=False, repr=False)
class Bitmap(Format):
    """Kept values row by row, and a bit per entry. The smallest format without structure above a density of 1/16.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        values: float32, bfloat16 or int8 ``[nnz]``, in row-major order.
        bits: uint8 ``[rows, ceil(cols / 8)]``; column ``c`` is bit ``c % 8`` (lowest first) of byte ``c // 8``. Bits
            beyond the last column are zero.
        scales: float32 ``[rows, groups]`` for int8: one per row, per 64 or per 128 columns; otherwise None.

    Examples:
        >>> w = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
        >>> packed = Bitmap.pack(w, w != 0)
        >>> packed.bits.tolist(), packed.row_starts().tolist()
        ([[2], [0], [5]], [0, 1, 1, 3])
    """

    kind: ClassVar[str] = "bitmap"
    parts: ClassVar[tuple[str, ...]] = ("values", "bits")

    rows: int
    cols: int
    values: Tensor
    bits: Tensor
    scales: Tensor | None = None

    @classmethod
    def pack(
        cls, matrix: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32, group: int | None = None
    ) -> Bitmap:
        """Store what the mask keeps, zeros included; arguments and errors as in ``Csr.pack``."""
        wide, mask = opened(cls.kind, matrix, mask, dtype)
        rows, cols = wide.shape
        width = scale_width(cls.kind, group, dtype, cols)
        at = mask.nonzero()
        shape = (rows, max(1, -(-cols // width)))
        values, scales = store(wide[mask], scale_of(at[:, 0], at[:, 1], cols, width), shape, dtype)
        return cls(rows, cols, values, pack_rows(mask), scales)

    @property
    def stored(self) -> int:
        return self.values.numel()

    def mask(self) -> Tensor:
        """Which entries are stored, bool ``[rows, cols]``."""
        return unpack_rows(self.bits)[:, : self.cols]

    def row_starts(self) -> Tensor:
        """Where the values of each row begin, int32 (int64 from 2^31 values on) ``[rows + 1]``; not on disk."""
        return starts_of(count_rows(self.bits))

    def unpack(self) -> Tensor:
        mask = self.mask()
        at = mask.nonzero()
        group = scale_of(at[:, 0], at[:, 1], self.cols, width_of(self.scales, self.cols))
        matrix = torch.zeros(self.rows, self.cols, device=self.values.device)
        matrix[mask] = restore(self.values, self.scales, group)
        return matrix

    def check(self) -> None:
        who, n = self.kind, self.values.numel()
        expect(who, "values", self.values, tuple(DTYPES.values()), (n,))
        expect(who, "bits", self.bits, (torch.uint8,), (self.rows, -(-self.cols // 8)))
        if self.cols % 8:
            filler = int((self.bits[:, -1] >> (self.cols % 8)).count_nonzero())
            demand(filler == 0, who, f"bits beyond the last column must be zero, they are not in {filler} rows")
        found = int(count_rows(self.bits).sum())
        demand(found == n, who, f"as many bits as values must be set, got {found} bits and {n} values")
        check_values(who, self.values)
        check_scales(who, self.scales, self.values, scale_shapes(self.rows, self.cols))
