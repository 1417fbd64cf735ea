"""The activations that a kernel can apply before it stores, in plain torch, with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""``gelu`` is the exact one (erf), ``gelu_tanh`` its approximation, ``silu`` is ``z sigmoid(z)``."""


def activate(name: str, z: Tensor) -> Tensor:
    """The activation of ``z``, same shape and dtype."""
    if name == "relu":
        return F.relu(z)
    if name == "gelu":
        return F.gelu(z)
    if name == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    return F.silu(z) if name == "silu" else z


def derivative(name: str, grad: Tensor, z: Tensor) -> Tensor:
    """``grad`` times the derivative at ``z``; can itself be differentiated."""
    if name == "relu":
        return torch.ops.aten.threshold_backward(grad, z, 0)
    if name == "gelu":
        return torch.ops.aten.gelu_backward(grad, z)
    if name == "gelu_tanh":
        return torch.ops.aten.gelu_backward(grad, z, approximate="tanh")
    if name == "silu" and torch.is_grad_enabled():  # torch's own has no second derivative
        gate = torch.sigmoid(z)
        return grad * gate * (1 + z * (1 - gate))
    return torch.ops.aten.silu_backward(grad, z) if name == "silu" else grad
