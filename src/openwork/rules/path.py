"""The sparsity-indexed ODE as pure functions: direction, soft measures, densities and radii along the path.

PSO (Mo, Shi, Pan, ICML 2023). ``e = -grad E`` pulls towards a lower loss, ``g = -grad G`` towards a lower density.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from openwork.errors import OpenworkError, RecipeError

Field = TypeVar("Field", Tensor, list[Tensor], dict[str, Tensor])
"""One vector: a tensor, or several tensors that are meant to be concatenated but never are."""

MEASURES = ("l1", "l2")
PATHS = ("exp", "lin", "invexp", "hess")
RADII = ("fixed", "invexp", "hess", "search")
WIDEST = 4.0  # the radius at which `invexp` ends, and 1 + the slope of `hess`, in the paper's code

# A float64 copy of a whole model costs more in fresh memory than in arithmetic; pieces of this length stay in cache.
PIECE = 1 << 18


def pieces(field: Any) -> list[Tensor]:
    """The tensors of a field, in order."""
    if isinstance(field, Tensor):
        return [field]
    return list(field.values()) if isinstance(field, Mapping) else list(field)


def dot(a: Any, b: Any) -> float:
    """Inner product of two fields, accumulated in float64."""
    total = 0.0
    for x, y in zip(pieces(a), pieces(b), strict=True):
        for p, q in zip(_cut(x), _cut(y), strict=True):
            total += float((p * q).sum(dtype=torch.float64))
    return total


def norm(a: Any) -> float:
    """Euclidean norm of a field, accumulated in float64; NaN or infinite when any entry is."""
    return math.sqrt(
        sum(float(torch.linalg.vector_norm(p, dtype=torch.float64)) ** 2 for x in pieces(a) for p in _cut(x))
    )


def _cut(x: Tensor) -> Iterator[Tensor]:
    return iter((x,) if x.numel() <= PIECE else x.reshape(-1).split(PIECE))


def direction(e: Field, g: Field, radius: float, tol: float | None = None) -> Field:
    """The minimiser F of ``-e.F`` subject to ``g.F = 1`` and ``|F| <= radius / |g|``.

    ``F = g / |g|^2 + sqrt(radius^2 - 1) / |g| * e_perp / |e_perp|``, the well-conditioned form of the paper's
    ``x e + y g``. Only the direction of ``e`` matters. Where ``e`` is zero or parallel to ``g`` up to rounding
    (``|e_perp| <= tol |e|``; 16 machine epsilons unless given) the second term is left out: the shortest of all
    equally good answers.

    Args:
        e: minus the gradient of the energy; a tensor, a list or a dict of tensors.
        g: minus the gradient of the density, shaped like ``e``.
        radius: dimensionless, at least 1; at 1 the answer is ``g / |g|^2`` whatever ``e`` is.
        tol: when to call ``e`` parallel to ``g``.

    Raises:
        OpenworkError: a radius below 1 or ``g = 0``.

    Examples:
        >>> direction(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 0.0]), radius=1.25)
        tensor([0.5000, 0.3750])
    """
    if not 1 <= radius < math.inf:
        raise OpenworkError(f"direction: the radius must be at least 1 and finite, got {radius}; below 1 nothing fits")
    size = norm(g)
    if size == 0:
        raise OpenworkError("direction: the gradient of the density must not be zero; every mask entry is zero")
    pulls, slopes = pieces(e), pieces(g)
    along = dot(pulls, slopes) / size**2
    across = [torch.sub(x, y, alpha=along) for x, y in zip(pulls, slopes, strict=True)]
    whole, rest = norm(pulls), norm(across)
    if tol is None:
        tol = 16 * max(torch.finfo(x.dtype).eps for x in across)
    if radius == 1 or rest <= tol * whole:
        return _like(g, [y / size**2 for y in slopes])
    if rest < 0.5 * whole:  # cancellation left a part along g: subtract it once more
        again = dot(across, slopes) / size**2
        across = [x.sub_(y, alpha=again) for x, y in zip(across, slopes, strict=True)]
        rest = norm(across)
    turn = math.sqrt(radius**2 - 1) / (size * rest)
    return _like(g, [x.mul_(turn).add_(y, alpha=size**-2) for x, y in zip(across, slopes, strict=True)])


def _like(field: Field, tensors: list[Tensor]) -> Any:
    if isinstance(field, Tensor):
        return tensors[0]
    return dict(zip(field, tensors, strict=True)) if isinstance(field, Mapping) else tensors


@dataclass(frozen=True, eq=False)
class Measure:
    """Soft density ``G`` of a mask whose entries stand for ``cost`` weights each, ``P`` in all.

    ``l2``: ``sqrt(sum n m^2 / P)``, which is ``sqrt(rho)`` at a binary mask of density rho; ``l1``: ``sum n |m| / P``,
    which is rho there. Both are 1 at the all-ones mask.

    Examples:
        >>> mask, cost = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.ones(4)
        >>> Measure("l1", cost).value(mask), Measure("l2", cost).value(mask)
        (0.25, 0.5)
    """

    kind: str
    cost: Tensor

    def __post_init__(self) -> None:
        if self.kind not in MEASURES:
            raise RecipeError(f"measure must be one of {', '.join(MEASURES)}, got {self.kind!r}")

    @cached_property
    def total(self) -> float:
        """P."""
        return float(self.cost.sum(dtype=torch.float64))

    def value(self, mask: Tensor) -> float:
        """``G(m)``."""
        if self.kind == "l1":
            return dot(self.cost, mask.abs()) / self.total
        return math.sqrt(dot(self.cost * mask, mask) / self.total)

    def value_and_grad(self, mask: Tensor) -> tuple[float, Tensor]:
        """``G(m)`` and ``grad G(m)``, zero at the all-zero mask (where l2 has no gradient)."""
        if self.kind == "l1":
            return self.value(mask), self.cost * mask.sign() / self.total
        weighted = self.cost * mask
        value = math.sqrt(dot(weighted, mask) / self.total)
        return value, weighted.div_(self.total * value) if value else weighted


def densities(kind: str, start: float, end: float, steps: int) -> list[float]:
    """The ``steps + 1`` densities from ``start`` to ``end``; their differences are the step sizes ``dt``.

    ``exp`` falls by equal factors (small steps last), ``invexp`` is its mirror image (small steps first), ``lin`` falls
    by equal amounts. ``hess`` cannot be planned, see ``hess_step``.

    Examples:
        >>> densities("exp", 1.0, 0.25, 2), densities("invexp", 1.0, 0.25, 2), densities("lin", 1.0, 0.25, 3)
        ([1.0, 0.5, 0.25], [1.0, 0.75, 0.25], [1.0, 0.75, 0.5, 0.25])
    """
    at = [k / steps for k in range(steps)]
    if kind == "exp":
        return [*(start ** (1 - t) * end**t for t in at), end]
    if kind == "invexp":
        return [*(start + end - start**t * end ** (1 - t) for t in at), end]
    if kind == "lin":
        return [*(start + (end - start) * t for t in at), end]
    raise RecipeError(f"path must be one of exp, lin, invexp to be planned, got {kind!r}")


def hess_step(remaining: float, steepness: Sequence[float], left: int) -> float:
    """A step of size proportional to ``1 / |grad E|``, normalised to the distance that remains.

    Args:
        remaining: density still to lose.
        steepness: ``|grad E|`` at every step so far, the present one last; the steps to come are taken to be like the
            mean of these.
        left: steps left, this one included; the last one takes all that remains.

    Examples:
        >>> hess_step(0.5, [2.0, 2.0], 4), hess_step(0.5, [1.0, 4.0], 1)
        (0.125, 0.5)
    """
    speeds = [1 / s for s in steepness if s > 0]
    if steepness[-1] <= 0 or not speeds:
        return remaining / left
    return remaining * speeds[-1] / (speeds[-1] + (left - 1) * sum(speeds) / len(speeds))


def radius_at(kind: str, radius: float, k: int, steps: int, steep: float) -> float:
    """The radius of step ``k``: ``fixed``; ``invexp``, from ``radius`` to 4; ``hess``, larger where the loss is steep.

    ``search`` starts from ``radius`` at every step.

    Examples:
        >>> radius_at("invexp", 1.0, 0, 2, 0.0), radius_at("invexp", 1.0, 1, 2, 0.0), radius_at("hess", 1.1, 0, 2, 1.0)
        (2.0, 4.0, 4.0)
    """
    if kind in ("fixed", "search"):
        return radius
    if kind == "invexp":
        return WIDEST * (radius / WIDEST) ** (1 - (k + 1) / steps)
    if kind == "hess":
        return max(radius, 1 + (WIDEST - 1) * steep)
    raise RecipeError(f"radius_path must be one of {', '.join(RADII)}, got {kind!r}")
