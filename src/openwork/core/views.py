"""A parameter seen as matrices ``[stack, out, in]``: linear, transposed (Conv1D), convolution, fused experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MatrixView:
    """A reversible reading of a tensor as ``stack`` matrices of ``rows`` x ``cols``.

    ``order`` permutes the tensor's dimensions; the permuted tensor is then folded to
    ``(stack, rows, cols)``. ``inner`` is the length of the innermost contiguous axis of a row
    (input channels), inside which N:M runs and groups must lie.

    Convolutions ``(out, in, *kernel)`` are read as ``(out, kernel positions x in)``, positions first,
    so that a block holds neighbouring input channels of one kernel position.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    folded: tuple[int, int, int]
    inner: int

    def open(self, tensor: Tensor) -> Tensor:
        """Tensor-shaped -> ``[stack, rows, cols]``."""
        return tensor.permute(self.order).reshape(self.folded)

    def close(self, matrices: Tensor) -> Tensor:
        """``[stack, rows, cols]`` -> tensor-shaped."""
        permuted = tuple(self.shape[d] for d in self.order)
        back = [0] * len(self.order)
        for at, dim in enumerate(self.order):
            back[dim] = at
        return matrices.reshape(permuted).permute(back)


def linear_view(shape: tuple[int, ...]) -> MatrixView:
    """``(out, in)`` as it is."""
    return MatrixView(shape, (0, 1), (1, shape[0], shape[1]), shape[1])


def transposed_view(shape: tuple[int, ...]) -> MatrixView:
    """``(in, out)``, as in the Conv1D of GPT-2."""
    return MatrixView(shape, (1, 0), (1, shape[1], shape[0]), shape[0])


def conv_view(shape: tuple[int, ...]) -> MatrixView:
    """``(out, in / groups, *kernel)`` as ``(out, positions x in)``."""
    out, inn, *kernel = shape
    positions = 1
    for size in kernel:
        positions *= size
    order = (0, *range(2, len(shape)), 1)
    return MatrixView(shape, order, (1, out, positions * inn), inn)


def transposed_conv_view(shape: tuple[int, ...]) -> MatrixView:
    """``(in, out / groups, *kernel)`` of a transposed convolution as ``(out, positions x in)``."""
    inn, out, *kernel = shape
    positions = 1
    for size in kernel:
        positions *= size
    order = (1, *range(2, len(shape)), 0)
    return MatrixView(shape, order, (1, out, positions * inn), inn)


def kernel_view(view: MatrixView) -> MatrixView:
    """The same convolution with the kernel positions innermost, ``(out, in x positions)``."""
    first, last = view.order[0], view.order[-1]
    order = (first, last, *view.order[1:-1])
    positions = view.folded[2] // view.inner
    return MatrixView(view.shape, order, view.folded, positions)


def stacked_view(shape: tuple[int, ...]) -> MatrixView:
    """``(experts, out, in)``: one matrix per expert."""
    return MatrixView(shape, (0, 1, 2), (shape[0], shape[1], shape[2]), shape[2])
