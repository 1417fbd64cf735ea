"""Whether a call runs here and now, or is traced, differentiated or transformed."""

from __future__ import annotations

import torch
from torch import Tensor


def eager(x: Tensor) -> bool:
    """Whether nothing watches a call on ``x``, so that the detour through torch's dispatcher can be spared."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu":
        return False
    watched = (x.requires_grad and torch.is_grad_enabled()) or torch._C._get_tracing_state() is not None
    inside = torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
    return not watched and not inside
