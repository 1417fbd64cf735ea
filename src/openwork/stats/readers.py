"""Gram matrices of the weights that read units, from calibration data or from noise in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic, RecipeError
from openwork.graph.example import Example
from openwork.stats.grams import Grams, InputGram


def reading(parts: Mapping[str, Partition]) -> dict[str, Partition]:
    """The same partitions, of coupled units only the tensors that sum over them."""
    return {n: getattr(p, "only", lambda _, p=p: p)(getattr(p, "gated", p.members)) for n, p in parts.items()}


@dataclass(frozen=True)
class ReaderGram(Stat):
    """Parameter name -> ``Grams`` of the inputs of every weight that reads units; otherwise as ``InputGram``.

    Filters, norms and depthwise kernels that only make or pass units on are left out.
    """

    batches: int | None = None
    double: bool = False

    def __post_init__(self) -> None:
        InputGram(self.batches, self.double)

    def measure(self, ctx: Measuring) -> dict[str, Grams]:
        return InputGram(self.batches, self.double).measure(replace(ctx, parts=reading(ctx.parts)))


@dataclass(frozen=True)
class NoiseGram(Stat):
    """The same without calibration data: the model is called ``draws`` times with random inputs.

    Real-valued inputs are standard normal, in pictures (four dimensions) with amplitudes falling as
    ``1 / frequency^spectrum``: 0 is white noise, 1 the fall found in photographs. Integers are drawn from {0, 1}.
    ``example`` gives the shapes; None takes those of the first batch of the data, whose values are not used.
    """

    needs_data: ClassVar[bool] = False
    example: Example | None = None
    draws: int = 32
    spectrum: float = 0.0
    double: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.spectrum >= 0:
            raise RecipeError(
                f"NoiseGram: draws must be at least 1 and spectrum at least 0, got {self.draws} and {self.spectrum}"
            )

    def measure(self, ctx: Measuring) -> dict[str, Grams]:
        feed = Feed(list(self._batches(ctx)), ctx.feed.device)
        return ReaderGram(self.draws, self.double).measure(replace(ctx, feed=feed))

    def _batches(self, ctx: Measuring) -> Iterator[Any]:
        example = self.example or _first(ctx)
        for draw in range(self.draws):
            args, named = example.tensors(torch.device("cpu"), ctx.seed + draw)
            if named:
                yield {k: self._coloured(v) for k, v in named.items()}
            else:
                yield tuple(self._coloured(v) for v in args)

    def _coloured(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or self.spectrum == 0:
            return x
        down, across = (torch.fft.fftfreq(n) for n in x.shape[-2:])
        frequency = (down[:, None].square() + across[None, :].square()).sqrt()
        frequency[0, 0] = 1 / max(x.shape[-2:])
        made = torch.fft.ifft2(torch.fft.fft2(x) * frequency.pow(-self.spectrum)).real
        return made / made.std()


def _first(ctx: Measuring) -> Example:
    if ctx.feed.data is None:
        raise MissingStatistic("NoiseGram needs to know the input shape; pass example=x to the method, or data=")
    batch = ctx.feed.next()
    return Example.of(batch[0] if isinstance(batch, tuple | list) else batch)
