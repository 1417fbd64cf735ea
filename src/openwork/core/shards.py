"""Tensors that lie in pieces on several ranks (``DTensor``, as FSDP2 makes them): pieces, regions, sums over ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.across import Across
from openwork.core.partition import Partition


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``; the module is not imported for the question."""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, getattr(known, "DTensor", ()))


def reshard(model: nn.Module) -> None:
    """Take back what FSDP2 has gathered.

    After a forward pass without a backward pass the root module still holds whole copies under the names of its
    parameters: what is written into the pieces would not be seen, and what is written into the copies is lost.
    """
    known: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if known is not None else ():
        if isinstance(module, known.FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """The piece that this rank holds, in the same memory; an ordinary tensor is its own piece."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        piece: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return piece.detach()


def like(param: Tensor, piece: Tensor, rows: int | None = None) -> Tensor:
    """A tensor cut like ``param``, of as many or of ``rows`` rows, whose piece on this rank is ``piece``.

    The inverse of ``local``; the piece itself when ``param`` is whole.
    """
    if not is_sharded(param):
        return piece
    from torch.distributed.tensor import DTensor

    spec: Any = param
    shape = torch.Size([param.shape[0] if rows is None else rows, *piece.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    made: Tensor = DTensor.from_local(
        piece.contiguous(), spec.device_mesh, spec.placements, run_check=False, shape=shape, stride=stride
    )
    return made


def across_of(parts: Mapping[str, Partition]) -> Across | None:
    """The ranks that hold the pieces of these partitions; None in an ordinary model."""
    return next((found for p in parts.values() if (found := getattr(p, "across", None)) is not None), None)


def total_of(part: Partition) -> int:
    """The units of a partition on all ranks."""
    across = getattr(part, "across", None)
    return part.n_units if across is None else int(across.total)


def shape_of(part: Partition, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The shape of the whole tensor that a partition begins with."""
    return tuple(getattr(part, "whole", None) or weights[part.members[0]].shape)


def summed_over(parts: Mapping[str, Partition], numbers: Mapping[str, int]) -> dict[str, int]:
    """One number per partition, added up over the ranks that hold its pieces, in one exchange for all."""
    across = across_of(parts)
    if across is None:
        return dict(numbers)
    return dict(zip(numbers, across.add(list(numbers.values())), strict=True))


def on_any(part: Partition, fact: bool) -> bool:
    """Whether a fact holds on any rank that has a piece of the partition; the same answer on all of them."""
    across = getattr(part, "across", None)
    return fact if across is None else bool(across.add([int(fact)])[0])


def counted(mask: Tensor, piece: Tensor) -> int:
    """How many entries of ``piece`` are true, on all ranks that hold pieces of ``mask``."""
    found = int(piece.sum())
    if not is_sharded(mask):
        return found
    mesh, dim = mesh_of(mask)
    return Across(mesh.get_group(dim), 0, 0, piece.device).add([found])[0]


def mesh_of(tensor: Any) -> tuple[Any, int | None]:
    """The device mesh of a sharded tensor and the mesh dimension along which its rows are cut.

    None: cut in another way than by rows (``Shard(0)``) along one dimension and repeated along the others.
    """
    cut = [i for i, p in enumerate(tensor.placements) if not p.is_replicate()]
    plain = len(cut) == 1 and type(tensor.placements[cut[0]]).__name__ == "Shard" and tensor.placements[cut[0]].dim == 0
    return tensor.device_mesh, cut[0] if plain else None


def rows_of(rows: int, mesh: Any, dim: int) -> tuple[int, int]:
    """(first, behind the last) of the rows of a tensor that this rank holds: full chunks first, as DTensor cuts."""
    size = -(-rows // mesh.size(dim))
    first = min(rows, size * mesh.get_local_rank(dim))
    return first, min(rows, first + size)


def piece_like(param: Tensor, whole: Tensor) -> Tensor:
    """This rank's piece of a tensor of the shape of ``param``; a whole tensor is cut as ``param`` is."""
    if is_sharded(whole) or not is_sharded(param):
        return local(whole)
    mesh, dim = mesh_of(param)
    return local(whole) if dim is None else whole[slice(*rows_of(param.shape[0], mesh, dim))]
