"""The structures a user names: element, row, column, block, N:M, filter, kernel, group.

All read a weight as the matrix ``(out, in)``; convolutions as ``(out, kernel positions x in)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from openwork.core.targets import Target
from openwork.core.views import kernel_view
from openwork.errors import StructureError
from openwork.structure.tiles import Tiles


class Shape:
    """What all structures share: most fix no density."""

    @property
    def density(self) -> float | None:
        return None

    def fit(self, target: Target) -> Tiles | str:
        """The partition of one target, or the reason why the structure does not apply to it."""
        raise StructureError(f"{type(self).__name__} does not say how it fits a tensor")


@dataclass(frozen=True)
class Element(Shape):
    """Single weights (unstructured). ``per="row"`` compares inside each output row, ``"tensor"`` over the tensor."""

    per: Literal["tensor", "row"] = "tensor"

    def __post_init__(self) -> None:
        if self.per not in ("tensor", "row"):
            raise StructureError(f"Element: per must be 'tensor' or 'row', got {self.per!r}")

    def fit(self, target: Target) -> Tiles:
        return Tiles(target.name, target.view, run=target.view.folded[2] if self.per == "row" else None)


@dataclass(frozen=True)
class Row(Shape):
    """Whole output rows: the incoming weights of one neuron or one convolution filter.

    In a grouped transposed convolution a row is the same output of every group.
    """

    def fit(self, target: Target) -> Tiles:
        return Tiles(target.name, target.view, (1, target.view.folded[2]))


@dataclass(frozen=True)
class Column(Shape):
    """Whole columns: the outgoing weights of one input (for convolutions, of one channel at one position).

    In a grouped convolution a column is the same input of every group.
    """

    def fit(self, target: Target) -> Tiles:
        return Tiles(target.name, target.view, (target.view.folded[1], 1))


@dataclass(frozen=True)
class Block(Shape):
    """Blocks of ``rows`` outputs x ``cols`` inputs; blocks at the edge may be smaller.

    Convolutions in groups (depthwise ones too) stay dense: the outputs of a block would read different inputs, and no
    kernel skips such blocks. ``Element`` and ``Kernel`` prune them.

    Examples:
        >>> Block(8, 8)
        Block(rows=8, cols=8)
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (_is_positive(self.rows) and _is_positive(self.cols)):
            raise StructureError(f"Block: rows and cols must be positive integers, got {self.rows!r} and {self.cols!r}")

    def fit(self, target: Target) -> Tiles | str:
        if target.groups > 1:
            return f"a convolution in {target.groups} groups, where the outputs of a block read different inputs"
        _, rows, cols = target.view.folded
        tiles = Tiles(target.name, target.view, (self.rows, self.cols))
        if self.rows > rows and self.cols > cols:
            raise StructureError(
                f"{target.name}: Block({self.rows}, {self.cols}) must fit into the {rows} x {cols} matrix, but "
                "it is larger in "
                "both directions; choose a smaller block or leave the layer out with "
                f"Select(exclude=({target.name!r},))"
            )
        return tiles


@dataclass(frozen=True)
class NM(Shape):
    """Keep ``keep`` of every ``of`` consecutive weights, along the inputs (``dim=1``) or the outputs (``dim=0``).

    The density is ``keep / of`` by definition. In convolutions runs go along the channels, never across positions.

    Examples:
        >>> NM(keep=2, of=4).density
        0.5
    """

    keep: int
    of: int
    dim: Literal[0, 1] = 1

    def __post_init__(self) -> None:
        if not (_is_positive(self.keep) and _is_positive(self.of)) or self.keep > self.of:
            raise StructureError(f"NM: keep must be between 1 and of, got keep={self.keep!r}, of={self.of!r}")
        if self.dim not in (0, 1):
            raise StructureError(f"NM: dim must be 1 (inputs) or 0 (outputs), got {self.dim!r}")

    @property
    def density(self) -> float:
        return self.keep / self.of

    def fit(self, target: Target) -> Tiles:
        length = target.view.inner if self.dim == 1 else target.view.folded[1]
        if length % self.of:
            raise StructureError(
                f"{target.name}: {self.keep} of {self.of} needs dimension {self.dim} divisible by {self.of}, but it is "
                f"{length} (shape {target.shape}); choose another pattern or leave the layer out with "
                f"Select(exclude=({target.name!r},))"
            )
        return Tiles(target.name, target.view, run=self.of, quota=(self.keep, self.of), flipped=self.dim == 0)


@dataclass(frozen=True)
class Filter(Shape):
    """Whole convolution filters ``(in, *kernel)`` of one output channel; other layers are left out."""

    def fit(self, target: Target) -> Tiles | str:
        if not target.conv:
            return "Filter applies to convolutions only (Row does the same for linear layers)"
        return Row().fit(target)


@dataclass(frozen=True)
class Kernel(Shape):
    """Single 2-D kernels: all positions of one (output, input) channel pair; other layers are left out."""

    def fit(self, target: Target) -> Tiles | str:
        if not target.conv:
            return "Kernel applies to convolutions only"
        view = kernel_view(target.view)
        return Tiles(target.name, view, (1, view.inner))


@dataclass(frozen=True)
class InputChannel(Shape):
    """All weights that one input channel meets: every output and every kernel position (input features, if linear).

    In a grouped convolution a unit is the same input of every group.
    """

    def fit(self, target: Target) -> Tiles:
        if not target.conv:
            return Column().fit(target)
        view = kernel_view(target.view)
        return Tiles(target.name, view, (view.folded[1], view.inner))


@dataclass(frozen=True)
class GroupOf(Shape):
    """Groups of ``size`` consecutive weights along the inputs (``dim=1``) or the outputs (``dim=0``).

    The last group of a row may be smaller; in convolutions groups of inputs stay inside one kernel position.
    ``per="row"`` compares inside each row of groups, so that all rows keep as many; ``"tensor"`` over the tensor.
    """

    size: int
    dim: Literal[0, 1] = 1
    per: Literal["tensor", "row"] = "tensor"

    def __post_init__(self) -> None:
        if not _is_positive(self.size):
            raise StructureError(f"GroupOf: size must be a positive integer, got {self.size!r}")
        if self.dim not in (0, 1):
            raise StructureError(f"GroupOf: dim must be 1 (inputs) or 0 (outputs), got {self.dim!r}")
        if self.per not in ("tensor", "row"):
            raise StructureError(f"GroupOf: per must be 'tensor' or 'row', got {self.per!r}")

    def fit(self, target: Target) -> Tiles:
        inner = target.view.inner
        if self.dim == 1 and target.conv and inner != target.view.folded[2] and inner % self.size:
            raise StructureError(
                f"{target.name}: GroupOf({self.size}) needs a channel count divisible by {self.size}, but it "
                f"is {inner}; "
                f"choose another size or leave the layer out with Select(exclude=({target.name!r},))"
            )
        block = (1, self.size) if self.dim == 1 else (self.size, 1)
        tiles = Tiles(target.name, target.view, block)
        return tiles if self.per == "tensor" else replace(tiles, run=tiles.grid[2])


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
