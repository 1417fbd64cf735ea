"""The checked call: everything a kernel relies on is verified here, before it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork.errors import KernelError
from openwork.gpu import ops
from openwork.gpu.activations import ACTIVATIONS
from openwork.gpu.index import BlockIndex

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
PRECISIONS = ("ieee", "tf32", "tf32x3")


def block_linear(
    x: Tensor,
    values: Tensor,
    index: BlockIndex,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    precision: str = "ieee",
) -> Tensor:
    """``act(x @ W.T + bias) + residual`` with a block-sparse ``W`` of shape ``(rows, cols)``.

    Sums are carried in fp32 (float64 for float64) and rounded once. Differentiable in ``x``, ``values``, ``bias`` and
    ``residual``, any number of times. Under autocast ``x``, ``values``, ``bias`` and ``residual`` are cast first. NaN
    or infinity in an input that no kept block of an output reads does not reach that output, unlike in a dense
    product with zeros.

    Args:
        x: ``[..., cols]`` in bf16, fp16, fp32 or float64; any strides.
        values: ``[n, height, width]`` of the same dtype and device.
        index: which blocks these are.
        bias: ``[rows]``.
        residual: ``[..., rows]``, added after the activation.
        activation: ``none``, ``relu``, ``gelu`` (exact), ``gelu_tanh`` or ``silu``.
        precision: of fp32 products on tensor cores: ``ieee`` (exact products), ``tf32`` (10 bits) or ``tf32x3``.
            Changes nothing for other dtypes, for four tokens or fewer, and without a GPU.

    Returns:
        ``[..., rows]``, contiguous, dtype of ``x`` (of autocast).

    Raises:
        KernelError: a shape, dtype, device or option is not as above, or on a GPU, Triton is not installed.
    """
    return apply(
        x,
        values,
        index.tables,
        (index.rows, index.cols, index.height, index.width),
        bias,
        residual,
        activation,
        precision,
    )


def apply(
    x: Tensor,
    values: Tensor,
    tables: Sequence[Tensor],
    sizes: tuple[int, int, int, int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
) -> Tensor:
    """See `block_linear`; the index as its tables and (rows, cols, height, width)."""
    rows, cols = sizes[:2]
    check_options(activation, precision)
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        residual = None if residual is None else residual.to(dtype)
    _check(x, values, tables, sizes, bias, residual)
    flat = x.reshape(-1, cols)
    more = None if residual is None else residual.reshape(-1, rows)
    wanted = [t for t in (x, values, bias) if t is not None]
    keep = activation != "none" and torch.is_grad_enabled() and any(t.requires_grad for t in wanted)
    y, _ = ops.product(flat, values, list(tables), rows, cols, False, bias, more, activation, keep, precision)
    return y.reshape(*x.shape[:-1], rows)


def check_options(activation: str, precision: str) -> None:
    """Raises:
    KernelError: one of them is not known.
    """  # noqa: D205
    if activation not in ACTIVATIONS:
        raise KernelError(f"block_linear: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if precision not in PRECISIONS:
        raise KernelError(f"block_linear: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def _check(
    x: Tensor,
    values: Tensor,
    tables: Sequence[Tensor],
    sizes: tuple[int, int, int, int],
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    rows, cols, height, width = sizes
    if x.dtype not in DTYPES:
        raise KernelError(f"block_linear: x must be bf16, fp16, fp32 or float64, got {x.dtype}; cast it")
    if x.ndim < 1 or x.shape[-1] != cols:
        raise KernelError(f"block_linear: x must be [..., {cols}], got {tuple(x.shape)}")
    want = (tables[0].shape[0], height, width)
    if tuple(values.shape) != want:
        raise KernelError(f"block_linear: values must be {want} (blocks, height, width), got {tuple(values.shape)}")
    if bias is not None and tuple(bias.shape) != (rows,):
        raise KernelError(f"block_linear: bias must be ({rows},), got {tuple(bias.shape)}")
    if residual is not None and residual.shape != (*x.shape[:-1], rows):
        raise KernelError(
            f"block_linear: residual must have the shape of the result, {(*x.shape[:-1], rows)}, "
            f"got {tuple(residual.shape)}"
        )
    for name, other in (("values", values), ("bias", bias), ("residual", residual)):
        if other is not None and (other.dtype, other.device) != (x.dtype, x.device):
            raise KernelError(
                f"block_linear: {name} must have the dtype and device of x, {x.dtype} on {x.device}, "
                f"got {other.dtype} on {other.device}"
            )
    if tables[0].device != x.device:
        raise KernelError(
            f"block_linear: the index must be on {x.device} like x, got {tables[0].device}; use index.to()"
        )
