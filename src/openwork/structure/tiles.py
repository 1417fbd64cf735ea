"""A partition of one tensor into equal tiles of its matrix view; edge tiles may be smaller (virtual padding)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.core.partition import Pool
from openwork.core.views import MatrixView
from openwork.errors import StructureError


@dataclass(frozen=True)
class Tiles:
    """Tiles of ``block = (rows, cols)`` over the matrices of one parameter.

    Units are numbered stack by stack, row of tiles by row of tiles. ``run`` says that every ``run``
    consecutive units form one region (a row, a group of M); ``quota`` fixes how many of them stay (N:M).
    ``flipped`` reads the matrices transposed, so that runs go along the outputs.
    """

    member: str
    view: MatrixView
    block: tuple[int, int] = (1, 1)
    run: int | None = None
    quota: tuple[int, int] | None = None
    flipped: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        return (self.member,)

    @property
    def matrix(self) -> tuple[int, int, int]:
        stack, rows, cols = self.view.folded
        return (stack, cols, rows) if self.flipped else (stack, rows, cols)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(stack, tile rows, tile columns), ceil division."""
        stack, rows, cols = self.matrix
        return stack, -(-rows // self.block[0]), -(-cols // self.block[1])

    @property
    def n_units(self) -> int:
        stack, down, across = self.grid
        return stack * down * across

    @cached_property
    def cost(self) -> Tensor:
        """``[n_units]`` int64, the true size of each tile (edge tiles are smaller).

        Equal tiles share one number in memory: eight bytes for each weight of a large model would be too many.
        """
        stack, rows, cols = self.matrix
        if rows % self.block[0] == 0 and cols % self.block[1] == 0:
            return torch.tensor(self.block[0] * self.block[1]).expand(self.n_units)
        heights = _sizes(rows, self.block[0])
        widths = _sizes(cols, self.block[1])
        return (heights[:, None] * widths[None, :]).expand(stack, -1, -1).reshape(-1)

    def scope(self) -> int | None:
        return self.run

    def open(self, tensor: Tensor) -> Tensor:
        matrices = self.view.open(tensor)
        return matrices.transpose(1, 2) if self.flipped else matrices

    def pool(self, values: Mapping[str, Tensor], how: Pool = "sum") -> Tensor:
        x = self.open(values[self.member])
        if self.block == (1, 1):
            flat = x.reshape(-1)
            return flat.abs() if how == "norm" else flat
        if how == "norm":
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            return self._reduce(wide.square(), 0.0).sum((2, 4)).flatten().sqrt()
        if how == "max":
            low = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
            return self._reduce(x, low).amax((2, 4)).flatten()
        total = self._reduce(x, 0.0).sum((2, 4)).flatten()
        return total if how == "sum" else total / self.cost.to(total.device)

    def _reduce(self, x: Tensor, fill: float) -> Tensor:
        stack, rows, cols = self.matrix
        _, down, across = self.grid
        r, c = self.block
        if down * r != rows or across * c != cols:
            x = F.pad(x, (0, across * c - cols, 0, down * r - rows), value=fill)
        return x.reshape(stack, down, r, across, c)

    def spread(self, units: Tensor) -> dict[str, Tensor]:
        stack, rows, cols = self.matrix
        _, down, across = self.grid
        r, c = self.block
        if units.numel() != self.n_units:
            raise StructureError(f"{self.member}: {self.n_units} units expected, got {units.numel()}")
        x = units.reshape(stack, down, 1, across, 1)
        if self.block != (1, 1):
            x = x.expand(stack, down, r, across, c)
        x = x.reshape(stack, down * r, across * c)[:, :rows, :cols]
        if self.flipped:
            x = x.transpose(1, 2)
        return {self.member: self.view.close(x)}


def _sizes(length: int, block: int) -> Tensor:
    full, rest = divmod(length, block)
    return torch.tensor([block] * full + ([rest] if rest else []), dtype=torch.int64)
