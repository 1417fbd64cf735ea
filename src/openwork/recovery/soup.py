"""Sparse model soups: retrain copies of one pruned model and average them (Zimmer et al., ICLR 2024).

Copies that start from the same pruned weights stay in one basin, and share their masks, so the average of their weights
is as sparse as each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.core.distributed import rank, summed, world
from openwork.core.measuring import seeded
from openwork.engine.hold import hold
from openwork.engine.recalibrate import recalibrate
from openwork.errors import DivergedError, RecipeError

State = dict[str, Tensor]


@torch.no_grad()
def average_states(states: Sequence[Mapping[str, Tensor]], masks: Mapping[str, Tensor]) -> State:
    """The mean of several states of one pruned model, accumulated in float64; zeros of the masks stay exact zeros.

    Tensors that are not floating point (counters) are those of the first state.

    Args:
        states: state dicts with equal keys and shapes.
        masks: parameter name -> bool, True = kept.

    Raises:
        RecipeError: no states, foreign keys or shapes, or a weight outside the masks that is not zero, which an
            average would leave neither pruned nor trained.
    """
    if not states:
        raise RecipeError("average_states needs at least one state")
    first = states[0]
    for i, state in enumerate(states):
        wrong = sorted(set(first) ^ set(state)) or [k for k in first if first[k].shape != state[k].shape]
        if wrong:
            raise RecipeError(
                f"average_states: state {i} and state 0 differ in {wrong[0]}; average copies of one model"
            )
        for name, mask in masks.items():
            if name not in state:
                raise RecipeError(f"average_states: the masks name {name}, which the states do not have")
            alive = int((state[name][~mask.to(state[name].device)] != 0).sum())
            if alive:
                raise RecipeError(
                    f"average_states: {name} of state {i} has {alive} weights outside the common mask; models pruned "
                    "apart from each other lose their sparsity when they are averaged"
                )
    return {
        n: (sum(s[n].double() for s in states) / len(states)).to(value.dtype)  # type: ignore[union-attr]
        if value.is_floating_point()
        else value.clone()
        for n, value in first.items()
    }


@dataclass(frozen=True)
class SoupReport:
    """``members``: indices in the average; ``scores`` of all members and ``score`` of the soup (with ``evaluate``).

    ``distance``: per member of this process, |member - soup| / |soup| over all floating-point entries.
    """

    members: list[int]
    distance: list[float]
    scores: list[float] = field(default_factory=list)
    score: float | None = None
    recalibrated: int = 0


@dataclass(frozen=True)
class Soup:
    """Retrain ``replicas`` copies and put their average into the model.

    ``merge="uniform"`` averages all; ``"greedy"`` goes from the best to the worst and keeps a copy when the average
    with it scores no less. One replica is plain retraining. Under ``torch.distributed`` the processes share the
    replicas of a uniform soup, and every one ends with the same average.
    """

    replicas: int = 3
    merge: Literal["uniform", "greedy"] = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise RecipeError(f"Soup: replicas must be at least 1, got {self.replicas}")
        if self.merge not in ("uniform", "greedy"):
            raise RecipeError(f"Soup: merge must be 'uniform' or 'greedy', got {self.merge!r}")

    def __call__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        train: Callable[[nn.Module, int], None],
        *,
        evaluate: Callable[[nn.Module], float] | None = None,
        recalibration: Iterable[Any] | None = None,
        batches: int = 10,
    ) -> SoupReport:
        """Train the copies, average, recalibrate; the model then holds the soup.

        Args:
            model: pruned; left as it was when anything fails.
            masks: of pruning; held through every optimiser step.
            train: ``train(copy, seed)`` retrains one copy; it must use the seed (order of batches, augmentation).
            evaluate: a score of a model on validation data, larger is better; needed by the greedy soup.
            recalibration: training batches for BatchNorm statistics, which an average of weights makes wrong; needed
                by models that have any.
            batches: of these.

        Raises:
            RecipeError: copies that came out equal, a greedy soup without ``evaluate``, BatchNorm without batches.
            DivergedError: a copy with weights that are not finite.
        """
        if self.merge == "greedy" and (evaluate is None or world() > 1):
            raise RecipeError("Soup: merge='greedy' needs evaluate=, a score of a model, and a single process")
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        if norms and recalibration is None and self.replicas > 1:
            raise RecipeError("Soup: the model has BatchNorm layers; pass recalibration=, batches of training data")
        trial = copy.deepcopy(model)

        def scored(state: State) -> float:
            self._load(trial, state, recalibration if len(states) > 1 else None, batches)
            assert evaluate is not None
            return float(evaluate(trial))

        mine = [i for i in range(self.replicas) if i % world() == rank()]
        states = [self._trained(model, masks, train, i) for i in mine]
        scores = [scored(state) for state in states] if evaluate is not None else []
        members = list(range(self.replicas))
        if self.merge == "greedy":
            members = self._greedy(states, scores, masks, scored)
            found = average_states([states[i] for i in members], masks)
        else:
            found = self._uniform(states, masks, model)
        distance = [_apart(state, found) for state in states]
        if self.replicas > 1 and world() == 1 and all(d == 0 for d in distance):
            raise RecipeError("Soup: all copies came out equal; train(model, seed) must use the seed it is given")
        number = self._load(model, found, recalibration if self.replicas > 1 else None, batches)
        score = float(evaluate(model)) if evaluate is not None else None
        return SoupReport(members, distance, scores, score, number)

    def _trained(
        self, model: nn.Module, masks: Mapping[str, Tensor], train: Callable[[nn.Module, int], None], index: int
    ) -> State:
        one = copy.deepcopy(model)
        with seeded(self.seed + index), hold(one, masks):
            train(one, self.seed + index)
        state = {n: v.detach().clone() for n, v in one.state_dict().items()}
        bad = [n for n, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if bad:
            raise DivergedError(f"{bad[0]}: copy {index} of the soup holds NaN or infinity; lower the learning rate")
        return state

    def _uniform(self, states: list[State], masks: Mapping[str, Tensor], model: nn.Module) -> State:
        if world() == 1:
            return average_states(states, masks)
        like = {n: v.detach() for n, v in model.state_dict().items()}
        totals = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in like.items() if v.is_floating_point()}
        for state in states:
            for n, total in totals.items():
                total += state[n].double()
        summed(totals.values())
        return {n: (totals[n] / self.replicas).to(v.dtype) if n in totals else v.clone() for n, v in like.items()}

    @staticmethod
    def _greedy(
        states: list[State], scores: list[float], masks: Mapping[str, Tensor], scored: Callable[[State], float]
    ) -> list[int]:
        order = sorted(range(len(states)), key=lambda i: -scores[i])
        members, best = order[:1], scores[order[0]]
        for i in order[1:]:
            value = scored(average_states([states[j] for j in (*members, i)], masks))
            if value >= best:
                members, best = [*members, i], value
        return members

    @staticmethod
    def _load(model: nn.Module, state: State, data: Iterable[Any] | None, batches: int) -> int:
        model.load_state_dict(state)
        return recalibrate(model, data, batches) if data is not None else 0


def _apart(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    pairs = [(state[n].double(), v.double()) for n, v in other.items() if v.is_floating_point()]
    far = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (far / size) ** 0.5 if size > 0 else 0.0


def linear_rate(step: int, steps: int, largest: float, warmup: float = 0.1) -> float:
    """LLR: the learning rate of retraining, up from 0 over ``warmup`` of the steps and down to 0 at the end.

    Examples:
        >>> [round(linear_rate(s, 10, 1.0), 3) for s in (0, 1, 5, 10)]
        [0.0, 1.0, 0.556, 0.0]
    """
    rise = warmup * steps
    if step < rise:
        return largest * step / rise
    return largest * (steps - step) / max(1e-12, steps - rise)


def adaptive_rate(norm_drop: float, pruned: float, epochs: int, pretraining: int, largest: float) -> float:
    """ALLR: where ``linear_rate`` begins to fall from, by how much pruning took away.

    ``largest * norm_drop / sqrt(pruned)``, between ``largest * min(epochs / pretraining, 1)`` and ``largest``.

    Args:
        norm_drop: ``|W - W_pruned| / |W|``.
        pruned: share of the remaining weights that this round removes.
        epochs: of retraining.
        pretraining: epochs of the dense training.
        largest: learning rate of the dense training.

    Examples:
        >>> round(adaptive_rate(0.2, 0.64, 5, 50, 0.1), 6)
        0.025
    """
    return min(largest, max(largest * norm_drop / pruned**0.5, largest * min(epochs / pretraining, 1.0)))
