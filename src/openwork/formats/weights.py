"""A weight of a layer <-> the matrices that formats store."""

from __future__ import annotations

from torch import Tensor

from openwork.core.targets import Target
from openwork.errors import FormatError


def matrices(tensor: Tensor, target: Target) -> Tensor:
    """Weight- or mask-shaped -> ``[stack, rows, cols]``, one matrix per expert and per group of a convolution.

    A convolution ``(out, in / groups, *kernel)`` and a transposed one ``(in, out / groups, *kernel)`` both give
    ``[groups, out / groups, positions x in / groups]``, positions first.

    Raises:
        FormatError: a tensor of another shape than the target's.
    """
    _expect(tensor, target.shape)
    opened = target.view.open(tensor)
    groups = target.groups
    if groups == 1:
        return opened
    _, rows, cols = opened.shape
    if _transposed(target):
        inner = target.view.inner // groups
        split = opened.reshape(rows, -1, groups, inner).permute(2, 0, 1, 3)
        return split.reshape(groups, rows, cols // groups)
    return opened.reshape(groups, rows // groups, cols)


def weight(stack: Tensor, target: Target) -> Tensor:
    """Inverse of ``matrices``.

    Raises:
        FormatError: the wrong number or shape of matrices.
    """
    _, rows, cols = target.view.folded
    groups = target.groups
    if groups == 1:
        _expect(stack, target.view.folded)
        return target.view.close(stack)
    if _transposed(target):
        _expect(stack, (groups, rows, cols // groups))
        inner = target.view.inner // groups
        opened = stack.reshape(groups, rows, -1, inner).permute(1, 2, 0, 3)
    else:
        _expect(stack, (groups, rows // groups, cols))
        opened = stack
    return target.view.close(opened.reshape(1, rows, cols))


def _transposed(target: Target) -> bool:
    """Outputs are the second dimension of a transposed convolution."""
    return target.view.order[0] == 1


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise FormatError(f"a tensor of shape {shape} is expected here, got {tuple(tensor.shape)}")
