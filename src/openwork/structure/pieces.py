"""The part of a partition that one rank holds when its tensor is sharded (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from openwork.core.across import Across, Traffic
from openwork.core.partition import Pool
from openwork.core.protocols import Structure
from openwork.core.shards import is_sharded, like, local, mesh_of, rows_of
from openwork.errors import StructureError
from openwork.structure.tiles import Tiles


@dataclass(frozen=True)
class Piece:
    """The units of ``tiles``, a partition of the rows that this rank holds, as a part of a larger partition.

    ``n_units``, ``cost``, ``pool`` and ``spread`` are about this rank; ``across`` says which units of all they are.
    Structures with runs of their own (N:M, per row) choose inside each rank, without a word to the others.
    """

    tiles: Tiles
    whole: tuple[int, ...]
    rows: int
    across: Across

    @property
    def members(self) -> tuple[str, ...]:
        return self.tiles.members

    @property
    def n_units(self) -> int:
        return self.tiles.n_units

    @property
    def cost(self) -> Tensor:
        return self.tiles.cost

    @property
    def quota(self) -> tuple[int, int] | None:
        return self.tiles.quota

    def scope(self) -> int | Tensor | Across | None:
        return self.tiles.run or self.across

    def pool(self, values: Mapping[str, Tensor], how: Pool = "sum") -> Tensor:
        return self.tiles.pool(values, how)

    def spread(self, units: Tensor) -> dict[str, Tensor]:
        return self.tiles.spread(units)

    def joined(self, units: Tensor, param: Tensor) -> Tensor:
        """This rank's values of units -> a ``DTensor`` ``[rows of units, units per row]`` for checkpoints."""
        return like(param, units.reshape(-1, self.across.total // self.rows), self.rows)

    def cut(self, units: Tensor) -> Tensor:
        """Inverse of ``joined``, also of the values of all units from a run in one process: ``[n_units]``."""
        flat = local(units).flatten()
        whole = not is_sharded(units) and len(flat) == self.across.total
        return flat[self.across.first : self.across.first + self.n_units] if whole else flat


def piece_of(param: Any, tiles: Any, structure: Structure, traffic: Traffic) -> Piece:
    """The piece of ``tiles``, a partition of the whole of ``param``, that lies on this rank.

    Raises:
        StructureError: the tensor is not cut by rows, or units would be cut.
    """
    mesh, dim = mesh_of(param)
    name = tiles.members[0]
    shape = tuple(param.shape)
    if dim is None:
        raise StructureError(
            f"{name}: a sharded parameter must be cut by rows (Shard(0)) along one mesh dimension, got "
            f"{param.placements}; prune before sharding, or leave it out with Select(exclude=({name!r},))"
        )
    ranks, size = mesh.size(dim), -(-shape[0] // mesh.size(dim))
    view, height = tiles.view, tiles.block[0]
    stacked = view.folded[0] > 1
    cut = ranks > 1 and size < shape[0] and not stacked and size % height
    if view.order[0] != 0 or tiles.flipped or cut:
        raise StructureError(
            f"{name}: its {shape[0]} rows lie on {ranks} ranks, {size} on each, which would cut units of {structure}; "
            "prune before fully_shard, or take Element, Row or blocks whose height divides the rows of a rank"
        )
    first, last = rows_of(shape[0], mesh, dim)
    stack, rows, columns = view.folded
    folded = (last - first, rows, columns) if stacked else (stack, last - first, columns)
    mine = replace(tiles, view=replace(view, shape=(last - first, *shape[1:]), folded=folded))
    tall = shape[0] if stacked else -(-shape[0] // height)  # rows of units
    across = Across(
        mesh.get_group(dim), (first if stacked else -(-first // height)) * (tiles.n_units // tall), tiles.n_units,
        torch.device(mesh.device_type), traffic,
    )  # fmt: skip
    return Piece(mine, shape, tall, across)
