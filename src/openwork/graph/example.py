"""What a model is called with, as plain data: shapes and dtypes are enough to follow its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.errors import StructureError


@dataclass(frozen=True)
class Tensorlike:
    """Shape and dtype of one input, for instance ``Tensorlike((2, 3, 32, 32), "float32")``."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise StructureError(f"Tensorlike: dtype must be a name of torch, for instance float32, got {self.dtype!r}")


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass. Values are not kept: tensors become their shape and dtype.

    ``args`` and ``values`` hold ``Tensorlike``, numbers, booleans, strings, None and tuples of these; ``names`` are the
    keywords of ``values``.

    Examples:
        >>> Example.of((torch.zeros(2, 3), 5)).args
        (Tensorlike(shape=(2, 3), dtype='float32'), 5)
        >>> Example.of({"input_ids": torch.zeros(1, 4, dtype=torch.long)}).names
        ('input_ids',)
    """

    args: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not self.args and not self.values:
            raise StructureError(
                "an example must hold what the model is called with, got nothing; pass example=x, a tuple, or a dict"
            )
        if len(self.names) != len(self.values):
            raise StructureError(f"Example: {len(self.names)} names need as many values, got {len(self.values)}")

    @classmethod
    def of(cls, given: Any) -> Example:
        """A tensor, a tuple of arguments, a mapping of keyword arguments, or an Example.

        Raises:
            StructureError: None, or something that is no plain value.
        """
        if isinstance(given, Example):
            return given
        if given is None:
            raise StructureError("coupled structures follow the graph of the model, so they need example=, one input")
        if isinstance(given, Mapping):
            return cls((), tuple(map(str, given)), tuple(_plain(v) for v in given.values()))
        return cls(tuple(_plain(v) for v in given) if isinstance(given, tuple | list) else (_plain(given),))

    def tensors(self, device: torch.device, seed: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments on one device: zeros, or with a seed normal floats and small integers."""
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        made = tuple(_made(v, device, rng) for v in self.args)
        return made, {k: _made(v, device, rng) for k, v in zip(self.names, self.values, strict=True)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Tensorlike(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str | Tensorlike):
        return value
    raise StructureError(f"an example must hold tensors and plain values, got {type(value).__name__}")


def _made(value: Any, device: torch.device, rng: torch.Generator | None) -> Any:
    if isinstance(value, tuple):
        return tuple(_made(v, device, rng) for v in value)
    if not isinstance(value, Tensorlike):
        return value
    dtype = getattr(torch, value.dtype)
    if rng is None or device.type == "meta" or dtype == torch.bool:
        return torch.zeros(value.shape, dtype=dtype, device=device)
    if dtype.is_floating_point:
        return torch.randn(value.shape, generator=rng).to(device, dtype)
    return torch.randint(2, value.shape, generator=rng).to(device, dtype)


def arguments(given: Any, device: torch.device, seed: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How to call a model with an example: its own tensors where it has some, made ones where it holds shapes only."""
    if isinstance(given, Example):
        return given.tensors(device, seed)
    Example.of(given)  # refuses what is no example
    if isinstance(given, Mapping):
        return (), {str(k): _on(v, device) for k, v in given.items()}
    return tuple(_on(v, device) for v in (given if isinstance(given, tuple | list) else (given,))), {}


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
