"""Alternating dense, soften (gradually sparser) and sparse phases, with restarts of the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from openwork.core.now import Phase
from openwork.errors import RecipeError
from openwork.schedules.shapes import check_density

Kind = Literal["dense", "soften", "sparse"]


@dataclass(frozen=True)
class Stretch:
    """One phase: what it does and its share of the whole training."""

    phase: Kind
    fraction: float

    def __post_init__(self) -> None:
        if self.phase not in ("dense", "soften", "sparse"):
            raise RecipeError(f"Stretch: phase must be 'dense', 'soften' or 'sparse', got {self.phase!r}")
        if not 0 < self.fraction <= 1:
            raise RecipeError(f"Stretch: fraction must be in (0, 1], got {self.fraction}")


@dataclass(frozen=True)
class Phases:
    """A sequence of phases over ``steps`` optimiser steps, ending sparse.

    In a ``soften`` phase the sparsity rises as ``s (1 - e^(-c u)) / (1 - e^(-c))`` with ``u`` the progress inside the
    phase and ``c = exponent`` (SequentialAttention++), updated every ``every`` steps and exactly at its end.

    ``restart`` says at which phase starts the optimiser forgets its moments: all, dense ones only (AC/DC), or none.
    """

    density: float
    steps: int
    stretches: tuple[Stretch, ...]
    exponent: float = 4.0
    every: int = 1
    restart: Literal["all", "dense", "none"] = "all"

    def __post_init__(self) -> None:
        check_density(self.density, "Phases")
        object.__setattr__(self, "stretches", tuple(self.stretches))
        if not self.stretches or self.stretches[-1].phase != "sparse":
            raise RecipeError("Phases: the last stretch must be sparse, otherwise the density is never reached")
        total = sum(s.fraction for s in self.stretches)
        if abs(total - 1) > 1e-6:
            raise RecipeError(f"Phases: the fractions must sum to 1, got {total:.6f}")
        if self.every < 1 or not self.exponent > 0:
            raise RecipeError(f"Phases: needs every >= 1 and exponent > 0, got {self.every} and {self.exponent}")
        if self.restart not in ("all", "dense", "none"):
            raise RecipeError(f"Phases: restart must be 'all', 'dense' or 'none', got {self.restart!r}")
        short = [s for s, (a, b) in zip(self.stretches, self.bounds, strict=True) if b <= a]
        if short:
            raise RecipeError(
                f"Phases: {self.steps} steps give the {short[0].phase} phase of {short[0].fraction:.3f} no "
                "step; train longer"
            )

    @cached_property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First and one-past-last step of every phase."""
        edges, done = [0], 0.0
        for stretch in self.stretches:
            done += stretch.fraction
            edges.append(round(done * self.steps))
        edges[-1] = self.steps  # the fractions need not sum to 1 to the last bit
        return tuple(pairwise(edges))

    @property
    def last(self) -> int:
        return self.bounds[-1][0]

    @property
    def drive(self) -> Literal["attach"]:
        return "attach"

    def sparsity(self, progress: float) -> float:
        """The soften curve: 0 at 0, ``1 - density`` at 1."""
        return (1 - self.density) * (1 - math.exp(-self.exponent * progress)) / (1 - math.exp(-self.exponent))

    def __call__(self, step: int) -> Phase:
        at = next((i for i, (a, b) in enumerate(self.bounds) if a <= step < b), len(self.bounds) - 1)
        begin, end = self.bounds[at]
        kind, first = self.stretches[at].phase, step == begin
        restart = first and at > 0 and (self.restart == "all" or (self.restart == "dense" and kind == "dense"))
        if kind == "dense":
            return Phase(1.0, first and at > 0, kind, restart)
        if kind == "sparse":
            return Phase(self.density, first, kind, restart)
        due = (step - begin) % self.every == 0
        held = step - (step - begin) % self.every
        return Phase(1 - self.sparsity((held - begin) / (end - begin)), due and step > begin, kind, restart)
