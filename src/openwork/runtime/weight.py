"""The weight of a packed layer, for forwards that ask for it by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

QUESTIONS = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_sparse", "is_meta",
                 "is_leaf", "is_quantized", "is_nested", "is_mkldnn")
) | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.is_floating_point, Tensor.is_complex,
     Tensor.element_size, Tensor.__len__}  # fmt: skip
"""What is answered without unpacking."""


class PackedWeight(Tensor):
    """Tells its shape, dtype and device as the dense weight would; whatever computes with it gets the unpacked weight.

    Forwards read ``layer.weight.dtype`` to convert their inputs, and torch's transformer layers look at the weights to
    choose a fused path that packed layers cannot take, which a subclass of tensors turns down.
    """

    opened: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, opened: Callable[[], Tensor]) -> PackedWeight:
        made: PackedWeight = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=torch.device("cpu"))
        made.opened = opened
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in QUESTIONS:
                return func(*args, **(kwargs or {}))
            return func(*tree_map(_open, tuple(args)), **tree_map(_open, dict(kwargs or {})))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_open, tuple(args)), **tree_map(_open, dict(kwargs or {})))


def _open(value: Any) -> Any:
    return value.opened() if isinstance(value, PackedWeight) else value
