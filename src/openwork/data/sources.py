"""Where batches come from: anything that reads samples by their number, from memory or from files."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from openwork.data.augment import Augment, augmented

IN_MEMORY = 1000


class Source(Protocol):
    """Samples with numbers ``0 .. len - 1``, one side (train or test) of a data set.

    A source keeps no position: what ``read`` returns depends on its arguments only, so a stopped run finds its
    batches again.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def chunk(self) -> int:
        """How many samples are read and passed through a model at once when nobody learns from them."""

    def __len__(self) -> int: ...

    def order(self, generator: torch.Generator) -> Tensor:
        """All numbers once, shuffled, integers ``[N]``; a file may prefer an order that reads neighbours together."""

    def read(self, numbers: Tensor | slice, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The samples of those numbers: x float32 ``[n, *shape]`` and y int64 ``[n]``.

        Args:
            numbers: integers ``[n]`` in any order, or a slice with both ends.
            generator: draws the random changes of training (crops, flips); None reads every sample as it is.
        """

    def fingerprint(self) -> bytes:
        """Bytes that are equal for equal samples."""


class TensorSource:
    """Two tensors in memory.

    Args:
        x: samples ``[N, ...]``.
        y: labels ``[N]``.
        augment: the random change of training.

    Examples:
        >>> source = TensorSource(torch.arange(6.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> source.read(torch.tensor([4, 0]))[1].tolist()
        [1, 0]
    """

    def __init__(self, x: Tensor, y: Tensor, augment: Augment = None):
        self.x, self.y, self.augment = x, y, augment

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def chunk(self) -> int:
        return IN_MEMORY

    def __len__(self) -> int:
        return len(self.x)

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.x), generator=generator)

    def read(self, numbers: Tensor | slice, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        chosen = numbers if isinstance(numbers, slice) else numbers.to(self.x.device)
        x, y = self.x[chosen], self.y[chosen]
        return (x if generator is None else augmented(x, self.augment, generator)), y

    def fingerprint(self) -> bytes:
        parts = (part.detach().cpu().contiguous() for part in (self.x, self.y))
        return b"".join(repr(tuple(part.shape)).encode() + part.numpy().tobytes() for part in parts)
