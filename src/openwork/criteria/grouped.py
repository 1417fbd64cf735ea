"""Importance of coupled units from the importance of their slices: how slices are put together and groups compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.protocols import Criterion
from openwork.core.stat import Stat
from openwork.errors import RecipeError

Over = Literal["sum", "mean", "max", "l2", "first", "geometric"]
Normalise = Literal["none", "mean", "max", "size"]
Sides = Literal["both", "made", "read"]


@dataclass(frozen=True)
class Grouped:
    """Ask ``criterion`` for every slice of a group by itself, then put the slices of a unit together.

    A criterion with ``whole = True`` chooses its slices itself; then only ``normalise`` is left to do.

    A slice is one dimension of one tensor: the filters that make a channel, the scale of its norm, the columns that
    read it. Structures without coupling have one slice.

    Args:
        criterion: any criterion that scores a partition from its tensors.
        over: ``sum``, ``mean``, ``max``, ``l2`` (root of the sum of squares), ``first`` (the slice that makes them)
            or ``geometric`` (the geometric mean) over the slices that a unit has.
        normalise: divide the scores of a group by their ``mean``, their ``max`` or the parameters of each unit
            (``size``), so that groups compare; ``none`` leaves them.
        sides: slices where units are ``made``, where they are ``read``, or ``both``. A group without any such slice
            uses all of them.
        biases: count slices of biases too.

    Raises:
        RecipeError: an unknown word.
    """

    criterion: Criterion
    over: Over = "mean"
    normalise: Normalise = "none"
    sides: Sides = "both"
    biases: bool = False

    def __post_init__(self) -> None:
        for name, words in (("over", Over), ("normalise", Normalise), ("sides", Sides)):
            if getattr(self, name) not in get_args(words):
                raise RecipeError(
                    f"Grouped: {name} must be one of {', '.join(get_args(words))}, got {getattr(self, name)!r}"
                )

    @property
    def needs(self) -> frozenset[Stat]:
        return self.criterion.needs

    @property
    def needs_grads(self) -> bool:
        return getattr(self.criterion, "needs_grads", False)

    def __call__(self, part: Partition, now: Now) -> Tensor:
        whole: list[Any] = [part]
        slices = whole if getattr(self.criterion, "whole", False) else slices_of(part, self.sides, self.biases)
        scores = torch.stack([self.criterion(piece, now).double() for piece in slices])
        there = torch.stack([piece.cost > 0 for piece in slices]).to(scores.device)
        score = _together(self.over, scores, there)
        if self.normalise == "size":
            return score / part.cost.to(score)
        if self.normalise == "none":
            return score
        by = score.abs().mean() if self.normalise == "mean" else score.abs().max()
        return score / by if float(by) > 0 else score


def _together(over: Over, scores: Tensor, there: Tensor) -> Tensor:
    """``[slices, units]`` -> ``[units]``; ``there`` says which slices a unit has."""
    count = there.sum(0).clamp(min=1)
    here = scores * there
    if over == "sum":
        return here.sum(0)
    if over == "mean":
        return here.sum(0) / count
    if over == "max":
        return scores.masked_fill(~there, float("-inf")).amax(0)
    if over == "l2":
        return here.square().sum(0).sqrt()
    if over == "first":
        first = there.int().argmax(0, keepdim=True)
        return scores.gather(0, first)[0]
    tiny = torch.finfo(torch.float64).tiny
    return (scores.clamp_min(tiny).log() * there).sum(0).div(count).exp()


def slices_of(part: Partition, sides: Sides = "both", biases: bool = True) -> list[Any]:
    """The same units, seen in one dimension of one tensor each; the partition itself when it is not coupled."""
    sites = getattr(part, "sites", None)
    if sites is None:
        return [part]
    chosen = [s for s in sites if sides == "both" or s.consumes == (sides == "read")]
    if not biases:
        chosen = [s for s in chosen if not s.tensor.endswith("bias")]
    piece: Any = part
    return [replace(piece, sites=(s,)) for s in chosen or sites]
