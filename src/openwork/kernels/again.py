"""Calls like the one before: what was checked and made for that is used once more.

A model's layers get inputs of the same shape again and again, and with one token the checks of a call would take as
long as a small product. Between two calls the other layers' weights pass through the caches: whatever belongs to one
layer alone comes from memory then, so that little of it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Form = TypeVar("Form", bound=tuple[int, ...])
_forms: dict[tuple[int, ...], Any] = {}


class Again:
    """A call of a kernel, ready for other inputs of the same shape, strides and type.

    Args:
        call: the native call.
        ground: owns the weights, so that they stay where they lie.
        bias: read where it lies.
        x: the input.
        y: the output, of the same type.
    """

    __slots__ = ("_bias", "_call", "_form", "_ground", "_out", "_place", "_shape", "_strides", "_team", "_type")

    def __init__(
        self, call: Callable[[int, int, int], None], ground: object, bias: Tensor | None, x: Tensor, y: Tensor
    ) -> None:
        self._call, self._ground, self._team = call, ground, torch.get_num_threads()
        self._bias, self._place = bias, 0 if bias is None else bias.data_ptr()
        self._type, self._shape, self._strides = x.dtype, _same(x.shape), _same(x.stride())
        self._out, self._form = _same(y.shape), _same(y.stride())

    def run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor | None:
        """The output for another input, or None when anything is different: then all has to be checked again."""
        if x.shape != self._shape or x.dtype is not self._type or x.stride() != self._strides or bias is not self._bias:
            return None
        if torch.get_num_threads() != self._team or (bias is not None and bias.data_ptr() != self._place):
            return None
        more = 0
        if residual is not None:
            if residual.shape != self._out or residual.dtype is not self._type or residual.stride() != self._form:
                return None
            more = residual.data_ptr()
        y = x.new_empty_strided(self._out, self._form)
        self._call(x.data_ptr(), y.data_ptr(), more)
        return y


def _same(form: Form) -> Form:
    """The first of all equal forms: the layers of a model share them, and what is shared stays in the cache."""
    if len(_forms) > 1000:
        _forms.clear()
    return _forms.setdefault(form, form)
