"""One job as data: which model, data, method, budget and seed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from openwork import methods
from openwork.core.annotations import typed
from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.serial import from_plain, to_plain
from openwork.core.targets import Select
from openwork.errors import RecipeError, did_you_mean
from openwork.lab.accumulation import refuse_accumulation
from openwork.lab.budget import Budget
from openwork.lab.controls import from_mask
from openwork.structure import Element
from openwork.structure.words import structure_of

LARGEST_SEED = 2**62
"""Torch and SQLite take 64 bits; this leaves room for what the stages of a job and its controls add."""


@dataclass(frozen=True)
class Job:
    """A method on a model and a data set under a budget.

    ``options`` may hold the words of a file or of the command line: ``no`` is False where the method wants a boolean.
    ``recipe`` (a whole recipe) replaces ``method``, ``density``, ``structure``, ``where`` and ``options``.
    ``structure`` may be a word for a coupled structure (``"channels"``, ``"heads:2"``); the data say its example.
    ``target`` is a budget (``{"macs": 0.5}``) in place of ``density``. Coupled structures are compacted after pruning,
    before fine-tuning, unless ``compact`` is False. ``at="init"`` prunes one-shot before any training. ``checkpoint``
    holds dense weights (safetensors) to start from instead of training. ``mask`` (a file of ``rules.given``) takes the
    place of a method: its units are kept, or with ``shuffled`` as many others of the same regions.
    """

    model: str
    data: str
    method: str = "magnitude"
    density: float | None = None
    structure: Structure | str | None = None
    where: Select = field(default_factory=Select)
    options: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    at: Literal["pretrained", "init"] = "pretrained"
    checkpoint: str | None = None
    root: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    target: dict[str, float] | None = None
    compact: bool = True
    mask: str | None = None
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral) or abs(self.seed) > LARGEST_SEED + 10**6:
            raise RecipeError(f"Job: seed must be a whole number of at most 2**62 in size, got {self.seed!r}")
        if self.at not in ("pretrained", "init"):
            raise RecipeError(f"Job: at must be 'pretrained' or 'init', got {self.at!r}")
        if self.mask is not None and isinstance(self.structure, str):
            raise RecipeError(f"Job: a mask needs the structure it was made with as an object, got {self.structure!r}")
        if self.target is not None and self.density is not None:
            raise RecipeError(f"Job: a target {self.target} takes the place of density={self.density}; give one")

    def build_recipe(self, steps: int, example: Any = None) -> Recipe:
        """The recipe for a training of ``steps`` optimiser steps on inputs like ``example``.

        Raises:
            RecipeError: unknown method or option, values that are refused or of another kind; a method that cannot add
                up gradients where the budget accumulates.
        """
        recipe = self._made(steps, example)
        refuse_accumulation(recipe, self.budget.accumulate)
        return recipe

    def _made(self, steps: int, example: Any) -> Recipe:
        if self.mask is not None:
            assert not isinstance(self.structure, str)
            return from_mask(self.mask, self.shuffled, self.structure or Element(), self.where)
        if self.recipe is not None:
            return self.recipe
        make = methods.get(self.method)
        known = inspect.signature(make).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())  # the method refuses what it does not know
        given: dict[str, Any] = {"where": self.where, **typed(self.method, make, self.options)}
        if self.density is not None:
            given["density"] = self.density
        if self.structure is not None:
            word = isinstance(self.structure, str)
            given["structure"] = structure_of(self.structure, example) if word else self.structure  # type: ignore[arg-type]
        for name in given:
            if name not in known and not open_ended:
                raise RecipeError(f"{self.method} has no option {name!r}; {did_you_mean(name, known)}")
        if methods.find(self.method).drive == "attach":
            given = {**_clock(known, steps), **given}
        try:
            return make(**given)
        except (TypeError, AttributeError) as problem:  # words from files, which no type checker has seen
            raise RecipeError(
                f"{self.method}: its options must be of the kinds that its signature names, got {given!r} ({problem})"
            ) from problem

    def describe(self) -> dict[str, Any]:
        """Plain data for the manifest, and for recognising a stopped job."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("structure", "where", "recipe", "budget")}
        parts = {
            k: None if getattr(self, k) is None else to_plain(getattr(self, k))
            for k in ("structure", "where", "recipe")
        }
        return {**plain, **parts, "budget": self.budget.plain()}

    def described_by(self, saved: Any) -> bool:
        """Whether ``saved`` was written by ``describe`` of this job; options that its recipe lacks are the defaults."""
        if not isinstance(saved, dict):
            return False
        try:
            return {**saved, "recipe": to_plain(from_plain(saved.get("recipe")))} == self.describe()
        except RecipeError:
            return False


def _clock(known: Any, steps: int) -> dict[str, Any]:
    """The time arguments of sparse-training methods, as shares of the whole training."""
    times = {"steps": steps, "begin": steps // 10, "end": (6 * steps) // 10, "every": max(1, steps // 100)}
    if "steps" in known:
        times = {"steps": steps}
    return {k: v for k, v in times.items() if k in known}
