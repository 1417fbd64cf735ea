"""Networks that the benches need and the zoo does not have. Named to jobs as ``models:deep_mlp``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from openwork.zoo import mlp


def deep_mlp(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Eight linear layers, 64-100x7-10 on the digits, Kaiming-normal weights and zero biases."""
    model = mlp(input_shape, classes, hidden=(100,) * 7)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def unbalanced_mlp(input_shape: Sequence[int], classes: int) -> nn.Module:
    """64-512-512-10 whose middle layer computes with weights of a tenth of the usual size, times ten."""

    class Amplify(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 10.0 * x

    model = mlp(input_shape, classes, hidden=(512, 512))
    with torch.no_grad():
        model[3].weight.mul_(0.1)
    return nn.Sequential(model[0], model[1], model[2], model[3], Amplify(), model[4], model[5])


def three_convolutions(input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """3x3 convolutions of 32, 64 and 64 channels, the first two with stride 2, each with a norm; then the mean."""
    widths = (input_shape[0], 32, 64, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b, stride in zip(widths[:-1], widths[1:], (2, 2, 1), strict=True)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
