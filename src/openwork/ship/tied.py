"""A state with every storage once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from openwork.errors import FileError


def untied(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by their first name, and alias -> name for the others.

    Raises:
        FileError: a state that holds something else than tensors.
    """
    seen: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise FileError(f"{name}: the model's state holds {type(value).__name__}, only tensors can be saved")
        if id(value) in seen:
            tied[name] = seen[id(value)]
            continue
        seen[id(value)] = name
        tensors[name] = value.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
    return tensors, tied
