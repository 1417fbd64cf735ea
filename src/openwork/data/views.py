"""One square of a photograph: the middle for testing, a random part for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from openwork.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

Crop = Literal["resized", "shift"]
CROPS = ("resized", "shift")
TRIES = 10
DRAWS = 4 * TRIES + 1  # random numbers that one training view may use
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
MARGIN = 8  # "shift" moves by up to one eighth of the size


def check_crop(owner: str, crop: str) -> None:
    """Refuse an unknown way to crop.

    Raises:
        DataError: neither ``"resized"`` nor ``"shift"``.
    """
    if crop not in CROPS:
        raise DataError(f"{owner}: unknown crop {crop!r}; {did_you_mean(crop, CROPS)}")


def enlarged(size: int) -> int:
    """The shorter side from which the middle is cut: 256 for 224; pictures up to 64 are cut whole."""
    return size if size <= 64 else round(size * 256 / 224)


def middle_view(image: Image, size: int) -> Image:
    """The middle ``size x size`` pixels after the shorter side was scaled to ``enlarged(size)``."""
    scaled = _shorter_side(image, enlarged(size))
    left, top = ((side - size) // 2 for side in scaled.size)
    return scaled.crop((left, top, left + size, top + size))


def train_view(image: Image, size: int, crop: Crop, draws: Sequence[float]) -> Image:
    """A random square of the picture, mirrored in half of the cases.

    Args:
        image: an RGB picture.
        size: side of the result in pixels.
        crop: ``"resized"`` takes a part of 8 to 100 % of the area and scales it (Szegedy et al. 2015),
            ``"shift"`` moves the middle square by up to an eighth of its side with a black border (He et al. 2016).
        draws: ``DRAWS`` numbers in [0, 1).
    """
    from PIL import Image as Pillow

    if crop == "resized":
        view = image.resize((size, size), Pillow.Resampling.BILINEAR, box=_part(image.size, draws))
    else:
        reach = max(1, size // MARGIN)
        left, top = (int(draw * (2 * reach + 1)) - reach for draw in draws[:2])
        view = middle_view(image, size).crop((left, top, left + size, top + size))
    return view.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT) if draws[-1] < 0.5 else view


def _part(sides: tuple[int, int], draws: Sequence[float]) -> tuple[int, int, int, int]:
    """The corners of a random part; the middle square of the picture when ten tries do not fit into it."""
    width, height = sides
    for start in range(0, 4 * TRIES, 4):
        area, shape, across, down = draws[start : start + 4]
        pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        low, high = (math.log(bound) for bound in ASPECT)
        aspect = math.exp(low + shape * (high - low))
        wide, tall = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
            return left, top, left + wide, top + tall
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _shorter_side(image: Image, length: int) -> Image:
    from PIL import Image as Pillow

    width, height = image.size
    if min(width, height) == length:
        return image
    scale = length / min(width, height)
    size = (max(length, round(width * scale)), max(length, round(height * scale)))
    return image.resize(size, Pillow.Resampling.BILINEAR)
