"""Calls like the one before: what was checked and made for that is used once more.

A model's layers get inputs of the same shape again and again, and with one token the checks of a call would take as
long as a small product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_place = Tensor.data_ptr


class Again:
    """A call of a native function, ready for other inputs of the same shape, strides and type.

    Args:
        function: the native one.
        weights: what it takes for the weights.
        tensors: where those lie.
        bias: read where it lies.
        activation: number of the activation.
        numbers: what the function takes behind the addresses of input and output.
        threads: of the call.
        x: its input.
        y: its output, of the same type.
    """

    __slots__ = (
        "_bias", "_end", "_form", "_function", "_numbers", "_out", "_places", "_shape", "_strides",
        "_team", "_tensors", "_threads", "_type", "_weights",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., None],
        weights: tuple[int, ...],
        tensors: Sequence[Tensor],
        bias: Tensor | None,
        activation: int,
        numbers: tuple[Any, ...],
        threads: int,
        x: Tensor,
        y: Tensor,
    ) -> None:
        self._function, self._weights = function, weights
        self._bias, self._numbers, self._threads, self._team = bias, numbers, threads, torch.get_num_threads()
        self._type, self._shape, self._strides = x.dtype, x.shape, x.stride()
        self._out, self._form = y.shape, y.stride()
        self._tensors = [*tensors, *([] if bias is None else [bias])]
        self._places = list(map(_place, self._tensors))
        self._end = (0 if bias is None else bias.data_ptr(), 0, activation)

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """The output for another input, or None when anything is different: then all has to be checked again."""
        if x.shape != self._shape or x.dtype is not self._type or x.stride() != self._strides or bias is not self._bias:
            return None
        if list(map(_place, self._tensors)) != self._places or torch.get_num_threads() != self._team:
            return None
        y = x.new_empty_strided(self._out, self._form)
        self._function(self._weights, self._end, (x.data_ptr(), y.data_ptr(), *self._numbers), self._threads)
        return y
