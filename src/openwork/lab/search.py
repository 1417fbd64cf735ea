"""Tuning by a sampler: every trial is a cell, and what it tries follows from the records of the trials before it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from openwork.errors import RecipeError, did_you_mean
from openwork.lab.budget import Budget

SAMPLERS = ("tpe", "random")
LR = "lr"
TUNABLE = (LR, *(f.name for f in fields(Budget) if f.name in ("weight_decay", "momentum", "warmup")))
"""What a range may be of: the peak learning rate of the stage that is tuned, and fields of the budget."""


@dataclass(frozen=True)
class Search:
    """Trials of a sampler of Optuna.

    Attributes:
        sampler: ``tpe`` (tree-structured Parzen estimators) or ``random``.
        trials: how many for each method at each density.
        ranges: name -> (low, high), searched on a logarithmic scale.
    """

    sampler: str
    trials: int
    ranges: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise RecipeError(f"tune.sampler: unknown sampler {self.sampler!r}; {did_you_mean(self.sampler, SAMPLERS)}")
        if isinstance(self.trials, bool) or not isinstance(self.trials, int) or self.trials < 2:
            raise RecipeError(f"tune.trials: must be a whole number from 2 on, got {self.trials!r}")
        if LR not in self.ranges:
            raise RecipeError("tune.sampler: needs a range for lr, such as lr: {low: 0.01, high: 0.3}")
        for name, (low, high) in self.ranges.items():
            if name not in TUNABLE:
                raise RecipeError(f"tune.{name}: no such range; {did_you_mean(name, TUNABLE)}")
            if not 0 < low < high:
                raise RecipeError(f"tune.{name}: low and high must fulfil 0 < low < high, got {low} and {high}")
            Budget(**{name: high})  # type: ignore[arg-type]  # refuses what no budget may hold
        if find_spec("optuna") is None:
            raise RecipeError("tune.sampler: Optuna is not installed; pip install 'openwork[optuna]'")

    def plain(self) -> dict[str, Any]:
        """Plain data for manifests."""
        return {"sampler": self.sampler, "trials": self.trials, "ranges": {n: list(r) for n, r in self.ranges.items()}}

    def at_edge(self, lr: float) -> bool:
        """Whether a learning rate lies within a twentieth of its range, in orders of magnitude, from an end."""
        low, high = self.ranges[LR]
        margin = (high / low) ** 0.05
        return lr <= low * margin or lr >= high / margin


def suggest(search: Search, tried: Sequence[Mapping[str, Any]], line: str) -> dict[str, float]:
    """What the next trial tries: name -> value.

    Nothing is stored but the records: the sampler is built anew from the trials before, with a seed from ``line`` and
    their number. So a stopped search goes on with the values that it would have tried.

    Args:
        search: sampler and ranges.
        tried: records of the earlier trials of the same line, in order; failed ones count as failed.
        line: what tells this search from others, for the seed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(hashlib.sha256(f"{line} {len(tried)}".encode()).hexdigest()[:8], 16)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, search.trials // 3)),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(sampler=samplers[search.sampler](), direction="maximize")
    space = {n: optuna.distributions.FloatDistribution(low, high, log=True) for n, (low, high) in search.ranges.items()}
    for record in tried:
        known = {n: record.get("tried", {}).get(n) for n in space}
        if record["status"] == "failed" or None in known.values():
            continue
        value = record["metrics"]["finetuned"]["accuracy"]
        study.add_trial(optuna.trial.create_trial(params=known, distributions=space, value=value))
    return {name: float(value) for name, value in study.ask(space).params.items()}
