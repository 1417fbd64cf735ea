"""JSON that every reader takes, although numbers may be none: a collapsed network has a loss that is NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(data: Any, **options: Any) -> str:
    """``json.dumps`` with the names of ``NAMES``, as strings, for floats that JSON does not have.

    Examples:
        >>> dumps({"loss": float("nan"), "accuracy": 0.1})
        '{"loss": "NaN", "accuracy": 0.1}'
    """
    return json.dumps(_named(data), allow_nan=False, **options)


def numbers(data: Any) -> Any:
    """Inverse of what ``dumps`` does to floats, for data in which no text is one of the names.

    Examples:
        >>> numbers({"loss": ["NaN", 1.5]})
        {'loss': [nan, 1.5]}
    """
    if isinstance(data, Mapping):
        return {k: numbers(v) for k, v in data.items()}
    if isinstance(data, list):
        return [numbers(v) for v in data]
    return NAMES.get(data, data) if isinstance(data, str) else data


def _named(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {k: _named(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_named(v) for v in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data
