"""Layers that keep their weights packed. For inference: no gradients, no parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import FormatError
from openwork.formats import Format, from_tensors
from openwork.kernels import Layout, layout_of
from openwork.kernels.ops import ACTIVATIONS, conv2d_now, linear_now

FEW = 4  # tokens up to which weights bound the time, not arithmetic


def _eager(x: Tensor) -> bool:
    """Whether nothing watches the call, so that the detour through torch's dispatcher can be spared."""
    plain = type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()
    watched = x.requires_grad and torch.is_grad_enabled()
    return plain and not watched and torch._C._len_torch_dispatch_stack() == 0


class Packed(nn.Module):
    """A sparse matrix in a storage format, and beside it the order in which the kernel reads it.

    The state holds the storage format, under ``weight_*``, and the bias; the kernel's order is made from it on the
    machine that runs, so state dicts travel between machines.
    """

    bias: Tensor | None

    def __init__(self, fmt: Format, bias: Tensor | None, kind: str, run: int, activation: str = "none") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise FormatError(f"{type(self).__name__}: activation must be one of {ACTIVATIONS}, got {activation!r}")
        self.kind, self.run, self.activation = kind, run, activation
        self.transposed = False
        self.meta = fmt.meta()
        self._names = tuple(fmt.tensors())
        for name, tensor in fmt.tensors().items():
            self.register_buffer(f"weight_{name}", tensor.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._order(fmt)

    @property
    def format(self) -> Format:
        """The weights as they are stored, checked."""
        return from_tensors(self.meta, {n: getattr(self, f"weight_{n}") for n in self._names})

    @property
    def density(self) -> float:
        """Share of the weights that are stored."""
        return self.format.density

    def dense_weight(self) -> Tensor:
        """The weight as the dense layer held it, float32; ``transposed`` layers held ``(in, out)``."""
        matrix = self.format.unpack()
        return matrix.T if self.transposed else matrix

    def _order(self, fmt: Format) -> None:
        layouts = {"many": layout_of(fmt, self.kind, run=self.run)}
        if self.kind == "column" and self.run == fmt.cols:
            layouts["few"] = layout_of(fmt, self.kind, run=self.run, few=True)
        self.kind = layouts["many"].kind  # another machine may have no kernel for these blocks
        self._sizes = {name: list(layout.sizes) for name, layout in layouts.items()}
        for name, layout in layouts.items():
            self._keep(name, layout)

    def _keep(self, name: str, layout: Layout) -> None:
        for i, tensor in enumerate(layout.tensors):
            self.register_buffer(f"{name}_{i}", tensor, persistent=False)
        self._counts = {**getattr(self, "_counts", {}), name: len(layout.tensors)}

    def _weights(self, name: str) -> tuple[list[Tensor], list[int]]:
        return [getattr(self, f"{name}_{i}") for i in range(self._counts[name])], self._sizes[name]

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Weights are checked before they replace the old ones, since kernels trust them."""
        given = {n: state[f"{prefix}weight_{n}"] for n in self._names if f"{prefix}weight_{n}" in state}
        if len(given) == len(self._names):
            fmt = from_tensors(self.meta, given)
            for name, tensor in given.items():
                if getattr(self, f"weight_{name}").shape != tensor.shape:  # another pattern may have another count
                    self.register_buffer(f"weight_{name}", torch.empty_like(tensor))
            super()._load_from_state_dict(state, prefix, *rest)
            self._order(fmt)
        else:
            super()._load_from_state_dict(state, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        """Packed weights stay what they are: ``half()``, ``to(device)`` and the like are refused by name."""
        for tensor in self.buffers():
            moved = fn(tensor)
            if moved.device.type not in ("cpu", "meta") or moved.dtype != tensor.dtype:
                raise FormatError(
                    f"{type(self).__name__}: packed weights stay on the processor in the type they are stored in, got "
                    f"{moved.dtype} on {moved.device}; convert or move the model before packing it"
                )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        name = "" if self.activation == "none" else f", {self.activation}"
        return f"{self.meta['cols']} -> {self.meta['rows']}, {self.format!r}, {self.kind} kernel{name}"


class PackedLinear(Packed):
    """``y = act(x W^T + b + residual)`` with W packed.

    Shape:
        ``(..., in)`` to ``(..., out)``, any floating type; sums are float32.
    """

    def __init__(self, fmt: Format, bias: Tensor | None, kind: str, activation: str = "none") -> None:
        super().__init__(fmt, bias, kind, fmt.cols, activation)
        self.in_features, self.out_features = fmt.cols, fmt.rows

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise FormatError(f"PackedLinear: the last dimension must be {self.in_features}, got {tuple(x.shape)}")
        few = "few" in self._sizes and x.numel() <= FEW * self.in_features
        weights, sizes = self._weights("few" if few else "many")
        run = linear_now if _eager(x) else torch.ops.openwork.sparse_linear
        return run(x, self.kind, weights, sizes, self.bias, residual, self.activation)


class PackedConv2d(Packed):
    """A convolution ``(batch, in, height, width) -> (batch, out, ...)`` with packed weights, without groups.

    The matrix is ``(out, kernel positions x in)``. Inputs in channels-last order give outputs in the same order.
    """

    def __init__(
        self,
        fmt: Format,
        bias: Tensor | None,
        kind: str,
        *,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        activation: str = "none",
    ) -> None:
        channels = fmt.cols // (kernel_size[0] * kernel_size[1])
        super().__init__(fmt, bias, kind, channels, activation)
        self.in_channels, self.out_channels = channels, fmt.rows
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def dense_weight(self) -> Tensor:
        """The weight as the dense layer held it, float32 ``(out, in, height, width)``."""
        matrix = self.format.unpack()
        return matrix.view(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise FormatError(
                f"PackedConv2d: the input must have {self.in_channels} channels in dimension -3, got {tuple(x.shape)}"
            )
        weights, sizes = self._weights("many")
        if x.dim() == 3:
            return self(x[None], None if residual is None else residual[None])[0]
        run = conv2d_now if _eager(x) else torch.ops.openwork.sparse_conv2d
        return run(
            x, self.kind, weights, sizes, self.bias, residual, self.activation,
            self.kernel_size, self.stride, self.padding, self.dilation,
        )  # fmt: skip
