"""The only place where unit choices become masks, and where overlapping partitions are multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from openwork.core.partition import Partition
from openwork.core.shards import counted, local
from openwork.errors import FileError, OpenworkError


def masks_of(parts: Mapping[str, Partition], units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameter name -> bool mask; a tensor in several partitions gets the product of their masks."""
    masks: dict[str, Tensor] = {}
    for name, part in parts.items():
        for member, mask in part.spread(units[name]).items():
            masks[member] = masks[member] & mask if member in masks else mask
    return masks


class Masks(Mapping[str, Tensor]):
    """Final masks: parameter name -> bool tensor of the parameter's shape, True = kept. Read-only.

    Masks of sharded parameters are sharded alike (``DTensor``): all ranks count them together, or none.

    Examples:
        >>> m = Masks({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> m.kept(), m.total(), m.density
        (1, 4, 0.25)
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise OpenworkError(f"{name}: a mask must be bool, got {mask.dtype}")
        self._masks = {name: mask.detach().clone() for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.kept():,} of {self.total():,} kept)"

    def kept(self, name: str | None = None) -> int:
        """Kept entries of one tensor, or of all."""
        return sum(counted(m, local(m)) for n, m in self._masks.items() if name in (None, n))

    def total(self, name: str | None = None) -> int:
        """Entries of one tensor, or of all."""
        return sum(m.numel() for n, m in self._masks.items() if name in (None, n))

    @property
    def density(self) -> float:
        """Kept share of the masked tensors."""
        return self.kept() / self.total() if self.total() else 1.0

    def distance(self, other: Mapping[str, Tensor]) -> int:
        """Hamming distance: entries that are kept by exactly one of the two."""
        if set(self) != set(other):
            raise OpenworkError("masks of different tensors cannot be compared; both need the same names")
        return sum(counted(m, local(m) != local(other[n]).to(m.device)) for n, m in self._masks.items())

    def packed(self) -> dict[str, Tensor]:
        """Eight entries a byte (little-endian bit order), for files: name -> uint8 ``[ceil(n / 8)]``."""
        return {name: pack_bits(mask) for name, mask in self._masks.items()}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Masks:
        """Inverse of ``packed``."""
        lost = sorted(set(shapes) ^ set(packed))
        if lost:
            raise FileError(f"{lost[0]}: packed masks and shapes must name the same tensors; the file is damaged")
        return cls({name: unpack_bits(packed[name], tuple(shape)) for name, shape in shapes.items()})


def pack_bits(mask: Tensor) -> Tensor:
    """bool tensor -> uint8 ``[ceil(n / 8)]``."""
    flat = mask.detach().cpu().flatten()
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """uint8 ``[ceil(n / 8)]`` -> bool tensor of ``shape``."""
    n = 1
    for size in shape:
        n *= size
    if packed.dtype != torch.uint8 or packed.numel() != -(-n // 8):
        raise FileError(f"a packed mask of shape {shape} needs {-(-n // 8)} bytes, got {packed.numel()} {packed.dtype}")
    bits = (packed.flatten()[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:n].bool().view(shape)
