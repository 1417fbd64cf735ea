"""What a method may read (``Now``), what a schedule says (``Phase``), what a rule answers (``Update``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from openwork.core.masks import masks_of
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic

EMPTY: Mapping[Any, Any] = MappingProxyType({})
Units = dict[str, Tensor]
"""Partition name -> bool ``[n_units]``, True = alive."""


@dataclass(frozen=True)
class Now:
    """The read-only situation in which a rule acts. Nothing in it may be changed.

    ``weights`` are the underlying tensors (before gates); ``grads`` are the gradients of the current step,
    which only ``attach`` can offer; ``learned`` holds the gate values ``[n_units]`` of soft relaxations; ``phase`` is
    the name of the schedule's present phase.
    """

    parts: Mapping[str, Partition]
    units: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    stats: Mapping[Stat, Any] = field(default_factory=lambda: EMPTY)
    grads: Mapping[str, Tensor] = field(default_factory=lambda: EMPTY)
    learned: Mapping[str, Tensor] = field(default_factory=lambda: EMPTY)
    step: int = 0
    phase: str = "sparse"
    rng: torch.Generator = field(default_factory=torch.Generator)
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, stat: Stat) -> Any:
        """The measured value of a statistic."""
        try:
            return self.stats[stat]
        except KeyError:
            raise MissingStatistic(
                f"{stat} was not measured here; list it in the rule's `needs` and use a driver that offers it"
            ) from None

    def grad(self, name: str) -> Tensor:
        """The dense gradient of one parameter at this step."""
        try:
            return self.grads[name]
        except KeyError:
            raise MissingStatistic(
                f"{name}: no gradient at step {self.step}; this rule reads the gradients of the current step, "
                "use ow.attach and call loss.backward() before optimizer.step()"
            ) from None

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks of the units alive now, parameter name -> bool; computed once."""
        if "masks" not in self._memo:
            self._memo["masks"] = masks_of(self.parts, self.units)
        return dict(self._memo["masks"])

    def at_masks(self, stat: Stat) -> Any:
        """A statistic that is a function of masks, at the present masks; computed once."""
        if stat not in self._memo:
            self._memo[stat] = self[stat](self.masks)
        return self._memo[stat]


@dataclass(frozen=True)
class Phase:
    """What a schedule says about one step."""

    share: float
    update: bool
    name: str = "sparse"
    restart: bool = False
    """Forget all optimiser moments before the next step (SequentialAttention++ and AC/DC phase changes)."""


@dataclass(frozen=True)
class Update:
    """What a rule answers: which units live, new weight values, its state, entries whose moments restart."""

    units: Mapping[str, Tensor]
    edits: Mapping[str, Tensor] = field(default_factory=lambda: EMPTY)
    state: Any = None
    fresh: Mapping[str, Tensor] = field(default_factory=lambda: EMPTY)
    log: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """Plain numbers or lists worth reporting (energies, regrowths); they end in ``Result.log``."""
    scores: Mapping[str, Tensor] = field(default_factory=lambda: EMPTY)
    """What the units were chosen by, for ``Rule.recut``."""
