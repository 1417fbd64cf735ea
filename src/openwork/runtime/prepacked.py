"""The fastest dense layers there are on this processor: weights reordered once by oneDNN. For inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from openwork.kernels.ops import activated
from openwork.runtime.eager import eager

ONEDNN: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "silu": ("swish", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
}
"""Activation -> its name, numbers and algorithm in oneDNN."""
KEPT = 8  # input shapes whose order of the weights is kept: each is a copy of them


class Prepacked(nn.Module):
    """Holds ``weight`` and ``bias`` as the layer it replaces did, and beside them oneDNN's own order."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self._ready: dict[tuple[int, ...], Any] = {}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._ready = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Prepacked:
        self._ready = {}
        return super()._apply(fn, recurse)

    def _plain(self, x: Tensor) -> bool:
        """Whether torch's own product must run: other types, empty inputs, and calls that are traced."""
        return not (x.dtype == self.weight.dtype and x.numel() and eager(x))

    def _order_for(self, shape: tuple[int, ...], make: Callable[[], Any]) -> Any:
        """The weights in the order for one input shape; the oldest order goes when there are too many."""
        found = self._ready.get(shape)
        if found is None:
            found = make()
            self._ready = {**dict(list(self._ready.items())[1 - KEPT :]), shape: found}
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}  # oneDNN's order is made again by the copy


class PrepackedLinear(Prepacked):
    """``F.linear`` on a weight in oneDNN's order, one for each number of tokens met."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.numel() // max(1, self.in_features)
        if self._plain(x) or x.shape[-1] != self.in_features:
            return nn.functional.linear(
                x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
            )
        order = self._order_for((tokens,), lambda: torch.ops.mkldnn._reorder_linear_weight(self.weight, tokens))
        return torch.ops.mkldnn._linear_pointwise(x, order, self.bias, "none", [], "")


class PrepackedConv2d(Prepacked):
    """``F.conv2d`` on a weight in oneDNN's order, one for each input shape met.

    ``activation`` may be any that packed layers know; with ``channels_last`` set, outputs are in this order whatever
    order their inputs have.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        self.padding = [int(p) for p in layer.padding]
        self.activation, self.channels_last = "none", False

    def forward(self, x: Tensor) -> Tensor:
        window = (self.padding, self.stride, self.dilation, self.groups)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._plain(x) or x.dim() != 4:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            p, s, d, g = window
            y = nn.functional.conv2d(x, self.weight.to(x.dtype), bias, s, p, d, g)
            return activated(y, None, self.activation)
        shape = tuple(x.shape)
        order = self._order_for(
            shape, lambda: torch.ops.mkldnn._reorder_convolution_weight(self.weight, *window, list(shape))
        )
        return torch.ops.mkldnn._convolution_pointwise(x, order, self.bias, *window, *ONEDNN[self.activation])


def prepacked(layer: nn.Module) -> nn.Module | None:
    """The layer in oneDNN's order, or None when oneDNN is not there or does not run this layer."""
    if type(layer) is nn.Linear and runs(layer.weight.dtype):
        return PrepackedLinear(layer)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return PrepackedConv2d(layer) if runs(layer.weight.dtype) else None
    return None


def runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this type here; bfloat16 takes a processor that does."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
