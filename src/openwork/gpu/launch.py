"""Calls of the Triton kernels: shapes, strides, work tables and workspaces. Loads Triton when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from openwork.errors import KernelError
from openwork.gpu.schedule import FEW_TOKENS

DECODE_TOKENS = 4
"""Up to so many tokens a product is a few matrix-vector products, limited by reading the weights."""
MOST_TOKENS = 2**31 - 1024
"""Tokens are numbered by int32 in the kernels; places in memory are int64."""


@cache
def kernels() -> Any:
    """The module with the compiled kernels.

    Raises:
        KernelError: Triton is not installed.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise KernelError(
            f"sparse layers on a GPU need Triton ({error}); install it: pip install 'openwork[gpu]'"
        ) from None
    return importlib.import_module("openwork.gpu.device")


def product(
    x: Tensor,
    values: Tensor,
    tables: Sequence[Tensor],
    rows: int,
    cols: int,
    turned: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    keep: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """See `openwork.gpu.ops.product`."""
    device = kernels()
    _, height, width = values.shape
    inner, outer = (height, width) if turned else (width, height)
    inner_size, size = (rows, cols) if turned else (cols, rows)
    tokens = _counted(x)
    y = x.new_empty(tokens, size)
    z = x.new_empty((tokens, size) if keep else 0)
    if tokens == 0:
        return y, z
    others, places = (tables[2], tables[3]) if turned else (tables[0], tables[0])
    first = 4 + 4 * turned + 2 * (tokens > FEW_TOKENS)
    items, splits = tables[first], tables[first + 1]
    x, values = by_rows(x), values.contiguous()
    residual = None if residual is None else by_rows(residual)
    lines = -(-size // outer)
    slots = items.shape[0] - (lines - splits.shape[0])
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = x.new_empty(slots, tokens, outer, dtype=sums)
    finish = {
        "bias": x if bias is None else bias.contiguous(),
        "residual": x if residual is None else residual,
        "residual_stride": 0 if residual is None else residual.stride(0),
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": activation,
        "KEEP": keep,
        "WIDE": sums == torch.float64,
    }
    shape = {"tokens": tokens, "inner_size": inner_size, "size": size}
    layout = {"INNER": inner, "OUTER": outer, "SK": width if turned else 1, "SN": 1 if turned else width}
    run = device.decode if tokens <= DECODE_TOKENS else device.product
    with _on(x):
        run(x, values, others, places, items, y, z, partial, shape=shape, layout=layout, finish=finish, gather=turned,
            precision=precision)  # fmt: skip
        if splits.shape[0]:
            device.combine(partial, splits, y, z, shape=shape, outer=outer, finish=finish)
    return y, z


def outer(
    grad: Tensor, x: Tensor, tables: Sequence[Tensor], rows: int, cols: int, height: int, width: int, precision: str
) -> Tensor:
    """See `openwork.gpu.ops.outer`."""
    device = kernels()
    count, chunks, tokens = tables[0].shape[0], tables[-1], _counted(x)
    if tokens == 0 or count == 0:
        return x.new_zeros(count, height, width)
    # Few chunks and many tokens leave multiprocessors idle: cut the tokens, add the parts in a fixed order.
    cuts = max(1, min(-(-512 // chunks.shape[0]), tokens // 1024, 16))
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_empty(cuts, count, height, width, dtype=x.dtype if cuts == 1 else sums)
    with _on(x):
        device.outer(by_rows(grad), by_rows(x), tables[0], chunks, out, tokens=tokens, rows=rows, cols=cols,
                     precision=precision, wide=sums == torch.float64)  # fmt: skip
    return out[0] if cuts == 1 else out.sum(0).to(x.dtype)


def by_rows(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous; any distance between rows is fine."""
    return x if x.stride(1) == 1 else x.contiguous()


def _counted(x: Tensor) -> int:
    if x.shape[0] > MOST_TOKENS:
        raise KernelError(f"block_linear: x must have at most {MOST_TOKENS} tokens, got {x.shape[0]}; pass it in parts")
    return x.shape[0]


def _on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
