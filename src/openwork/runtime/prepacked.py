"""The fastest dense layers there are on this processor: weights reordered once by oneDNN. For inference."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Order(NamedTuple):
    """A weight in oneDNN's order, and the tensors that it was made from and checked with."""

    weight: weakref.ref[Tensor]
    bias: weakref.ref[Tensor] | None
    place: int
    version: int
    packed: Tensor

    def serves(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether these are the same tensors, and the weight is where and what it was."""
        return (
            self.weight() is weight
            and (bias is None if self.bias is None else self.bias() is bias)
            and self.version == weight._version
            and self.place == weight.data_ptr()
        )


class Prepacked(nn.Module):
    """Holds ``weight`` and ``bias`` as the layer it replaces did, and beside them oneDNN's own order.

    The order is made again when the weight is another tensor, has moved, or was changed in place. Changes that torch
    does not count, through ``weight.data`` or a NumPy array of the same memory, are not seen.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", _counted(layer.weight.detach()))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self._ready: dict[tuple[int, ...], Order] = {}

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._ready = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Prepacked:
        self._ready = {}
        return super()._apply(fn, recurse)

    def _held(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, without the way through ``__getattr__`` where they are still the buffers they began as."""
        buffers = self._buffers
        weight = buffers.get("weight")
        if weight is None or "bias" not in buffers:
            return self.weight, self.bias
        return weight, buffers["bias"]

    def _order_for(
        self, shape: tuple[int, ...], x: Tensor, weight: Tensor, bias: Tensor | None, make: Callable[[], Tensor | None]
    ) -> Tensor | None:
        """The weight in the order for one input shape, or None where torch's own product must run.

        That is with other types, under autocast, with empty inputs, calls that are traced or differentiated, tensors
        that do not fit each other (torch says what is wrong with them) and weights whose changes torch does not count.
        """
        if x.dtype != weight.dtype or not x.numel() or not eager(x) or torch.is_autocast_enabled("cpu"):
            return None
        if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
            return None
        found = self._ready.get(shape)
        if found is not None and found.serves(weight, bias):
            return found.packed
        packed = make() if _suits(weight, bias) else None
        if packed is not None:
            refs = weakref.ref(weight), None if bias is None else weakref.ref(bias)
            others = [(k, v) for k, v in self._ready.items() if k != shape]
            new = Order(*refs, weight.data_ptr(), weight._version, packed)
            self._ready = {**dict(others[1 - KEPT :]), shape: new}  # the oldest goes when there are too many
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}  # oneDNN's order is made again by the copy


class PrepackedLinear(Prepacked):
    """``F.linear`` on a weight in oneDNN's order, one for each number of tokens met."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._held()
        order = None
        if x.dim() and x.shape[-1] == self.in_features:
            tokens = x.numel() // max(1, self.in_features)
            order = self._order_for((tokens,), x, weight, bias, lambda: self._reordered(weight, tokens))
        if order is None:
            return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return torch.ops.mkldnn._linear_pointwise(x, order, bias, "none", [], "")

    def _reordered(self, weight: Tensor, tokens: int) -> Tensor | None:
        if weight.dim() != 2 or weight.shape[1] != self.in_features:
            return None
        return torch.ops.mkldnn._reorder_linear_weight(weight, tokens)


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
        weight, bias = self._held()
        order = None
        if x.dim() == 4:
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            shape = tuple(x.shape)
            order = self._order_for(shape, x, weight, bias, lambda: self._reordered(weight, shape))
        if order is None:
            more = None if bias is None else bias.to(x.dtype)
            y = nn.functional.conv2d(x, weight.to(x.dtype), more, self.stride, self.padding, self.dilation, self.groups)
            return activated(y, None, self.activation)
        window = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise(x, order, bias, *window, *ONEDNN[self.activation])

    def _reordered(self, weight: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        if weight.dim() != 4 or shape[1] != weight.shape[1] * self.groups:
            return None
        sizes = zip(shape[2:], self.padding, self.dilation, weight.shape[2:], strict=True)
        if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in sizes):
            return None
        window = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *window, list(shape))


def _counted(weight: Tensor) -> Tensor:
    """The weight, or where torch does not count its changes (in inference mode) a copy whose changes it does count."""
    if not weight.is_inference():
        return weight
    with torch.inference_mode(False):
        return weight.clone()


def _suits(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN takes these tensors, and torch counts the changes of the weight."""
    for tensor in (weight, bias):
        if tensor is None:
            continue
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.dtype != weight.dtype:
            return False
    return not weight.is_inference() and (bias is None or bias.shape == weight.shape[:1])


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
