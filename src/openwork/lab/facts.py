"""What the settings of a suite turn out to be once their data and models are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from openwork.core.protocols import Structure
from openwork.core.targets import Select
from openwork.data import DataSet, load_data
from openwork.data.dataset import StreamedSet
from openwork.data.split import split_off
from openwork.errors import RecipeError
from openwork.lab.chance import chance_of
from openwork.lab.checkpoint import load_dense
from openwork.lab.controls import Small, small_dense
from openwork.lab.suite import SMALL, Setting, Suite, structure_in, where_in
from openwork.structure import partition
from openwork.structure.words import word_of
from openwork.zoo import build_model
from openwork.zoo.registry import table_options

TUNE_SEED = 0


@dataclass(frozen=True)
class Facts:
    """What a setting turns out to be once its data and model are there."""

    input_shape: tuple[int, ...]
    classes: int
    chance: float
    fingerprint: str
    dense_steps: int
    finetune_steps: int
    total: int
    targeted: int
    small: Mapping[tuple[str, float], Small | str]
    """Name of a small dense control and density -> the model, or why there is none."""


def facts_of(suite: Suite) -> dict[str, Facts]:
    """Load the data and build the model of every setting, and fit every structure to it.

    Raises:
        OpenworkError: data that is not there, or that has no validation split; a model, a structure or a checkpoint
            that does not fit.
    """
    found = {}
    for setting in suite.settings:
        data = load_data(setting.data, root=setting.root, **setting.data_options)
        if suite.tuned and isinstance(data, StreamedSet):
            raise RecipeError(
                f"settings.{setting.name}: tune needs data in memory to hold a validation split out, got the streamed "
                f"{setting.data}; leave tune out"
            )
        held = round(suite.validation * len(data.train))
        if suite.tuned and not 0 < held < len(data.train):
            raise RecipeError(
                f"settings.{setting.name}: tune.validation must leave samples on both sides, got {suite.validation:g} "
                f"of {len(data.train)}; choose another share"
            )
        options = {**table_options(setting.model, data.sizes), **setting.model_options}
        model = build_model(setting.model, data.input_shape, data.classes, **options)
        if setting.checkpoint is not None:
            load_dense(model, Path(setting.checkpoint))  # refused here, not in every cell
        total = sum(p.numel() for p in model.parameters())
        covers = groups_of(suite, setting) or [(setting.structure, setting.where)]
        sizes = []
        for structure, where in covers:
            coverage = partition(model, structure, where)[1]
            sizes.append(sum(c.numel for c in coverage if c.units))
        batches = -(-len(data.train) // setting.budget.batch_size)
        small = {}
        for name, size in zip(small_names(suite, setting), sizes, strict=True):
            for density in suite.densities:
                stay = total - round((1 - density) * size)
                small[name, density] = small_dense(setting.model, options, data.input_shape, data.classes, stay)
        found[setting.name] = Facts(
            data.input_shape,
            data.classes,
            chance_of(data),
            data.fingerprint(),
            max(1, round(setting.budget.epochs * batches)),
            round(setting.budget.finetune_epochs * batches),
            total,
            sizes[0],
            small,
        )
    return found


def with_validation(data: DataSet, share: float) -> DataSet:
    """The data set without its test set: a share of the training samples takes its place."""
    (x, y), (x_valid, y_valid) = split_off(data.x_train, data.y_train, share, TUNE_SEED)
    return replace(data, name=f"{data.name}, validation", x_train=x, y_train=y, x_test=x_valid, y_test=y_valid)


def groups_of(suite: Suite, setting: Setting) -> list[tuple[Structure, Select]]:
    """The structures and selections of the methods of a setting: each has random masks and a small network."""
    return list(dict.fromkeys((structure_in(setting, m), where_in(setting, m)) for m in suite.taking_part(setting)))


def tail_of(groups: list[tuple[Structure, Select]], index: int) -> str:
    """What the name of a control ends with: nothing for one group, else its structure, with a number for equal ones."""
    if len(groups) <= 1:
        return ""
    words = [word_of(structure) for structure, _ in groups]
    return f" {words[index]}" + (f" #{index + 1}" if len(set(words)) < len(words) else "")


def small_names(suite: Suite, setting: Setting) -> list[str]:
    """The names of the small dense controls of a setting, one for each group."""
    groups = groups_of(suite, setting)
    return [SMALL + tail_of(groups, i) for i in range(max(1, len(groups)))]
