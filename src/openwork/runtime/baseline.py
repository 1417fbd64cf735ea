"""The fastest dense form of a model there is here, which packed copies are measured against."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from openwork.runtime.fold import fold_norms, replace_module
from openwork.runtime.prepacked import prepacked, runs
from openwork.runtime.recognise import recognise


def fastest_dense(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """A copy with norms folded and every weight in oneDNN's order, and the example as the copy takes it.

    Where oneDNN does not compute in a type of the model here (bfloat16 takes a processor that does), both are float32.
    """
    fast = copy.deepcopy(model).eval()
    if not all(runs(p.dtype) for p in fast.parameters()):
        fast, example = fast.float(), _in_float32(example)
    recognise(fast)
    fold_norms(fast)
    for name, layer in list(fast.named_modules()):
        new = prepacked(layer)
        if new is not None:
            fast = replace_module(fast, name, new)
    return fast, example


def _in_float32(example: Any) -> Any:
    """The floating-point tensors of an example as float32."""
    if isinstance(example, dict):
        return {key: _in_float32(value) for key, value in example.items()}
    if isinstance(example, tuple | list):
        return type(example)(_in_float32(value) for value in example)
    return example.float() if isinstance(example, torch.Tensor) and example.is_floating_point() else example
