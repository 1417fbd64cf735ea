"""One step of the sparsity-indexed ODE: direction, soft measures, step sizes. Pure functions on lists of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.errors import OpenworkError

Field = list[Tensor]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product over all tensors, accumulated in float64."""
    return sum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))


def norm(a: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors, accumulated in float64."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in a))


def direction(e: Sequence[Tensor], g: Sequence[Tensor], radius: float, tol: float = 1e-12) -> Field:
    """The solution F of ``min -e.F  s.t.  g.F = 1, |F| <= radius / |g|``."""
    size = norm(g)
    if size == 0:
        raise OpenworkError("direction: the gradient of the measure must not be zero; every mask entry is zero")
    along = dot(e, g) / size**2
    across = [x - along * y for x, y in zip(e, g, strict=True)]
    rest = norm(across)
    forward = [y / size**2 for y in g]
    if radius <= 1 or rest <= tol * norm(e) or rest == 0:
        return forward
    pull = math.sqrt(radius**2 - 1) / size / rest
    return [f + pull * a for f, a in zip(forward, across, strict=True)]


@dataclass(frozen=True)
class Measure:
    """Soft density ``G`` of a mask with ``cost`` weights behind every entry.

    ``l2``: ``sqrt(sum n m^2 / P)``, 1 at the all-ones mask and ``sqrt(rho)`` at a binary mask of density rho;
    ``l1``: ``sum n |m| / P``.
    """

    kind: str
    total: float

    def value(self, masks: Sequence[Tensor], costs: Sequence[Tensor]) -> float:
        """``G(m)``."""
        if self.kind == "l1":
            return sum(float((n * m.abs()).sum(dtype=torch.float64)) for m, n in zip(masks, costs, strict=True)) / self.total
        squares = sum(float((n * m.square()).sum(dtype=torch.float64)) for m, n in zip(masks, costs, strict=True))
        return math.sqrt(squares / self.total)

    def slope(self, masks: Sequence[Tensor], costs: Sequence[Tensor]) -> Field:
        """``grad G(m)``."""
        if self.kind == "l1":
            return [n * m.sign() / self.total for m, n in zip(masks, costs, strict=True)]
        size = self.value(masks, costs)
        if size == 0:
            raise OpenworkError("Measure: every mask entry is zero, so the density has no direction")
        return [n * m / (self.total * size) for m, n in zip(masks, costs, strict=True)]


def densities(kind: str, start: float, end: float, steps: int) -> list[float]:
    """Densities from ``start`` to ``end`` in ``steps`` steps: ``exp`` (equal factors), ``lin``, or ``invexp``."""
    at = [k / steps for k in range(steps + 1)]
    if kind == "exp":
        return [start ** (1 - t) * end**t for t in at]
    if kind == "invexp":
        return [start + end - start**t * end ** (1 - t) for t in at]
    return [start + (end - start) * t for t in at]
