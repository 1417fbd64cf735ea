"""The two operators, known to torch: ``torch.compile``, ``torch.export``, autograd of any order and CPU all see them.

``product`` is ``act(x @ W.T + bias) + residual``, or with ``turned`` the same with ``x @ W``; ``outer`` is
``grad.T @ x`` at the kept blocks. They are each other's derivatives, so their gradients need nothing else. Arguments
are not checked here: `openwork.gpu.block_linear` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from openwork.gpu import launch, reference
from openwork.gpu.activations import derivative
from openwork.gpu.interpreter import on_device


@torch.library.custom_op("openwork_gpu::product", mutates_args=())
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
    """``x`` is ``[T, cols]`` (turned: ``[T, rows]``); gives ``[T, rows]`` and, if ``keep``, what the activation saw."""
    if on_device(x):
        return launch.product(x, values, tables, rows, cols, turned, bias, residual, activation, keep, precision)
    with _as_given(x):
        y, z = reference.product(x, values, tables, rows, cols, turned, bias, residual, activation)
    return _own(y, x), (_own(z, x, y) if keep else x.new_empty(0))


def _as_given(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast was applied before; inside it would mix dtypes."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _own(result: Tensor, *others: Tensor) -> Tensor:
    """An operator may not return memory that it was given, nor the same memory twice."""
    taken = {other.untyped_storage().data_ptr() for other in others}
    return result.clone() if result.untyped_storage().data_ptr() in taken else result


@product.register_fake
def _(
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
    shape = (x.shape[0], cols if turned else rows)
    return x.new_empty(shape), x.new_empty(shape if keep else 0)


@torch.library.custom_op("openwork_gpu::outer", mutates_args=())
def outer(
    grad: Tensor, x: Tensor, tables: Sequence[Tensor], rows: int, cols: int, height: int, width: int, precision: str
) -> Tensor:
    """``grad`` ``[T, rows]`` and ``x`` ``[T, cols]`` to ``[n, height, width]``."""
    if on_device(x):
        return launch.outer(grad, x, tables, rows, cols, height, width, precision)
    with _as_given(x):
        return reference.outer(grad, x, tables, rows, cols, height, width)


@outer.register_fake
def _(
    grad: Tensor, x: Tensor, tables: Sequence[Tensor], rows: int, cols: int, height: int, width: int, precision: str
) -> Tensor:
    return x.new_empty(tables[0].shape[0], height, width)


def _remember_product(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, values, tables, ctx.rows, ctx.cols, ctx.turned, _, _, ctx.activation, _, ctx.precision = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, values, output[1], *tables)


def _product_backward(ctx: Any, grad: Tensor | None, grad_kept: Tensor | None) -> tuple[Any, ...]:
    x, values, kept, *tables = ctx.saved_tensors
    sizes, needs = (ctx.rows, ctx.cols), ctx.needs_input_grad
    dz = grad_kept
    if grad is not None:
        dz = derivative(ctx.activation, grad, kept)
        dz = dz if grad_kept is None else dz + grad_kept
    found: list[Any] = [None] * 11
    found[2] = [None] * len(tables)
    if dz is None:
        return tuple(found)
    if needs[0]:
        found[0] = product(dz, values, tables, *sizes, not ctx.turned, None, None, "none", False, ctx.precision)[0]
    if needs[1]:
        left, right = (x, dz) if ctx.turned else (dz, x)
        found[1] = outer(left, right, tables, *sizes, *values.shape[1:], ctx.precision)
    found[6] = dz.sum(0) if needs[6] else None
    found[7] = grad if needs[7] else None
    return tuple(found)


def _remember_outer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, tables, ctx.rows, ctx.cols, _, _, ctx.precision = inputs
    ctx.save_for_backward(grad, x, *tables)


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    left, right, *tables = ctx.saved_tensors
    more = (ctx.rows, ctx.cols)
    for_left = product(right, grad, tables, *more, False, None, None, "none", False, ctx.precision)[0]
    for_right = product(left, grad, tables, *more, True, None, None, "none", False, ctx.precision)[0]
    return for_left, for_right, [None] * len(tables), None, None, None, None, None


product.register_autograd(_product_backward, setup_context=_remember_product)
outer.register_autograd(_outer_backward, setup_context=_remember_outer)
