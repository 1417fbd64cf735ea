"""One-shot, gradual, periodic and round-wise schedules. ``share`` is the kept share; densities, never sparsities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openwork.core.now import Phase
from openwork.errors import RecipeError


def check_density(density: float, owner: str) -> None:
    """Refuse anything that is not a share in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        hint = (
            f"; {density:g} % is {density / 100:g}" if isinstance(density, int | float) and 1 < density <= 100 else ""
        )
        raise RecipeError(f"{owner}: density must be a kept share in (0, 1], got {density!r}{hint}")


def _check_window(owner: str, begin: int, end: int, every: int) -> None:
    if begin < 0 or end <= begin:
        raise RecipeError(f"{owner}: needs 0 <= begin < end, got {begin} and {end}; use OneShot for one step")
    if every < 1:
        raise RecipeError(f"{owner}: every must be at least 1 step, got {every}")


@dataclass(frozen=True)
class OneShot:
    """Everything at one step, then fixed."""

    density: float
    at: int = 0

    def __post_init__(self) -> None:
        check_density(self.density, "OneShot")
        if self.at < 0:
            raise RecipeError(f"OneShot: at must not be negative, got {self.at}")

    @property
    def last(self) -> int:
        return self.at

    @property
    def drive(self) -> Literal["prune", "attach"]:
        return "attach" if self.at else "prune"

    def __call__(self, step: int) -> Phase:
        if step < self.at:
            return Phase(1.0, False, "dense")
        return Phase(self.density, step == self.at, "sparse")


@dataclass(frozen=True)
class _Gradual:
    """From ``initial`` to ``density`` between ``begin`` and ``end``, every ``every`` steps and once more at ``end``."""

    density: float
    begin: int
    end: int
    every: int = 1
    initial: float = 1.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_density(self.density, owner)
        check_density(self.initial, owner)
        _check_window(owner, self.begin, self.end, self.every)
        if self.initial < self.density:
            raise RecipeError(f"{owner}: initial {self.initial} must not be below density {self.density}")

    @property
    def last(self) -> int:
        return self.end

    @property
    def drive(self) -> Literal["attach"]:
        return "attach"

    def share(self, progress: float) -> float:
        """The kept share at ``progress`` in [0, 1]."""
        raise RecipeError(f"{type(self).__name__} has no curve")

    def __call__(self, step: int) -> Phase:
        if step < self.begin:
            return Phase(1.0, False, "dense")
        if step >= self.end:
            return Phase(self.density, step == self.end, "sparse")
        due = (step - self.begin) % self.every == 0
        at = step - (step - self.begin) % self.every
        return Phase(self.share((at - self.begin) / (self.end - self.begin)), due, "sparsify")


@dataclass(frozen=True)
class Linear(_Gradual):
    """Density falls on a straight line."""

    def share(self, progress: float) -> float:
        return self.initial + (self.density - self.initial) * progress


@dataclass(frozen=True)
class Cubic(_Gradual):
    """``s_t = s_f + (s_i - s_f) (1 - progress)^power`` in sparsities (Zhu and Gupta, eq. 1): fast first, slow later."""

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power > 0:
            raise RecipeError(f"Cubic: power must be positive, got {self.power}")

    def share(self, progress: float) -> float:
        return self.density + (self.initial - self.density) * (1 - progress) ** self.power


@dataclass(frozen=True)
class Exponential(_Gradual):
    """Density falls by equal factors: ``initial^(1-p) density^p``."""

    def share(self, progress: float) -> float:
        return self.initial ** (1 - progress) * self.density**progress


@dataclass(frozen=True)
class Periodic:
    """A constant share from step 0, with new units asked for every ``every`` steps until ``end`` (drop and grow)."""

    density: float
    every: int
    end: int

    def __post_init__(self) -> None:
        check_density(self.density, "Periodic")
        _check_window("Periodic", 0, self.end, self.every)

    @property
    def last(self) -> int:
        return 0

    @property
    def drive(self) -> Literal["attach"]:
        return "attach"

    def __call__(self, step: int) -> Phase:
        return Phase(self.density, step == 0 or (step % self.every == 0 and step < self.end), "sparse")


@dataclass(frozen=True)
class Announced:
    """Choose the units at step ``choose``, remove them at step ``at``; in between they are ``masked`` but alive.

    From ``slim`` to ``choose`` the phase is ``slim``; it begins with an update, and ``choose`` then forgets the
    optimiser's moments. With ``slim == choose`` there is no such phase.
    """

    density: float
    slim: int
    choose: int
    at: int

    def __post_init__(self) -> None:
        check_density(self.density, "Announced")
        if not 0 <= self.slim <= self.choose < self.at:
            raise RecipeError(
                f"Announced: needs 0 <= slim <= choose < at, got {self.slim}, {self.choose} and {self.at}; train longer"
            )

    @property
    def last(self) -> int:
        return self.at

    @property
    def drive(self) -> Literal["attach"]:
        return "attach"

    def __call__(self, step: int) -> Phase:
        if step >= self.at:
            return Phase(self.density, step == self.at, "sparse")
        if step >= self.choose:
            first = step == self.choose
            return Phase(self.density, first, "choose" if first else "masked", first and self.slim < self.choose)
        return Phase(self.density, step == self.slim, "slim") if step >= self.slim else Phase(1.0, False, "dense")


@dataclass(frozen=True)
class Rounds:
    """Prune-retrain rounds: after round ``j`` of ``rounds`` the share is ``density^(j / rounds)``.

    ``rewind`` says what the next round starts from: the weights as they are (``"none"``), the weights of the rewind
    point (``"weights"``), or the weights as they are with the learning-rate schedule replayed (``"lr"``). With
    ``path="rule"`` every round is told the final share and its rule decides how far it goes; the last one must meet it.
    """

    density: float
    rounds: int
    rewind: Literal["none", "weights", "lr"] = "none"
    path: Literal["equal", "rule"] = "equal"

    def __post_init__(self) -> None:
        check_density(self.density, "Rounds")
        if self.rounds < 1:
            raise RecipeError(f"Rounds: rounds must be at least 1, got {self.rounds}")
        if self.rewind not in ("none", "weights", "lr"):
            raise RecipeError(f"Rounds: rewind must be 'none', 'weights' or 'lr', got {self.rewind!r}")
        if self.path not in ("equal", "rule"):
            raise RecipeError(f"Rounds: path must be 'equal' or 'rule', got {self.path!r}")

    @property
    def last(self) -> int:
        return self.rounds

    @property
    def drive(self) -> Literal["cycle"]:
        return "cycle"

    def __call__(self, step: int) -> Phase:
        """``step`` counts rounds; 0 is dense."""
        if step >= self.rounds:
            return Phase(self.density, step == self.rounds, "sparse")
        share = self.density ** (step / self.rounds) if self.path == "equal" or not step else self.density
        return Phase(share, step > 0, "sparsify" if step else "dense")
