"""Networks of convolutions turned to channels last, the order in which blocks of weights are fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from openwork.runtime.layers import PackedConv2d
from openwork.runtime.prepacked import PrepackedConv2d

STRICT = {"view", "view_as", "stride", "is_contiguous", "as_strided", "data_ptr", "storage"}


def may_turn(graph: fx.Graph | None, output: Any) -> bool:
    """Whether nothing in a traced model, and nobody behind it, can tell the order of the channels in memory."""
    if graph is None or any(t.dim() > 3 for t in _tensors(output)):
        return False
    return not any(n.op == "call_method" and n.target in STRICT for n in graph.nodes)


def turned(x: Tensor | None) -> Tensor | None:
    """An image with its channels last; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x is not None and x.dim() == 4 else x


def turn(model: nn.Module, last: bool = True) -> None:
    """Let every two-dimensional convolution give channels-last outputs, or take that back, in place."""
    order = torch.channels_last if last else torch.contiguous_format
    for module in model.modules():
        if isinstance(module, PackedConv2d | PrepackedConv2d):
            module.channels_last = last
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=order)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [t for v in values for t in _tensors(v)] if isinstance(values, tuple | list) or values is not output else []
