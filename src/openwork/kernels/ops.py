"""The operators ``torch.ops.openwork.sparse_*``: products that torch.compile and torch.export understand.

Sums are float32. bfloat16 inputs are multiplied as they are by blocks of bfloat16 or int8 (times its scale, rounded to
bfloat16) where the processor can (AMX, AVX512-BF16); all others are computed in float32 and turned back. Weights of the
kind ``int8`` are multiplied by tokens rounded to int8, or by the pixels of images where kernels are 1 x 1; those sums
are whole numbers. For inference: no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.errors import OpenworkError
from openwork.kernels.again import Again
from openwork.kernels.dense import dense_of
from openwork.kernels.native import native
from openwork.kernels.rounding import round_pixels, round_tokens
from openwork.kernels.trust import demand_sound, demand_window

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "relu6")
STORES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
PAIRS = 3
FEW = 4  # tokens up to which weights bound the time, not arithmetic
WORTH = 500_000  # multiplications below which a second thread costs more than it brings

_LIB = torch.library.Library("openwork", "DEF")
_ARGUMENTS = "Tensor x, str kind, Tensor[] weights, int[] sizes, Tensor? bias, Tensor? residual, str activation"
_LIB.define(f"sparse_linear({_ARGUMENTS}) -> Tensor")
_LIB.define(f"sparse_conv2d({_ARGUMENTS}, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor")


def _weights(kind: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> tuple[int, ...]:
    """The arguments of the native function; see ``module.cpp``."""
    values = tensors[0]
    scaled = values.dtype == torch.int8
    scales = tensors[-1].data_ptr() if scaled else 0
    store = PAIRS if kind == "block" and values.dim() == 4 else STORES[values.dtype]
    if kind in ("block", "int8"):
        inputs, starts = tensors[1:3]
        height, depth, outputs, _ = sizes
        two, more = (inputs.data_ptr(), starts.data_ptr()), (tensors[3].data_ptr(),) if kind == "int8" else ()
        return values.data_ptr(), scales, *two, len(starts) - 1, height, depth, outputs, store, *more
    if kind == "bits":
        _, _, outputs, cols = sizes
        return values.data_ptr(), scales, tensors[1].data_ptr(), tensors[2].data_ptr(), outputs, cols, store
    inputs, starts, order = tensors[1:4]
    chunk, height, outputs, part, _ = sizes
    groups = max(1, -(-outputs // height))
    places = (inputs.data_ptr(), starts.data_ptr(), order.data_ptr())
    return values.data_ptr(), scales, *places, chunk, len(order) // groups, groups, height, outputs, part, store


class Ready:
    """The weights of a layout and the native function's arguments made of them, which are remade when a tensor moved.

    Args:
        kind: of the layout.
        tensors: of the layout.
        sizes: of the layout.
        ground: owns the memory in which the tensors lie, see ``ground``; with it ``again`` is made for calls to come.
    """

    __slots__ = ("_arguments", "_ground", "_places", "again", "kind", "numel", "paired", "sizes", "tensors")

    def __init__(
        self, kind: str, tensors: Sequence[Tensor], sizes: Sequence[int], ground: memoryview | None = None
    ) -> None:
        self.kind, self.tensors, self.sizes, self._ground = kind, tensors, sizes, ground
        self.again: Again | None = None
        values = tensors[0]
        self.numel = values.numel()
        pairs = values.dim() == 4 or (values.dtype == torch.int8 and sizes[1] % 2 == 0)
        self.paired = kind == "int8" or (kind == "block" and pairs)
        self._places: list[int] = []
        self._arguments: tuple[int, ...] = ()

    @classmethod
    def sound(cls, op: str, kind: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Ready:
        """Weights from anywhere, checked."""
        known, new = demand_sound(op, kind, tensors, sizes), cls(kind, tensors, sizes)
        if known is not None:
            known.arguments = known.arguments or new.arguments()
            new._places, new._arguments = known.places, known.arguments
        return new

    def arguments(self) -> tuple[int, ...]:
        """What the native function takes for the weights."""
        places = [t.data_ptr() for t in self.tensors]
        if places != self._places:
            self._places, self._arguments = places, _weights(self.kind, self.tensors, self.sizes)
        return self._arguments

    def computes_half(self, dtype: torch.dtype, residual: Tensor | None, module: Any | None) -> bool:
        """Whether the kernels multiply inputs of this type by these weights without widening them."""
        fits = self.paired and dtype is torch.bfloat16 and (residual is None or residual.dtype is dtype)
        if not fits or module is None:
            return False
        return module.dots() if self.kind == "int8" else module.halves()

    def threads(self, times: float) -> int:
        """How many threads a product is worth that uses every weight so many times."""
        return torch.get_num_threads() if self.numel * times > WORTH else 1

    def launch(
        self,
        function: Any,
        x: Tensor,
        y: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        numbers: tuple[Any, ...],
        times: float,
        given: tuple[Tensor, Tensor | None, Tensor | None] | None,
    ) -> None:
        """Call a native function, and make it ready to be called again when it read ``given``: input, bias, residual.

        ``None`` for outputs that are put into another order afterwards.
        """
        end = (_address(bias), ACTIVATIONS.index(activation))
        call = function(self.arguments(), end, numbers, self.threads(times))
        call(x.data_ptr(), y.data_ptr(), _address(residual))
        if self._ground is not None:
            self.again = None
            if given is not None and all(map(_alike, (x, bias, residual), given)):
                self.again = Again(call, self._ground, given[1], given[0], y)


def activated(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """What kernels do with finished sums, computed by torch."""
    y = y if residual is None else y + residual
    match activation:
        case "relu":
            return torch.relu(y)
        case "gelu":
            return F.gelu(y)
        case "gelu_tanh":
            return F.gelu(y, approximate="tanh")
        case "silu":
            return F.silu(y)
        case "relu6":
            return F.relu6(y)
    return y


def _check(
    op: str,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    shape: Sequence[int],
    sizes: Sequence[int],
    inputs: int,
) -> None:
    outputs, cols = sizes[2], sizes[-1]
    if inputs != cols:
        raise OpenworkError(f"{op}: the weights take {cols} inputs, the input {tuple(x.shape)} brings {inputs}")
    if activation not in ACTIVATIONS:
        raise OpenworkError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not x.dtype.is_floating_point:
        raise OpenworkError(f"{op}: the input must be floating point, got {x.dtype}")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise OpenworkError(f"{op}: the bias must have shape ({outputs},), got {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != tuple(shape):
        raise OpenworkError(
            f"{op}: the residual must have the shape of the output, {tuple(shape)}, got {tuple(residual.shape)}"
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _alike(found: Tensor | None, given: Tensor | None) -> bool:
    """Whether a tensor is read where it was given."""
    if found is None or given is None:
        return found is given
    return found.data_ptr() == given.data_ptr() and found.dtype is given.dtype


def _floats(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float32 else tensor.float()


@cache
def _kernel(module: Any, kind: str, job: str) -> Any:
    return getattr(module, f"{kind}_{job}")


def linear_now(x: Tensor, kind: str, weights: Sequence[Tensor], sizes: Sequence[int], *end: Any) -> Tensor:
    """``sparse_linear`` without torch's dispatcher. ``x`` is ``(..., in)``; see ``Layout`` for the weights."""
    return linear_of(x, Ready.sound("sparse_linear", kind, weights, sizes), *end)


def linear_of(x: Tensor, ready: Ready, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    """``linear_now`` with weights that were made ready before, and that are sound."""
    sizes, given = ready.sizes, (x, bias, residual)
    outputs, cols = sizes[2], x.shape[-1]
    shape = (*x.shape[:-1], outputs)
    _check("sparse_linear", x, bias, residual, activation, shape, sizes, cols)
    dtype, module = x.dtype, native()
    bias = None if bias is None else _floats(bias).contiguous()
    rounds = ready.kind == "int8"
    half = ready.computes_half(dtype, residual, module) and (rounds or x.numel() > FEW * cols)
    if not half:
        x = _floats(x)
    if x.dim() != 2:
        x = x.reshape(-1, cols)
    if module is None or not cols or (rounds and not module.dots()):
        more = None if residual is None else residual.reshape(-1, outputs)
        x = round_tokens(x) if rounds else x
        y = F.linear(x, dense_of(ready.kind, ready.tensors, sizes, cols), bias)
        return activated(y, more, activation).to(dtype).view(shape)
    tokens, (step, along) = x.shape[0], x.stride()
    y = torch.empty(shape, dtype=x.dtype, device="cpu")
    if tokens and outputs:
        if along != 1 or step < cols:
            x, step = x.contiguous(), cols
        more = None if residual is None else residual.to(x.dtype).contiguous()
        function, numbers = _kernel(module, ready.kind, "half" if half else "linear"), (tokens, cols, step, outputs)
        ready.launch(function, x, y, bias, more, activation, numbers, tokens, given)
    return y if y.dtype is dtype else y.to(dtype)


def sizes_out(x: Tensor, *window: Sequence[int]) -> list[int]:
    """Height and width of a convolution's output."""
    kernel, stride, padding, dilation = window
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]


def pointwise(kernel: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution multiplies single pixels, which are tokens then."""
    return tuple(kernel) == (1, 1) and not any(padding)


def conv2d_now(x: Tensor, kind: str, weights: Sequence[Tensor], sizes: Sequence[int], *end: Any) -> Tensor:
    """``sparse_conv2d`` without torch's dispatcher. ``x`` is ``(batch, in, height, width)``."""
    demand_window("sparse_conv2d", *end[3:])
    if kind == "int8" and not pointwise(end[3], end[5]):
        raise OpenworkError(
            f"sparse_conv2d: int8 arithmetic takes kernels of 1 x 1 without padding, got {list(end[3])}, padded by "
            f"{list(end[5])}"
        )
    return conv2d_of(x, Ready.sound("sparse_conv2d", kind, weights, sizes), *end)


def conv2d_of(
    x: Tensor,
    ready: Ready,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``conv2d_now`` with weights that were made ready before, and that are sound."""
    if x.dim() != 4:
        raise OpenworkError(f"sparse_conv2d: the input must be (batch, channels, height, width), got {tuple(x.shape)}")
    sizes, given = ready.sizes, (x, bias, residual)
    outputs, (batch, channels, height, width) = sizes[2], x.shape
    out = sizes_out(x, kernel, stride, padding, dilation)
    if min(out) < 1:
        raise OpenworkError(f"sparse_conv2d: the input {tuple(x.shape)} is smaller than the kernel {tuple(kernel)}")
    shape = (batch, outputs, *out)
    inputs = math.prod(kernel) * channels
    _check("sparse_conv2d", x, bias, residual, activation, shape, sizes, inputs)
    dtype, module = x.dtype, native()
    rounds = ready.kind == "int8"
    half = ready.computes_half(dtype, residual, module) and (rounds or channels % sizes[1] == 0)
    x = x if half else _floats(x)
    bias = None if bias is None else _floats(bias).contiguous()
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    if not inputs or not outputs:  # no kernel, nor torch's convolution, takes images without channels
        y = x.new_zeros(shape) + (0.0 if bias is None else bias[:, None, None])
        return activated(y, residual, activation).to(dtype)
    if module is None or (rounds and not module.dots()):
        x = round_pixels(x) if rounds else x
        matrix = dense_of(ready.kind, ready.tensors, sizes, inputs)
        weight = matrix.view(outputs, *kernel, channels).permute(0, 3, 1, 2).contiguous()
        y = activated(F.conv2d(x, weight, bias, stride, padding, dilation), residual, activation)
        return y.to(dtype).contiguous(memory_format=form)
    order = torch.channels_last if half or rounds else form  # of what the kernel reads and writes
    y = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=order)
    if batch and outputs:
        x = (x[:, :, :: stride[0], :: stride[1]] if rounds else x).contiguous(memory_format=order)
        more = None if residual is None else residual.to(x.dtype).contiguous(memory_format=order)
        pixels, image = batch * out[0] * out[1], (batch, channels, height, width, *kernel, *stride, *padding, *dilation)
        numbers = (pixels, channels, channels, outputs) if rounds else (*image, *out, last or half)
        job = ("half" if half else "linear") if rounds else ("half_conv" if half else "conv")
        function, given_so = _kernel(module, ready.kind, job), given if order is form else None
        ready.launch(function, x, y, bias, more, activation, numbers, pixels, given_so)
    y = y if y.dtype is dtype else y.to(dtype)
    return y if order is form else y.contiguous(memory_format=form)


_LIB.impl("sparse_linear", linear_now, "CPU")
_LIB.impl("sparse_conv2d", conv2d_now, "CPU")


@torch.library.register_fake("openwork::sparse_linear")
def _fake_linear(x, kind, weights, sizes, bias, residual, activation):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], sizes[2]))


@torch.library.register_fake("openwork::sparse_conv2d")
def _fake_conv2d(x, kind, weights, sizes, bias, residual, activation, kernel, stride, padding, dilation):  # type: ignore[no-untyped-def]
    y = x.new_empty((x.shape[0], sizes[2], *sizes_out(x, kernel, stride, padding, dilation)))
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last) if last else y


def _no_gradient(ctx: Any, *grads: Any) -> Any:
    raise OpenworkError(
        "packed layers are for inference and have no gradient; train the dense model, or detach the input"
    )


torch.library.register_autograd("openwork::sparse_linear", _no_gradient)
torch.library.register_autograd("openwork::sparse_conv2d", _no_gradient)
