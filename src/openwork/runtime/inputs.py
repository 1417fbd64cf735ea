"""Running a model on an example, and what its layers see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def record_inputs(model: nn.Module, names: list[str], example: Any) -> tuple[dict[str, Tensor], Any]:
    """Run the example once; the first input of every named layer that was reached, and what the model returned."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.setdefault(name, args[0].detach().clone(memory_format=torch.preserve_format))

        return take

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        output = call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen, output


@torch.no_grad()
def call(model: nn.Module, example: Any) -> Any:
    """The model on an example: a tensor, a tuple, or a dict of keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def relative_error(expected: Tensor, got: Tensor) -> float:
    """The largest difference over the largest expected number, or the difference itself where all of those are 0."""
    if not expected.numel():
        return 0.0
    gap, scale = float((got.double() - expected.double()).abs().max()), float(expected.abs().max())
    return gap / scale if scale else gap


def first_tensor(output: Any) -> Tensor:
    """The first tensor of whatever a model returns."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next(first_tensor(v) for v in values if isinstance(v, Tensor | tuple | list | dict))
