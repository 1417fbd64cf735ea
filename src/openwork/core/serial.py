"""Frozen dataclasses <-> plain data, through one explicit table of kinds. No pickle, no import of unlisted code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import count
from typing import Any, get_args, get_type_hints

from openwork.core.annotations import fits, short
from openwork.errors import OpenworkError, RecipeError, did_you_mean

KINDS: dict[str, str] = {
    "Recipe": "openwork.core.recipe",
    "Select": "openwork.core.targets",
    **dict.fromkeys(("Chain", "On", "During"), "openwork.core.compose"),
    **dict.fromkeys(
        ("Element", "Row", "Column", "Block", "NM", "Filter", "Kernel", "InputChannel", "GroupOf"),
        "openwork.structure.shapes",
    ),
    "Coupling": "openwork.structure.coupling",
    "Depth": "openwork.structure.depth",
    **dict.fromkeys(("Example", "Tensorlike"), "openwork.graph.example"),
    "Announced": "openwork.schedules.shapes",
    **dict.fromkeys(("OneShot", "Linear", "Cubic", "Exponential", "Periodic", "Rounds"), "openwork.schedules.shapes"),
    **dict.fromkeys(("Phases", "Stretch"), "openwork.schedules.phases"),
    **dict.fromkeys(("LossGradient", "GradientFlow"), "openwork.stats.gradients"),
    **dict.fromkeys(("InputSquares", "InputMoments"), "openwork.stats.inputs"),
    "InputGram": "openwork.stats.grams",
    "UnitImportance": "openwork.stats.taylor",
    **dict.fromkeys(("MaskLoss", "LossAtMasks"), "openwork.stats.mask_loss"),
    **dict.fromkeys(("ReaderGram", "NoiseGram"), "openwork.stats.readers"),
    "SynapticFlow": "openwork.stats.flow",
    "SampleGradients": "openwork.stats.samples",
    "LayerGradients": "openwork.stats.layer_gradients",
    "FisherDiagonal": "openwork.stats.fisher",
    **dict.fromkeys(("Magnitude", "Random"), "openwork.criteria.weights"),
    **dict.fromkeys(("Saliency", "Taylor", "Grasp", "Flow", "StepGradient"), "openwork.criteria.gradient"),
    **dict.fromkeys(("WeightTimesInput", "BetaRank"), "openwork.criteria.activation"),
    "DeviationRatios": "openwork.stats.deviations",
    "Grouped": "openwork.criteria.grouped",
    **dict.fromkeys(("NormScale", "GeometricMedian", "GroupHessian"), "openwork.criteria.coupled"),
    "Lamp": "openwork.criteria.lamp",
    "Learned": "openwork.criteria.learned",
    "Uniform": "openwork.allocation.uniform",
    "Global": "openwork.allocation.overall",
    "Borrowed": "openwork.allocation.borrowed",
    "PreCrop": "openwork.allocation.crop",
    "LayerMacs": "openwork.stats.work",
    "Crop": "openwork.rules.crop",
    "ErdosRenyi": "openwork.allocation.erdos",
    "FixedEnds": "openwork.allocation.ends",
    **dict.fromkeys(("TopK", "Repeat"), "openwork.rules.topk"),
    **dict.fromkeys(("DropGrow", "CosineFraction", "ConstantFraction"), "openwork.rules.drop_grow"),
    "SpODE": "openwork.rules.spode",
    "RandomSearch": "openwork.rules.random_search",
    "Given": "openwork.rules.given",
    "AdaptivePruning": "openwork.rules.adaptive",
    "BrainSurgeon": "openwork.rules.obs",
    "MaskedScales": "openwork.rules.scales",
    "LayerSurgeon": "openwork.rules.layer_surgeon",
    "GroupSurgeon": "openwork.rules.group_surgeon",
    "MeanSwap": "openwork.rules.swap",
    "BlockDescent": "openwork.rules.block_descent",
    **dict.fromkeys(("Exhaustive", "BestSwap", "Annealing"), "openwork.rules.cardinality"),
    "ZerothNorms": "openwork.stats.zeroth",
    "ZerothOrder": "openwork.allocation.zeroth",
    "SoftmaxAttention": "openwork.relax.attention",
    "Masking": "openwork.relax.masking",
    "Power": "openwork.relax.power",
    "Probabilities": "openwork.relax.probability",
    "SoftThreshold": "openwork.relax.threshold",
}
"""Every kind that a recipe file may name, and where it lives. A test holds this table complete."""


def to_plain(value: Any) -> Any:
    """Dataclasses become ``{"kind": ..., field: ...}``, tuples become lists.

    Raises:
        RecipeError: a value that a recipe file could not hold.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        if KINDS.get(kind) != type(value).__module__:
            raise RecipeError(
                f"{kind}: only openwork's own parts can be written to a recipe file; {did_you_mean(kind, KINDS)}"
            )
        return {"kind": kind, **{f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init}}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RecipeError(f"a recipe must be plain data, got {value!r} of type {type(value).__name__}")


MOST, DEEPEST = 10_000, 50
"""Bounds of a recipe file: values in all (aliases of YAML multiply them) and nesting."""


def from_plain(data: Any) -> Any:
    """Inverse of ``to_plain``. Nothing is built from a kind that is not listed, and no value of a wrong type passes.

    Raises:
        RecipeError: an unknown kind or key (the known ones are listed), a missing key, a refused value, too much data.
    """
    return _read(data, count(1), 0)


def _read(data: Any, seen: Iterator[int], depth: int) -> Any:
    if next(seen) > MOST or depth > DEEPEST:
        raise RecipeError(f"a recipe may hold {MOST} values, nested {DEEPEST} deep; this is no recipe")
    if isinstance(data, list):
        return tuple(_read(v, seen, depth + 1) for v in data)
    if not isinstance(data, dict):
        return data
    kind = data.get("kind")
    if kind is None:
        return {k: _read(v, seen, depth + 1) for k, v in data.items()}
    if not isinstance(kind, str):
        raise RecipeError(f"kind must be a string in a recipe, got {type(kind).__name__}; {did_you_mean('', KINDS)}")
    if kind not in KINDS:
        raise RecipeError(f"unknown kind {short(kind)} in a recipe; {did_you_mean(kind, KINDS)}")
    cls = getattr(import_module(KINDS[kind]), kind)
    known = {f.name for f in fields(cls) if f.init}
    hints = get_type_hints(cls)
    values = {}
    for key, plain in data.items():
        if key == "kind":
            continue
        if key not in known:
            raise RecipeError(f"{kind}: unknown key {short(key)}; {did_you_mean(str(key), known)}")
        values[key] = _read(plain, seen, depth + 1)
        if not fits(values[key], hints[key]):
            hint = hints[key]
            wanted = str(hint) if get_args(hint) else hint.__name__
            wanted = re.sub(r"[A-Za-z_]+\.(?=[A-Za-z])", "", wanted)
            raise RecipeError(f"{kind}: {key} must be of type {wanted}, got {short(values[key])}")
    try:
        return cls(**values)
    except OpenworkError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as problem:
        raise RecipeError(f"{kind}: {problem}") from None
