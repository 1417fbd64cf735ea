"""Frozen dataclasses <-> plain data, through one explicit table of kinds. No pickle, no import of unlisted code."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from openwork.errors import OpenworkError, RecipeError, did_you_mean

KINDS: dict[str, str] = {
    "Recipe": "openwork.core.recipe",
    "Select": "openwork.core.targets",
    **dict.fromkeys(("Chain", "On", "During"), "openwork.core.compose"),
    **dict.fromkeys(
        ("Element", "Row", "Column", "Block", "NM", "Filter", "Kernel", "GroupOf"), "openwork.structure.shapes"
    ),
    **dict.fromkeys(("OneShot", "Linear", "Cubic", "Exponential", "Periodic", "Rounds"), "openwork.schedules.shapes"),
    **dict.fromkeys(("Phases", "Stretch"), "openwork.schedules.phases"),
    **dict.fromkeys(("LossGradient", "GradientFlow"), "openwork.stats.gradients"),
    "InputSquares": "openwork.stats.inputs",
    "MaskLoss": "openwork.stats.mask_loss",
    "SynapticFlow": "openwork.stats.flow",
    **dict.fromkeys(("Magnitude", "Random"), "openwork.criteria.weights"),
    **dict.fromkeys(("Saliency", "Grasp", "Flow", "StepGradient"), "openwork.criteria.gradient"),
    "WeightTimesInput": "openwork.criteria.activation",
    "Learned": "openwork.criteria.learned",
    "Uniform": "openwork.allocation.uniform",
    "Global": "openwork.allocation.overall",
    "ErdosRenyi": "openwork.allocation.erdos",
    **dict.fromkeys(("TopK", "Repeat"), "openwork.rules.topk"),
    **dict.fromkeys(("DropGrow", "CosineFraction", "ConstantFraction"), "openwork.rules.drop_grow"),
    "SpODE": "openwork.rules.spode",
    "SoftmaxAttention": "openwork.relax.attention",
    "Masking": "openwork.relax.masking",
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


def from_plain(data: Any) -> Any:
    """Inverse of ``to_plain``.

    Raises:
        RecipeError: an unknown kind or key (the known ones are listed), a missing key, a refused value.
    """
    if isinstance(data, list):
        return tuple(from_plain(v) for v in data)
    if not isinstance(data, dict):
        return data
    kind = data.get("kind")
    if kind is None:
        return {k: from_plain(v) for k, v in data.items()}
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(f"unknown kind {kind!r} in a recipe; {did_you_mean(str(kind), KINDS)}")
    cls = getattr(import_module(KINDS[kind]), kind)
    known = {f.name: f for f in fields(cls) if f.init}
    for key in data:
        if key != "kind" and key not in known:
            raise RecipeError(f"{kind}: unknown key {key!r}; {did_you_mean(str(key), known)}")
    try:
        return cls(**{k: from_plain(v) for k, v in data.items() if k != "kind"})
    except OpenworkError:
        raise
    except (TypeError, ValueError, AttributeError) as problem:
        raise RecipeError(f"{kind}: {problem}") from None
