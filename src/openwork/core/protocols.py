"""The narrow interfaces that everything else implements. No implementation of a method lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from openwork.core.now import EMPTY, Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.core.targets import Target
from openwork.errors import OpenworkError


class Structure(Protocol):
    """A recipe for partitions: ``fit`` gives the partition of one target, or says why it does not apply."""

    @property
    def density(self) -> float | None:
        """The density that the structure itself fixes (N:M), else None."""
        ...

    def fit(self, target: Target) -> Partition | str: ...


@runtime_checkable
class Criterion(Protocol):
    """A score per unit, larger = keep. ``needs_grads = True`` says that it reads the gradients of a training step.

    ``sharded = True`` says that a unit's score follows from its own entries, so that pieces of a tensor can be scored.
    """

    @property
    def needs(self) -> frozenset[Stat]: ...
    def __call__(self, part: Partition, now: Now) -> Tensor: ...


class Allocation(Protocol):
    """Scores and a share -> how many units each partition (or each of its regions) keeps.

    ``sharded = True`` says that it counts right where partitions lie in pieces on several ranks; ``scored = False``
    that its unequal counts follow from shapes alone, so that they are known before anything is scored.
    """

    def __call__(self, now: Now, scores: Mapping[str, Tensor], share: float) -> dict[str, int | Tensor]: ...


class Rule:
    """Decides which units live. All moments are optional; state is tensors and plain data only."""

    needs: frozenset[Stat] = frozenset()
    needs_grads: bool = False
    """True: ``update`` reads ``now.grads``, so the rule only works under ``attach``."""
    sharded: bool = False
    """True: ``update`` works where every rank has a piece of every tensor (``part.scope()`` may be an ``Across``)."""

    def init(self, now: Now) -> Any:
        return None

    def penalty(self, now: Now, state: Any) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def on_grad(self, now: Now, state: Any) -> Mapping[str, Tensor]:
        """After backward, before the optimiser: parameter name -> replacement gradient."""
        return EMPTY

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        """When the phase asks for it: the new units."""
        return Update(dict(now.units), state=state)

    def recut(self, now: Now, update: Update, share: float) -> Mapping[str, Tensor] | None:
        """The units of ``update`` at another share, cut from its ``scores``; None when it must be asked afresh.

        Budgets in other units than units (multiply-accumulates, bytes) search for the share that meets them.
        """
        return None

    def chosen(self, update: Update) -> Mapping[str, Tensor] | None:
        """The units that an update lets live in the end, which budgets count; None when it chooses none.

        Rules that choose first and remove later say here what they chose.
        """
        return update.units

    def settled(self, now: Now, update: Update, units: Mapping[str, Tensor]) -> Update | None:
        """The update for other units than the ``chosen``; None when weights were corrected for just those."""
        return None if update.edits else replace(update, units=units)


class Schedule(Protocol):
    """Step -> Phase. Pure; frozen dataclasses with ``__call__``."""

    @property
    def density(self) -> float:
        """The share promised at the end."""
        ...

    @property
    def last(self) -> int:
        """The step from which the promise holds."""
        ...

    @property
    def drive(self) -> Literal["prune", "attach", "cycle"]:
        """The engine that a schedule of this kind is made for."""
        ...

    def __call__(self, step: int) -> Phase: ...


class Relaxation(Protocol):
    """How a weight and a mask give the weight used in forward and backward.

    Optional, looked up by the engine: ``group`` (options of the optimiser group of the gate parameters),
    ``optimizer(params)`` (gate parameters step with an optimiser of their own) and
    ``at_step(gates, weights, optimizer, step)`` (called before the first step, after every step and after loading, so
    it must be idempotent; ``weights`` are the tensors under the gates), and ``own_share = True`` (``gate`` is given the
    share that its own partition keeps in the end where an allocation shares unequally without scores, and not the share
    of the whole model), ``samples`` (forward passes that a training step averages the loss of) and
    ``at_update(gates, weights, revived, phase)`` (called after every choice of units, not after loading; ``gates`` are
    the gates of every partition, one for each tensor they stand on, ``revived`` its units that were off until now).
    """

    def gate(self, part: Partition, density: float) -> Gate | None:
        """A gate for one partition, or None when masks are written into the weights."""
        ...


class Gate(nn.Module):
    """A torch parametrisation owned by the engine; its parameters join the optimiser until ``finish`` folds it."""

    learns: ClassVar[str] = "gate values"
    """What ``learned`` gives, for messages."""
    reparametrises: ClassVar[bool] = False
    """True: what lies under the gate is not the weight itself; ``invert`` and ``bare`` then map between the two."""

    def set_units(self, units: Tensor) -> None:
        raise OpenworkError(f"{type(self).__name__} has no units")

    def learned(self) -> Tensor | None:
        """``[n_units]`` scores read by criteria, or None."""
        return None

    def invert(self, weight: Tensor) -> Tensor:
        """What must lie underneath for the training to start from ``weight``."""
        return weight

    def bare(self, raw: Tensor) -> Tensor:
        """The weight without its mask."""
        return raw
