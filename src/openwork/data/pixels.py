"""From bytes to normalised float32 pictures, channels first."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from openwork.errors import DataError


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes ``[N, H, W, C]`` as float32 ``[N, C, H, W]``: scaled to 0..1, then minus mean, over std.

    Examples:
        >>> normalised(torch.tensor([[[[0], [255]]]], dtype=torch.uint8), mean=[0.5], std=[0.5])
        tensor([[[[-1.,  1.]]]])
    """
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return x.div_(255).sub_(shift).div_(scale)


def pillow_image(owner: str) -> ModuleType:
    """Pillow's ``Image`` module.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{owner} needs pillow; install it: pip install 'openwork[data]'") from None
    return Image
