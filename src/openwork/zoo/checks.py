"""What every model of the zoo asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from openwork.errors import RecipeError


def image_shape(owner: str, input_shape: Sequence[int], classes: int) -> tuple[int, int, int]:
    """The shape of one picture as three integers.

    Raises:
        RecipeError: not (channels, height, width), or fewer than one class.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise RecipeError(f"{owner}: input_shape must be (channels, height, width) above 0, got {shape}")
    positive(owner, classes=classes)
    return shape[0], shape[1], shape[2]


def positive(owner: str, **sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        RecipeError: the first size below 1, by name.
    """
    for name, size in sizes.items():
        if size < 1:
            raise RecipeError(f"{owner}: {name} must be at least 1, got {size}")
