"""Copies to run and to trace, so that what a forward leaves behind in its model is left in the copy."""

from __future__ import annotations

import copy

from torch import nn


def stand_in(model: nn.Module, *, shared: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """A copy with buffers and attributes of its own that shares the parameters.

    Args:
        model: what is copied.
        shared: kinds of layers that are not copied, since their forwards change nothing.
    """
    kept: list[object] = [*model.parameters(), *(m for m in model.modules() if isinstance(m, shared))]
    return copy.deepcopy(model, {id(k): k for k in kept})


def shell(module: nn.Module) -> nn.Module:
    """A copy of one module around the very children that it has."""
    kept: list[object] = [*module.children(), *module.parameters(recurse=False)]
    return copy.deepcopy(module, {id(k): k for k in kept})
