"""Hold samples out, each class in its share."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.core.shares import apportioned
from openwork.data.seeds import stream
from openwork.errors import DataError

Pair = tuple[Tensor, Tensor]


def held_out(y: Tensor, count: int, seed: int) -> Tensor:
    """A bool per sample: exactly ``count`` are True, each class in its share to within one sample."""
    labels = y if not y.is_floating_point() and y.dim() == 1 else torch.zeros(len(y), dtype=torch.int64)
    groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    quotas = apportioned([count * len(group) / len(y) for group in groups], count)
    held = torch.zeros(len(y), dtype=torch.bool)
    generator = stream(seed, "split")
    for group, quota in zip(groups, quotas, strict=True):
        held[group[torch.randperm(len(group), generator=generator)[:quota]]] = True
    return held


def split_off(x: Tensor, y: Tensor, fraction: float, seed: int = 0) -> tuple[Pair, Pair]:
    """Split samples into ``(rest, held out)``, for a validation set; classes keep their shares.

    Raises:
        DataError: a fraction outside (0, 1), or one that leaves a side empty.

    Examples:
        >>> x, y = torch.arange(10.0), torch.tensor([0, 1] * 5)
        >>> (x_train, y_train), (x_valid, y_valid) = split_off(x, y, 0.2)
        >>> len(y_train), sorted(y_valid.tolist())
        (8, [0, 1])
    """
    if not 0 < fraction < 1:
        raise DataError(f"split_off: fraction must lie between 0 and 1, got {fraction}")
    if len(x) != len(y):
        raise DataError(f"split_off: x and y must have one length, got {len(x)} and {len(y)}")
    count = round(fraction * len(y))
    if not 0 < count < len(y):
        raise DataError(f"split_off: {fraction} of {len(y)} samples leaves one side empty; choose another")
    held = held_out(y.cpu(), count, seed).to(x.device)
    return (x[~held], y[~held]), (x[held], y[held])
