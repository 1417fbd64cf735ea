"""A LeNet-like convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from openwork.errors import RecipeError
from openwork.zoo.checks import image_shape, positive


def lenet(
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    channels: tuple[int, int] = (16, 32),
    hidden: int = 128,
) -> nn.Sequential:
    """Two 5x5 convolutions with pooling, one hidden layer; 215,370 parameters with the defaults.

    Raises:
        RecipeError: a size below 1, or pictures smaller than 4x4.
    """
    depth, height, width = image_shape("lenet", input_shape, classes)
    first, second = channels
    positive("lenet", channels=min(channels), hidden=hidden)
    if min(height, width) < 4:
        raise RecipeError(f"lenet: pictures must be at least 4x4, got {height}x{width}")
    return nn.Sequential(
        nn.Conv2d(depth, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
