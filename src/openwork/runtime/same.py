"""Whether a packed model still computes what the dense one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import OpenworkError
from openwork.runtime.inputs import call, first_tensor
from openwork.runtime.layers import Packed
from openwork.runtime.prepacked import Prepacked
from openwork.runtime.stand_in import stand_in

EXACT, ROUNDED = 1e-2, 0.5  # of the largest output; rounding adds up over layers, another function is further away


def demand_same(packed: nn.Module, dense: nn.Module, example: Any, dtype: torch.dtype | None) -> None:
    """Run both on the example and compare; models that are random or return no numbers are not compared.

    Args:
        packed: the packed copy.
        dense: as it was given; both are run as copies, in evaluation mode.
        example: an input.
        dtype: of the stored weights; None is that of the model.

    Raises:
        OpenworkError: the outputs differ by more than rounding explains.
    """
    wide = dtype in (None, torch.float32) and all(p.dtype in (torch.float32, torch.float64) for p in dense.parameters())
    limit = EXACT if wide else ROUNDED
    expected = _output(stand_in(dense).eval(), example)
    got = _output(stand_in(packed, shared=(Packed, Prepacked)), example)
    found = _distance(expected, got)
    if found > limit and _distance(expected, _output(stand_in(dense).eval(), example)) <= limit:
        raise OpenworkError(
            f"pack: the packed {type(dense).__name__} does not compute what the dense one does, its output is "
            f"{found:.2g} off; a forward may do more than it shows: pack with fold=False, or leave layers out by where="
        )


def _output(model: nn.Module, example: Any) -> Tensor | None:
    found: Any = call(model, example)
    take: Callable[[Any], Tensor] = first_tensor
    try:
        tensor = take(found)
    except (StopIteration, AttributeError, TypeError):
        return None
    return tensor.detach() if tensor.is_floating_point() else None


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    """The largest difference over the largest number; 0 where nothing can be compared."""
    if a is None or b is None or a.shape != b.shape or not a.numel():
        return 0.0
    scale = float(a.abs().max())
    gap = float((a.double() - b.double()).abs().max())
    return gap / scale if scale > 0 and gap == gap else 0.0
