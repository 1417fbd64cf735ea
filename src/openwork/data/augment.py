"""Random changes of a batch of pictures that keep their class; every draw comes from a given generator."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.errors import DataError, did_you_mean

Augment = Literal["flip", "shift-flip"] | None


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror about half of the pictures left to right."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)


def shift(x: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Move each picture by up to ``reach`` pixels both ways; zeros fill the border."""
    count, channels, height, width = x.shape
    padded = F.pad(x, (reach, reach, reach, reach))
    down, right = torch.randint(2 * reach + 1, (2, count, 1), generator=generator).to(x.device)
    rows = down + torch.arange(height, device=x.device)  # [N, H]
    columns = right + torch.arange(width, device=x.device)  # [N, W]
    sample = torch.arange(count, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augmented(x: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Apply the named change."""
    if augment == "shift-flip":
        x = shift(x, generator)
    return flip(x, generator) if augment else x


def check_augment(augment: str | None, owner: str) -> None:
    """Refuse an unknown name.

    Raises:
        DataError: neither None nor a known name.
    """
    if augment not in (None, "flip", "shift-flip"):
        known = did_you_mean(augment, ("flip", "shift-flip"))
        raise DataError(f"{owner}: unknown augment {augment!r}; {known}")
