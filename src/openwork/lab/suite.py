"""A suite as data: settings, methods, densities, seeds and controls; every recipe is built before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from openwork import methods as index
from openwork.core.protocols import Structure
from openwork.core.serial import to_plain
from openwork.core.targets import Select
from openwork.errors import OpenworkError, RecipeError, did_you_mean
from openwork.lab.budget import Budget
from openwork.lab.job import Job
from openwork.lab.search import Search

CONTROLS = ("dense", "extra", "random", "small")
"""Dense; dense with the extra budget; random masks; a small dense model of as many parameters as stay."""
DENSE, EXTRA, LONG, SMALL = "dense", "dense, fine-tuned as long", "dense, trained as long", "small dense"
RANDOM = ("random (layer)", "random (global)", "random (erk), from scratch")
SHUFFLED, RENEWED = ", mask shuffled", ", weights drawn anew"
"""What the sanity controls of a method are called: its name and one of these."""
NOMINAL_STEPS = 1000  # recipes are checked with so many steps before the data is there


@dataclass(frozen=True)
class Setting:
    """A model on a data set under a budget; ``checkpoint`` holds dense weights instead of dense training."""

    name: str
    model: str
    data: str
    model_options: Mapping[str, Any]
    data_options: Mapping[str, Any]
    budget: Budget
    where: Select
    structure: Structure
    checkpoint: str | None = None
    root: str | None = None


@dataclass(frozen=True)
class Contestant:
    """A method with its options, under a name of its own.

    ``structure`` and ``where`` replace those of the setting. ``at="init"`` prunes one-shot before any training.
    ``settings`` are the names of the settings that it takes part in; empty means all.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    at: Literal["pretrained", "init"] = "pretrained"
    structure: Structure | None = None
    where: Select | None = None
    settings: tuple[str, ...] = ()

    @property
    def drive(self) -> str:
        """``prune``, ``attach`` or ``cycle``, from the index."""
        return index.find(self.method).drive


@dataclass(frozen=True)
class Suite:
    """The whole grid. ``lr`` is the grid of learning rates; ``validation`` the share of the training set held out.

    ``sanity`` adds two controls to every method at every density: its mask shuffled inside each layer, and its mask on
    weights that are drawn anew. ``timed`` is the batch size at which final networks are timed; 0 times none.
    ``search`` tunes with a sampler in the place of the grid ``lr``. ``tune_at`` is the density whose learning rates
    hold at all the others; None tunes at each.
    """

    name: str
    settings: tuple[Setting, ...]
    methods: tuple[Contestant, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    lr: tuple[float, ...] = ()
    validation: float = 0.2
    controls: tuple[str, ...] = CONTROLS
    sanity: bool = False
    timed: int = 0
    search: Search | None = None
    tune_at: float | None = None

    @property
    def tuned(self) -> bool:
        """Whether learning rates are chosen on a validation split."""
        return bool(self.lr) or self.search is not None

    def taking_part(self, setting: Setting) -> tuple[Contestant, ...]:
        """The methods that run in one setting."""
        return tuple(m for m in self.methods if not m.settings or setting.name in m.settings)

    def only(self, methods: Sequence[str] = (), densities: Sequence[float] = (), seeds: Sequence[int] = ()) -> Suite:
        """The part of the grid with these methods, densities and seeds, in the order of the suite; empty means all.

        Raises:
            RecipeError: something that the suite does not hold.
        """
        names = [m.name for m in self.methods]
        for wanted in methods:
            if wanted not in names:
                raise RecipeError(f"suite: no method is called {wanted!r}; {did_you_mean(wanted, names)}")
        for what, asked, there in (("density", densities, self.densities), ("seed", seeds, self.seeds)):
            for value in asked:
                if value not in there:
                    raise RecipeError(f"suite: {what} must be one of {', '.join(map(str, there))}, got {value}")
        if self.tune_at is not None and densities and self.tune_at not in densities:
            raise RecipeError(
                f"suite: learning rates are tuned at density {self.tune_at:g}; ask for it too, got "
                f"{', '.join(f'{d:g}' for d in densities)}"
            )
        return replace(
            self,
            methods=tuple(m for m in self.methods if m.name in (methods or names)),
            densities=tuple(d for d in self.densities if d in (densities or self.densities)),
            seeds=tuple(s for s in self.seeds if s in (seeds or self.seeds)),
        )

    def quick(self) -> Suite:
        """A rehearsal: one seed, two densities, two learning rates, one epoch at most; not for conclusions."""
        short = tuple(
            replace(
                s,
                budget=replace(
                    s.budget,
                    epochs=min(s.budget.epochs, 1),
                    finetune_epochs=min(s.budget.finetune_epochs, 1),
                    round_epochs=0.0,
                ),
            )
            for s in self.settings
        )
        return replace(
            self,
            settings=short,
            densities=tuple(self.densities[:2]),
            tune_at=None if self.tune_at is None else self.densities[0],
            seeds=tuple(self.seeds[:1]),
            lr=tuple(self.lr[:2]),
            search=None if self.search is None else replace(self.search, trials=2),
        )

    def plain(self) -> dict[str, Any]:
        """Plain data for manifests, and to recognise the suite of a stopped comparison."""
        return {
            "name": self.name,
            "settings": [
                {
                    **{f.name: getattr(s, f.name) for f in fields(s)},
                    "model_options": _plain(s.model_options),
                    "data_options": _plain(s.data_options),
                    "budget": s.budget.plain(),
                    "where": to_plain(s.where),
                    "structure": str(s.structure),
                }
                for s in self.settings
            ],
            "methods": [
                {
                    "name": m.name,
                    "method": m.method,
                    "options": _plain(m.options),
                    "at": m.at,
                    "structure": None if m.structure is None else str(m.structure),
                    "where": None if m.where is None else to_plain(m.where),
                    "settings": list(m.settings),
                }
                for m in self.methods
            ],
            "densities": list(self.densities),
            "seeds": list(self.seeds),
            "lr": list(self.lr),
            "validation": self.validation,
            "controls": list(self.controls),
            **({"sanity": True} if self.sanity else {}),
            **({"timed": self.timed} if self.timed else {}),
            **({"search": self.search.plain()} if self.search is not None else {}),
            **({"tune_at": self.tune_at} if self.tune_at is not None else {}),
        }


def check_recipes(suite: Suite) -> None:
    """Build the recipe of every setting, method and density.

    Raises:
        RecipeError: the first that is refused, with its place in the grid.
    """
    for setting in suite.settings:
        for contestant in suite.taking_part(setting):
            for density in suite.densities:
                _check(setting, contestant, density)


def job_of(setting: Setting, contestant: Contestant, density: float, seed: int) -> Job:
    """The job of one method in one setting."""
    return Job(
        **common(setting),
        method=contestant.method,
        density=density,
        structure=structure_in(setting, contestant),
        where=where_in(setting, contestant),
        options=dict(contestant.options),
        at=contestant.at,
        budget=setting.budget,
        seed=seed,
    )


def starts_trained(setting: Setting, contestant: Contestant, density: float, steps: int = NOMINAL_STEPS) -> bool:
    """Whether a method prunes a trained network: none that trains and prunes in one, rewinds, or prunes at first."""
    schedule = job_of(setting, contestant, density, 0).build_recipe(steps).schedule
    rewinds = getattr(schedule, "rewind", "none") != "none"
    return not rewinds and contestant.drive != "attach" and contestant.at == "pretrained"


def common(setting: Setting) -> dict[str, Any]:
    """What all jobs of a setting share: model, data and their options."""
    return {
        "model": setting.model,
        "data": setting.data,
        "root": setting.root,
        "model_options": dict(setting.model_options),
        "data_options": dict(setting.data_options),
    }


def structure_in(setting: Setting, contestant: Contestant) -> Structure:
    """The structure of a method in a setting."""
    return contestant.structure if contestant.structure is not None else setting.structure


def where_in(setting: Setting, contestant: Contestant) -> Select:
    """The selection of a method in a setting."""
    return contestant.where if contestant.where is not None else setting.where


def _check(setting: Setting, contestant: Contestant, density: float) -> None:
    try:
        job_of(setting, contestant, density, 0).build_recipe(NOMINAL_STEPS)
    except OpenworkError as problem:
        raise RecipeError(
            f"the grid holds a cell that cannot run: {contestant.name} on {setting.name} at density {density:g}: "
            f"{problem}"
        ) from None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
