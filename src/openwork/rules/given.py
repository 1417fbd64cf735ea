"""A mask that is known already, kept as it is or shuffled: the control that tells which weights from how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from openwork.core.across import Across
from openwork.core.masks import pack_bits, unpack_bits
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.core.select import keep_top
from openwork.criteria import Random
from openwork.errors import FileError

COUNTS = "units"


@dataclass(frozen=True)
class Given(Rule):
    """Keep the units that a file names; with ``shuffled`` as many others, drawn anew inside each region.

    A shuffled mask keeps what a method decided about layers (and rows, and groups of N:M) and forgets which weights it
    chose. A method whose mask trains no better than its shuffled one has found layer shares, not weights (Su et al.,
    Sanity-Checking Pruning Methods, 2020; Frankle et al., Pruning Neural Networks at Initialization, 2021).

    Attributes:
        path: a safetensors file of ``units_to_bytes``.
        shuffled: keep the counts only.
    """

    path: str
    shuffled: bool = False

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        told = read_units(Path(self.path))
        wrong = sorted(set(told) ^ set(now.parts)) or [n for n, p in now.parts.items() if told[n].numel() != p.n_units]
        if wrong:
            raise FileError(
                f"{self.path}: the mask is of another model or structure: {wrong[0]} is missing, unknown or has "
                f"another number of units ({len(wrong)} tensors)"
            )
        units = {n: told[n].to(now.units[n].device) for n in now.parts}
        if self.shuffled:  # not by the numbers that have drawn a random mask of this seed
            other = replace(now, rng=torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=now.rng))))
            units = {n: self._moved(n, u, other) for n, u in units.items()}
        return Update(units, state=state)

    @staticmethod
    def _moved(name: str, units: Tensor, now: Now) -> Tensor:
        scope = now.parts[name].scope()
        if scope is None or isinstance(scope, Across):
            keep: int | Tensor = int(units.sum())
        elif isinstance(scope, int):
            keep = units.view(-1, scope).sum(1)
        else:
            keep = torch.bincount(scope, weights=units.to(scope.device).double()).long()
        return keep_top(Random()(now.parts[name], now), keep, scope)


def units_to_bytes(units: Mapping[str, Tensor]) -> bytes:
    """The content of a file for ``Given``: one bit a unit, and how many units each partition has."""
    packed = {name: pack_bits(u) for name, u in units.items()}
    return save(packed, metadata={f"{COUNTS}.{name}": str(u.numel()) for name, u in units.items()})


def read_units(path: Path) -> dict[str, Tensor]:
    """Partition name -> bool ``[n_units]``.

    Raises:
        FileError: no such file, or not one of ``units_to_bytes``.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such mask")
    try:
        with safe_open(path, "pt") as file:
            sizes = file.metadata() or {}
        return {n: unpack_bits(t, (int(sizes[f"{COUNTS}.{n}"]),)) for n, t in load_file(path).items()}
    except (SafetensorError, KeyError, ValueError, OSError) as problem:
        if isinstance(problem, FileError):
            raise
        raise FileError(f"{path}: not a readable mask ({problem})") from None


def kept_share(path: str) -> float:
    """Units kept over units, of a file for ``Given``."""
    units = read_units(Path(path))
    return sum(int(u.sum()) for u in units.values()) / max(1, sum(u.numel() for u in units.values()))
