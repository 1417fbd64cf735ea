"""Layers that keep their weights packed. For inference: no gradients, no parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.errors import FormatError
from openwork.formats import Format, from_tensors
from openwork.kernels import isa, layout_of
from openwork.kernels.ground import placed
from openwork.kernels.ops import ACTIVATIONS, FEW, Ready, activated, conv2d_of, linear_of, pointwise, sizes_out
from openwork.kernels.rounding import round_pixels, round_tokens
from openwork.runtime.eager import demand_no_transform, eager
from openwork.runtime.watch import Watch
from openwork.runtime.weight import PackedWeight


class Packed(nn.Module):
    """A sparse matrix in a storage format, and beside it the order in which the kernel reads it.

    The state holds the storage format, under ``weight_*``, and the bias; the kernel's order is made from it on the
    machine that runs, so state dicts travel between machines.
    """

    few: ClassVar[bool] = False  # whether calls with few tokens have an order of their own
    weight_dtype: torch.dtype = torch.float32  # of the dense weight
    bias: Tensor | None
    _last: Ready | None  # of the newest call

    def __init__(self, fmt: Format, bias: Tensor | None, kind: str, run: int, activation: str = "none") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise FormatError(f"{type(self).__name__}: activation must be one of {ACTIVATIONS}, got {activation!r}")
        if bias is not None and (tuple(bias.shape) != (fmt.rows,) or not bias.is_floating_point()):
            raise FormatError(
                f"{type(self).__name__}: the bias must hold {fmt.rows} floating point numbers, got "
                f"{tuple(bias.shape)} {bias.dtype}"
            )
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

    @property
    def weight(self) -> Tensor:
        """Stands for the dense weight: tells shape, dtype and device, and is unpacked by whatever computes with it."""
        if torch.compiler.is_compiling():  # a graph may ask the same, but cannot unpack
            return torch.empty(self.weight_shape, dtype=self.weight_dtype, device="meta")
        return PackedWeight(self.weight_shape, self.weight_dtype, lambda: self.dense_weight().to(self.weight_dtype))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        shape = (int(self.meta["rows"]), int(self.meta["cols"]))
        return shape[::-1] if self.transposed else shape

    def dense_weight(self) -> Tensor:
        """The weight as the dense layer held it, float32; ``transposed`` layers held ``(in, out)``."""
        matrix = self.format.unpack()
        return matrix.T if self.transposed else matrix

    def _order(self, fmt: Format) -> None:
        layouts = {"many": layout_of(fmt, self.kind, run=self.run)}
        if self.kind == "column" and self.few:
            layouts["few"] = layout_of(fmt, self.kind, run=self.run, few=True)
        # Another machine may have no kernel for these blocks. int8 arithmetic is a promise about results: it stays.
        self.kind = "int8" if self.kind == "int8" else layouts["many"].kind
        self._by_hand = self.kind == "int8" and layouts["many"].kind != "int8"
        self._sizes = {name: list(layout.sizes) for name, layout in layouts.items()}
        self._kinds = {name: layout.kind for name, layout in layouts.items()}
        self._kept = {name: [f"{name}_{i}" for i in range(len(layout.tensors))] for name, layout in layouts.items()}
        self._settle({f"{name}_{i}": t for name, layout in layouts.items() for i, t in enumerate(layout.tensors)})
        self._isa = isa()

    def _settle(self, order: Mapping[str, Tensor]) -> None:
        """Put the kernel's order where kernels read it, and remember what they trust, as it is now."""
        self._made: dict[str, Ready] = {}
        tensors, self._ground = placed(list(order.values()))
        for name, tensor in zip(order, tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        packed = [n for n in self._buffers if n != "bias"]
        self._watched = Watch(self._buffers, packed, [f"weight_{n}" for n in self._names])

    def _demand_unchanged(self) -> None:
        if self._watched.changed():
            raise FormatError(
                f"{type(self).__name__}: its packed weights were changed in place or exchanged, which kernels would "
                "not see; change the dense model and pack it again, or use load_state_dict"
            )

    def __getstate__(self) -> dict[str, Any]:
        """uint16 goes as int16, since torch does not pickle it."""
        short = [n for n, t in self._buffers.items() if t is not None and t.dtype == torch.uint16]
        seen = {n: t.view(torch.int16) if n in short and t is not None else t for n, t in self._buffers.items()}
        left: dict[str, Any] = {"_watched": None, "_made": {}, "_ground": None, "_last": None}
        return {**self.__dict__, "_buffers": seen, "_short": short, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        short = state.pop("_short")
        super().__setstate__(state)
        self._buffers.update({n: self._buffers[n].view(torch.uint16) for n in short})  # type: ignore[union-attr]
        if self._isa == isa():
            self._settle({n: self._buffers[n] for names in self._kept.values() for n in names})  # type: ignore[misc]
        else:  # the copy runs on another machine
            self._order(self.format)

    def _weights(self, name: str) -> tuple[list[Any], list[int]]:
        buffers = self._buffers
        return [buffers[place] for place in self._kept[name]], self._sizes[name]

    def _ready(self, name: str) -> Ready:
        """The weights for a call that runs now, checked."""
        self._demand_unchanged()
        found = self._made.get(name)
        if found is None:
            ground = None if self._by_hand else self._ground  # tokens rounded beforehand are no call's own
            found = self._made[name] = Ready(self._kinds[name], *self._weights(name), ground)
        self.__dict__["_last"] = found
        return found

    def _again(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """The output when this call is like the one before, else None."""
        last = self._last
        again = None if last is None else last.again
        if again is None or torch.is_autocast_enabled("cpu") or self._watched.changed():
            return None
        return again.run(x, self._buffers["bias"], residual)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__["_last"] = None  # whatever was set, the next call looks at all of it

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Weights are checked before they replace the old ones, since kernels trust them."""
        given = {n: state[f"{prefix}weight_{n}"] for n in self._names if f"{prefix}weight_{n}" in state}
        if len(given) < len(self._names):  # a part of a matrix is none: all of it counts as missing
            state = {n: t for n, t in state.items() if n not in {f"{prefix}weight_{k}" for k in given}}
            super()._load_from_state_dict(state, prefix, *rest)
        else:
            fmt = from_tensors(self.meta, given)
            for name, tensor in given.items():
                if getattr(self, f"weight_{name}").shape != tensor.shape:  # another pattern may have another count
                    self.register_buffer(f"weight_{name}", torch.empty_like(tensor))
            super()._load_from_state_dict(state, prefix, *rest)
            self._order(fmt)

    @staticmethod
    def _arrived(x: Tensor) -> Tensor:
        """The input as a dense layer would read it under autocast."""
        if torch.is_autocast_enabled("cpu") and x.dtype in (torch.float32, torch.float16, torch.bfloat16):
            return x.to(torch.get_autocast_dtype("cpu"))
        return x

    def _in_float(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The same for inputs whose type has too few digits for the steps of a scale."""
        with torch.autocast("cpu", enabled=False):
            y: Tensor = self(x.float(), residual)
        return y.to(x.dtype)

    @staticmethod
    def _by_torch(residual: Tensor, x: Tensor, shape: tuple[int, ...]) -> bool:
        """Whether a sum broadcasts or promotes, which kernels do not; what cannot be added is left to their check."""
        if residual.dtype == x.dtype and residual.device == x.device and tuple(residual.shape) == shape:
            return False
        try:
            torch.broadcast_shapes(residual.shape, shape)
        except RuntimeError:
            return False
        return True

    def _finished(self, y: Tensor, residual: Tensor) -> Tensor:
        """Sums without residual and activation, with them; the next call must not be like this one."""
        self.__dict__["_last"] = None
        return activated(y, residual, self.activation)

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        """Packed weights stay what and where they are: ``half()``, ``to(device)`` and the like are refused by name."""
        for tensor in self.buffers():
            moved = fn(tensor)
            if moved.device.type != "cpu" or moved.dtype != tensor.dtype:
                raise FormatError(
                    f"{type(self).__name__}: packed weights stay on the processor in the type they are stored in, got "
                    f"{moved.dtype} on {moved.device}; convert or move the model before packing it"
                )
        return self

    def extra_repr(self) -> str:
        name = "" if self.activation == "none" else f", {self.activation}"
        return f"{self.meta['cols']} -> {self.meta['rows']}, {self.format!r}, {self.kind} kernel{name}"


class PackedLinear(Packed):
    """``y = act(x W^T + b + residual)`` with W packed.

    The kind ``int8`` rounds every token to int8 by its largest magnitude and multiplies whole numbers; processors
    without such products compute the same in float32.

    Shape:
        ``(..., in)`` to ``(..., out)``, any floating type; sums are float32.
    """

    few = True

    def __init__(self, fmt: Format, bias: Tensor | None, kind: str, activation: str = "none") -> None:
        super().__init__(fmt, bias, kind, fmt.cols, activation)
        self.in_features, self.out_features = fmt.cols, fmt.rows

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        live = eager(x, residual)
        if live and (y := self._again(x, residual)) is not None:
            return y
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise FormatError(f"PackedLinear: the last dimension must be {self.in_features}, got {tuple(x.shape)}")
        x = self._arrived(x)
        if self._by_hand and x.dtype != torch.float32:
            return self._in_float(x, residual)
        x = round_tokens(x) if self._by_hand else x
        # An exported program serves every number of tokens with one order.
        few = "few" in self._sizes and not torch.compiler.is_exporting() and x.numel() <= FEW * self.in_features
        name = "few" if few else "many"
        run: Any
        given: tuple[Any, ...]
        if live:
            run, given = linear_of, (x, self._ready(name))
        else:
            demand_no_transform(x)
            run, given = torch.ops.openwork.sparse_linear, (x, self._kinds[name], *self._weights(name))
        if residual is not None and self._by_torch(residual, x, (*x.shape[:-1], self.out_features)):
            return self._finished(run(*given, self.bias, None, "none"), residual)
        return run(*given, self.bias, residual, self.activation)


class PackedConv2d(Packed):
    """A convolution ``(batch, in, height, width) -> (batch, out, ...)`` with packed weights, without groups.

    The matrix is ``(out, kernel positions x in)``. Inputs in channels-last order give outputs in the same order; with
    ``channels_last`` set, all do. The kind ``int8`` is for kernels of 1 x 1 without padding and rounds every pixel to
    int8 by its largest magnitude, as ``PackedLinear`` does with tokens.
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
        window = (*kernel_size, *stride, *dilation)
        if min(window) < 1 or min(padding) < 0 or fmt.cols % (kernel_size[0] * kernel_size[1]):
            raise FormatError(
                f"PackedConv2d: a matrix with {fmt.cols} columns does not fit the window kernel_size={kernel_size}, "
                f"stride={stride}, padding={padding}, dilation={dilation}"
            )
        if kind == "int8" and not pointwise(kernel_size, padding):
            raise FormatError(
                f"PackedConv2d: int8 arithmetic takes kernels of 1 x 1 without padding, got {kernel_size}, padded by "
                f"{padding}; use 'column'"
            )
        channels = fmt.cols // (kernel_size[0] * kernel_size[1])
        super().__init__(fmt, bias, kind, channels, activation)
        self.in_channels, self.out_channels = channels, fmt.rows
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.channels_last = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.kernel_size)

    def dense_weight(self) -> Tensor:
        """The weight as the dense layer held it, float32 ``(out, in, height, width)``."""
        matrix = self.format.unpack()
        return matrix.view(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        live = eager(x, residual)
        if live and (y := self._again(x, residual)) is not None:
            return y
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise FormatError(
                f"PackedConv2d: the input must have {self.in_channels} channels in dimension -3, got {tuple(x.shape)}"
            )
        if x.dim() == 3:
            return self(x[None], None if residual is None else residual[None])[0]
        x = self._arrived(x)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._by_hand and x.dtype != torch.float32:
            return self._in_float(x, residual)
        x = round_pixels(x) if self._by_hand else x
        run: Any
        given: tuple[Any, ...]
        if live:
            run, given = conv2d_of, (x, self._ready("many"))
        else:
            demand_no_transform(x)
            run, given = torch.ops.openwork.sparse_conv2d, (x, self._kinds["many"], *self._weights("many"))
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        if residual is not None:
            shape = (x.shape[0], self.out_channels, *sizes_out(x, *window))
            if self._by_torch(residual, x, shape):
                return self._finished(run(*given, self.bias, None, "none", *window), residual)
        return run(*given, self.bias, residual, self.activation, *window)
