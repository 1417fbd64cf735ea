"""Whether a packed model still computes what the dense one does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import OpenworkError
from openwork.runtime.inputs import call, first_tensor, relative_error
from openwork.runtime.layers import Packed
from openwork.runtime.prepacked import Prepacked
from openwork.runtime.stand_in import stand_in

EXACT, ROUNDED = 1e-2, 0.5  # of the largest output; rounding adds up over layers, another function is further away
MAGNIFIED = 10.0  # times what the dense model itself loses against float64


def demand_same(packed: nn.Module, dense: nn.Module, example: Any, dtype: torch.dtype | None) -> None:
    """Run both on the example and compare; models that are random or return no numbers are not compared.

    Args:
        packed: the packed copy.
        dense: as it was given; both are run as copies, in evaluation mode.
        example: an input.
        dtype: of the stored weights; None is that of the model.

    A model that magnifies rounding (norms over nearly constant channels do) is told by its own distance from what it
    computes in float64; it is packed with a warning.

    Raises:
        OpenworkError: the outputs differ by more than rounding explains.
    """
    wide = dtype in (None, torch.float32) and all(p.dtype in (torch.float32, torch.float64) for p in dense.parameters())
    limit = EXACT if wide else ROUNDED
    expected = _output(stand_in(dense).eval(), example)
    got = _output(stand_in(packed, shared=(Packed, Prepacked)), example)
    found = _distance(expected, got)
    if found > limit and _distance(expected, _output(stand_in(dense).eval(), example)) <= limit:
        lost = _lost(dense, example, expected)
        if found <= MAGNIFIED * lost:
            warnings.warn(
                f"pack: {type(dense).__name__} magnifies rounding: the packed output is {found:.2g} off, and the dense "
                f"one {lost:.2g} off what it would be in float64",
                stacklevel=3,
            )
            return
        raise OpenworkError(
            f"pack: the packed {type(dense).__name__} does not compute what the dense one does, its output is "
            f"{found:.2g} off; a forward may do more than it shows: pack with fold=False, or leave layers out by where="
        )


def _lost(dense: nn.Module, example: Any, expected: Tensor | None) -> float:
    """How far the dense output is from that in float64; 0 where the model cannot be run so."""
    try:
        exact = _output(copy.deepcopy(dense).eval().double(), _double(example))
    except Exception:  # whatever a forward of the user says to numbers that it does not expect
        return 0.0
    return _distance(exact, expected)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {k: _double(v) for k, v in value.items()}
    return tuple(map(_double, value)) if isinstance(value, tuple | list) else value


def _output(model: nn.Module, example: Any) -> Tensor | None:
    output: Any = call(model, example)
    try:
        tensor = first_tensor(output)
    except (StopIteration, AttributeError, TypeError):
        return None
    return tensor.detach() if tensor.is_floating_point() else None


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    """0 where nothing can be compared."""
    return 0.0 if a is None or b is None or a.shape != b.shape else relative_error(a, b)
