"""Batches that can be read again, continued from any step, and come out the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from openwork.data.augment import Augment, check_augment
from openwork.data.seeds import stream
from openwork.data.sources import Source, TensorSource
from openwork.errors import DataError


class Batches:
    """Batches of ``(x, y)`` in an order that depends on the seed and the epoch only.

    Each iteration is the next epoch; set ``epoch`` to continue a stopped run. ``batch(step)`` gives any batch
    of the endless sequence directly, equal bit for bit to the one that iteration gives.

    Examples:
        >>> numbers = torch.arange(6)
        >>> batches = Batches(numbers, numbers, batch_size=4, seed=0)
        >>> [len(x) for x, y in batches]
        [4, 2]
        >>> second_epoch = [x.tolist() for x, y in batches]
        >>> batches.batch(2)[0].tolist() == second_epoch[0]
        True
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: Augment = None,
    ):
        if len(x) != len(y):
            raise DataError(f"Batches: x and y must have one length, got {len(x)} and {len(y)}")
        check_augment(augment, "Batches")
        if augment and x.dim() != 4:
            raise DataError(f"Batches: augment={augment!r} needs pictures [N, C, H, W], got {tuple(x.shape)}")
        self._begin(TensorSource(x, y, augment), batch_size, seed, shuffle, drop_last, augment is not None)

    @classmethod
    def over(
        cls,
        source: Source,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Batches of a source, which may lie on disk; ``augment`` lets it change samples as training does.

        ``part=(i, n)`` reads only every n-th sample of each batch, from the i-th on: the share of one of n processes.

        Raises:
            DataError: no sample, or a batch size that gives no batch.

        Examples:
            >>> from openwork.data import load_data
            >>> x, y = Batches.over(load_data("digits").train, batch_size=32).batch(7)
            >>> x.shape
            torch.Size([32, 1, 8, 8])
        """
        batches = cls.__new__(cls)
        batches._begin(source, batch_size, seed, shuffle, drop_last, augment)
        if batch_size < part[1]:
            raise DataError(f"Batches: batch_size {batch_size} is smaller than {part[1]} processes; raise it")
        batches.part = part
        return batches

    def _begin(self, source: Source, batch_size: int, seed: int, shuffle: bool, drop_last: bool, augment: bool) -> None:
        if len(source) == 0:
            raise DataError("Batches needs at least one sample, got none")
        if batch_size < 1:
            raise DataError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if drop_last and batch_size > len(source):
            raise DataError(
                f"Batches: batch_size {batch_size} with drop_last leaves no batch of {len(source)} samples; "
                "lower it or keep the last batch"
            )
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.shuffle, self.drop_last, self.augment = shuffle, drop_last, augment
        self.epoch, self.part = 0, (0, 1)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))  # the epoch last used and its order

    @property
    def steps_per_epoch(self) -> int:
        """How many batches one epoch has."""
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.epoch * self.steps_per_epoch
        self.epoch += 1
        return (self.batch(step) for step in range(first, first + self.steps_per_epoch))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a global step, counted from 0 over all epochs.

        Raises:
            DataError: a negative step.
        """
        if step < 0:
            raise DataError(f"Batches: step must be at least 0, got {step}")
        epoch, index = divmod(step, self.steps_per_epoch)
        chosen = slice(index * self.batch_size, min((index + 1) * self.batch_size, len(self.source)))
        numbers = self._order_of(epoch)[chosen] if self.shuffle else chosen
        mine, parts = self.part
        if parts > 1:
            numbers = torch.arange(len(self.source))[numbers][mine::parts]
        names = ("augment", step) if parts == 1 else ("augment", step, mine)
        return self.source.read(numbers, stream(self.seed, *names) if self.augment else None)

    def size(self, step: int) -> int:
        """How many samples the batch of a step has over all parts."""
        left = len(self.source) - (step % self.steps_per_epoch) * self.batch_size
        return min(self.batch_size, left)

    def _order_of(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            self._order = epoch, self.source.order(stream(self.seed, "order", epoch))
        return self._order[1]
