"""N of every M consecutive inputs, per row or with one pattern for four outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.formats.base import Format, expect
from openwork.formats.bits import pack_numbers, unpack_numbers, unpack_rows
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
class NMSparse(Format):
    """``n`` values and their places out of every ``m`` inputs; ``share`` neighbouring outputs have the same places.

    A strip is ``share`` rows. A group of ``m`` columns holds ``n`` entries, an entry holds ``share`` values. Groups in
    which fewer than ``n`` weights are kept are filled up with zeros at the lowest free places.

    Args:
        rows: of the matrix.
        cols: of the matrix, a multiple of ``m``.
        n: entries per group.
        m: columns per group, at most 256.
        share: 1 or 4.
        values: float32, bfloat16 or int8 ``[strips, cols / m * n, share]``; outputs beyond the last row hold zeros.
        positions: uint8 ``[strips, ceil(cols / m * n * b / 8)]``, the place of each entry inside its group, increasing,
            ``b = ceil(log2 m)`` bits each, lowest bit first (2 bits for ``m = 4``, 3 for ``m = 8``); filler bits are
            zero.
        scales: float32 ``[rows, groups]`` for int8: one per row, per 64 or per 128 columns; otherwise None.

    Examples:
        >>> w = torch.tensor([[0.0, 2.0, 0.0, 3.0], [4.0, 0.0, 0.0, 0.0]])
        >>> packed = NMSparse.pack(w, w != 0, n=2, m=4)
        >>> packed.values.flatten(1).tolist(), packed.places().tolist()
        ([[2.0, 3.0], [4.0, 0.0]], [[1, 3], [0, 1]])
    """

    kind: ClassVar[str] = "nm"
    numbers: ClassVar[tuple[str, ...]] = ("n", "m", "share")
    parts: ClassVar[tuple[str, ...]] = ("values", "positions")

    rows: int
    cols: int
    n: int
    m: int
    share: int
    values: Tensor
    positions: Tensor
    scales: Tensor | None = None

    @classmethod
    def pack(
        cls,
        matrix: Tensor,
        mask: Tensor,
        *,
        n: int,
        m: int,
        share: int = 1,
        dtype: torch.dtype = torch.float32,
        group: int | None = None,
    ) -> NMSparse:
        """Store ``n`` entries of every group of ``m``.

        Args:
            matrix: float32, bfloat16 or float16 ``[rows, cols]``, ``cols`` a multiple of ``m``.
            mask: bool ``[rows, cols]``; False where the matrix must be zero.
            n: entries per group.
            m: columns per group.
            share: 1, or 4 when four neighbouring outputs keep the same places (together at most ``n`` per group).
            dtype: of the stored values.
            group: int8 only: columns that share a scale, 64 or 128; None is the whole row.

        Raises:
            FormatError: the mask keeps more than ``n`` places of a group, ``cols`` is no multiple of ``m``, or the
                matrix and the mask do not fit together.
        """
        wide, mask = opened(cls.kind, matrix, mask, dtype)
        rows, cols = wide.shape
        _check_pattern(n, m, share, cols)
        width = scale_width(cls.kind, group, dtype, cols)
        strips, groups = -(-rows // share), cols // m
        tall = (0, 0, 0, strips * share - rows)
        used = F.pad(mask, tall).view(strips, share, groups, m).any(1)
        most = int(used.sum(2).max()) if used.numel() else 0
        demand(
            most <= n,
            cls.kind,
            f"at most {n} of {m} places may be kept in {share} output(s), the mask keeps {most}; use Csr or Bitmap",
        )
        places = (~used).byte().argsort(dim=2, stable=True)[:, :, :n].sort(2).values
        stacked = F.pad(wide, tall).view(strips, share, groups, m).permute(0, 2, 3, 1)
        kept = stacked.gather(2, places[..., None].expand(-1, -1, -1, share)).reshape(strips, groups * n, share)
        columns = (torch.arange(groups, device=wide.device)[:, None] * m + places).view(strips, groups * n)
        where = _scale_index(columns, rows, cols, share, width)
        values, scales = store(kept, where, (rows, max(1, -(-cols // width))), dtype)
        positions = pack_numbers(places.view(strips, groups * n), (m - 1).bit_length())
        return cls(rows, cols, n, m, share, values, positions, scales)

    @property
    def stored(self) -> int:
        return self.rows * (self.cols // self.m) * self.n

    def places(self) -> Tensor:
        """Place of every entry inside its group, uint8 ``[strips, cols / m * n]``."""
        return unpack_numbers(self.positions, self.cols // self.m * self.n, (self.m - 1).bit_length())

    def columns(self) -> Tensor:
        """Column of every entry, int64 ``[strips, cols / m * n]``."""
        first = torch.arange(self.cols // self.m, device=self.values.device).repeat_interleave(self.n) * self.m
        return first + self.places().long()

    def unpack(self) -> Tensor:
        columns = self.columns()
        where = _scale_index(columns, self.rows, self.cols, self.share, width_of(self.scales, self.cols))
        kept = restore(self.values, self.scales, where)
        matrix = torch.zeros(len(columns), self.cols, self.share, device=self.values.device)
        matrix.scatter_(1, columns[:, :, None].expand(-1, -1, self.share), kept)
        return matrix.transpose(1, 2).reshape(len(columns) * self.share, self.cols)[: self.rows].contiguous()

    def check(self) -> None:
        who = self.kind
        _check_pattern(self.n, self.m, self.share, self.cols)
        strips, entries, width = -(-self.rows // self.share), self.cols // self.m * self.n, (self.m - 1).bit_length()
        expect(who, "values", self.values, tuple(DTYPES.values()), (strips, entries, self.share))
        expect(who, "positions", self.positions, (torch.uint8,), (strips, -(-entries * width // 8)))
        filler = int(unpack_rows(self.positions)[:, entries * width :].sum())
        demand(filler == 0, who, f"the filler bits of positions must be zero, {filler} are not")
        places = self.places().view(-1, self.n)
        beyond = int((places > self.m - 1).sum())
        demand(beyond == 0, who, f"positions must lie in 0 ... {self.m - 1}, {beyond} do not")
        falls = int((places[:, 1:] <= places[:, :-1]).sum())
        demand(falls == 0, who, f"positions must increase strictly inside a group, {falls} do not")
        check_values(who, self.values)
        below = strips * self.share - self.rows
        if below:
            stray = int(self.values[-1, :, self.share - below :].count_nonzero())
            demand(stray == 0, who, f"values below the last row of the matrix must be zero, {stray} are not")
        check_scales(who, self.scales, self.values, scale_shapes(self.rows, self.cols))


def _check_pattern(n: int, m: int, share: int, cols: int) -> None:
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (n, m, share))
    demand(whole and 1 <= n <= m <= 256, "nm", f"1 <= n <= m <= 256 must hold, got n={n!r}, m={m!r}")
    demand(share in (1, 4), "nm", f"share must be 1 or 4 outputs, got {share!r}")
    demand(cols % m == 0, "nm", f"{cols} columns are no multiple of m={m}; pack the matrix as Csr or Bitmap")


def _scale_index(columns: Tensor, rows: int, cols: int, share: int, width: int) -> Tensor:
    """Flat scale index of every value, ``[strips, entries, share]``; outputs beyond the last row borrow its scale."""
    strips = len(columns)
    row = torch.arange(strips * share, device=columns.device).clamp_max(max(rows - 1, 0)).view(strips, 1, share)
    return scale_of(row, columns[:, :, None], cols, width)
