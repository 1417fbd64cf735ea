"""Depth as a structure: whole residual blocks are units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from openwork.core.partition import Partition
from openwork.core.targets import Select, Target, matches, refuse_unusable
from openwork.errors import StructureError
from openwork.graph.blocks import BlockOf, DepthCost, depth_cost, residual_blocks
from openwork.graph.example import Example
from openwork.graph.groups import Site
from openwork.structure.coupled import Coupled
from openwork.structure.cover import Covered
from openwork.structure.shapes import Shape


@dataclass(frozen=True)
class Depth(Shape):
    """Residual blocks that pass their input on when their parameters are zero; found by trying.

    Args:
        example: what the model is called with (shapes; the values are random).
        at_least: so many blocks stay.
        multiple: the kept blocks are a multiple of this.

    Raises:
        StructureError: bounds below 1.
    """

    example: Example
    at_least: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.at_least < 1 or self.multiple < 1:
            raise StructureError(
                f"layers() needs at_least and multiple of at least 1, got {self.at_least!r} and {self.multiple!r}"
            )

    def __str__(self) -> str:
        return "layers()"

    def fit(self, target: Target) -> str:
        return f"{self} removes blocks of a whole model, not parts of one tensor"

    def cost(self, model: nn.Module, where: Select = Select()) -> DepthCost:
        """Parameters, bytes and multiply-accumulates of a model as a function of the blocks alive."""
        return depth_cost(model, self.example, self.blocks(model, where))

    def blocks(self, model: nn.Module, where: Select = Select()) -> list[BlockOf]:
        """The blocks that can go and that the selection allows, in the order in which they run."""
        params = dict(model.named_parameters())
        return [b for b in residual_blocks(model, self.example)[0] if not _left_out(b, params, where)]

    def fit_model(self, model: nn.Module, where: Select) -> tuple[dict[str, Partition], list[Covered]]:
        """One partition ``layers`` whose units are the ``blocks``, and the coverage.

        A block is included when a pattern names one of its tensors.

        Raises:
            StructureError: no block can go; the reasons are listed.
        """
        refuse_unusable(model, where)
        blocks, reasons = residual_blocks(model, self.example)
        params = dict(model.named_parameters())
        unit: dict[str, int] = {}
        for block in blocks:
            if why := _left_out(block, params, where):
                reasons[block.path] = why
            else:
                unit |= dict.fromkeys(block.params, len({*unit.values()}))
        if not unit:
            listed = "; ".join(f"{path}: {why}" for path, why in reasons.items()) or "no module keeps the shape"
            raise StructureError(f"{self} finds nothing to prune in {type(model).__name__} ({listed})")
        sites = tuple(Site(n, 0, torch.full((params[n].shape[:1] or (1,)), i), False, True) for n, i in unit.items())
        coverage = []
        for name, param in params.items():
            above = [why for path, why in reasons.items() if name.startswith(f"{path}.")]
            why = "" if name in unit else above[-1] if above else "in no residual block"
            groups = ("layers",) if name in unit else ()
            coverage.append(Covered(name, tuple(param.shape), param.numel(), len(groups), why, groups))
        shapes = tuple((n, tuple(params[n].shape)) for n in unit)
        units = len({*unit.values()})
        return {"layers": Coupled("layers", units, sites, shapes, "layers", "", self.multiple, self.at_least)}, coverage


def _left_out(block: BlockOf, params: dict[str, nn.Parameter], where: Select) -> str:
    if where.include and not any(matches(p, n) for p in where.include for n in block.params):
        return "not selected by include"
    if any(matches(p, n) for p in where.exclude for n in block.params):
        return "excluded"
    stuck = [n for n in block.params if not params[n].requires_grad]
    return f"holds {stuck[0]}, which is frozen (requires_grad is False)" if stuck else ""


def layers(example: Any, *, multiple: int = 1, at_least: int = 1) -> Depth:
    """Whole residual blocks: the small model skips them.

    A block can go when it passes its input on with all its parameters at zero, which is tried on ``example``: blocks of
    residual networks after a rectifier, pre-norm layers of transformers. Blocks that change the width, and post-norm
    layers, stay. Soft gates stand on all tensors of a block.

    Args:
        example: what the model is called with.
        multiple: keep a multiple of so many blocks.
        at_least: keep so many blocks.

    Examples:
        >>> layers(example=torch.zeros(1, 3, 32, 32)).at_least
        1
    """
    return Depth(Example.of(example), at_least, multiple)
