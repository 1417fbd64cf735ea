"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from openwork.errors import RecipeError
from openwork.zoo.checks import positive


def mlp(input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, hidden: Sequence[int] = (128, 128)) -> nn.Sequential:
    """Flatten, then linear layers with ReLU between them; torch's own initial weights.

    The default is the 64-128-128-10 network for the digits.

    Args:
        input_shape: shape of one sample, of any length.
        classes: number of outputs.
        hidden: width of each hidden layer; empty for a linear classifier.

    Raises:
        RecipeError: a size below 1.

    Examples:
        >>> [tuple(p.shape) for p in mlp().parameters() if p.dim() == 2]
        [(128, 64), (128, 128), (10, 128)]
    """
    if not input_shape or min(input_shape) < 1:
        raise RecipeError(f"mlp: input_shape must have sizes above 0, got {tuple(input_shape)}")
    widths = [math.prod(input_shape), *hidden, classes]
    for width in widths:
        positive("mlp", width=width)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet300(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-300-100: 784-300-100-10, 266,610 parameters."""
    return mlp(input_shape, classes, hidden=(300, 100))
