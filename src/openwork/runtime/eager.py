"""Whether a call runs here and now, or is traced, differentiated or transformed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad

from openwork.errors import FormatError

TRANSFORMS = (TransformType.Vmap, TransformType.Grad, TransformType.Jvp)


def eager(x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether nothing watches a call on ``x``, so that the detour through torch's dispatcher can be spared.

    Tensors that torch keeps negated, like the imaginary part of a conjugate, are made plain by the dispatcher.
    """
    if torch.compiler.is_compiling() or not _plain(x) or not (residual is None or _plain(residual)):
        return False
    inside = torch._C._len_torch_dispatch_stack() > 0 or peek_interpreter_stack() is not None
    return not inside and torch._C._get_tracing_state() is None and forward_ad._current_level < 0


def _plain(x: Tensor) -> bool:
    watched = x.requires_grad and torch.is_grad_enabled()
    return type(x) is Tensor and x.is_cpu and not x.is_neg() and not watched


def demand_no_transform(x: Tensor) -> None:
    """Refuse calls whose derivative or batching would be lost on the way.

    Raises:
        FormatError: a transformation of ``torch.func`` is at work, or the input carries a tangent.
    """
    if torch.compiler.is_compiling():
        return
    stack = peek_interpreter_stack()
    if stack is not None and stack.key() in TRANSFORMS:
        raise FormatError("packed layers take no part in transformations of torch.func; transform the dense model")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise FormatError("packed layers have no forward derivative; differentiate the dense model")
