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


def stages(owner: str, count: int, width: int, widths: Sequence[int] | None) -> tuple[int, ...]:
    """The channels of every stage: twice as many in each, or those that are given.

    Raises:
        RecipeError: widths of another number, below 1, or that fall.

    Examples:
        >>> stages("resnet8", 3, 16, None), stages("resnet8", 3, 16, [3, 5, 9])
        ((16, 32, 64), (3, 5, 9))
    """
    if widths is None:
        return tuple(width << i for i in range(count))
    given = tuple(widths) if isinstance(widths, Sequence) else ()
    whole = all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in given)
    if len(given) != count or not whole or list(given) != sorted(given):
        raise RecipeError(
            f"{owner}: widths must be {count} integers above 0 that do not fall, one for each stage, got {widths}; "
            "leave them out to take width and its multiples"
        )
    return given
