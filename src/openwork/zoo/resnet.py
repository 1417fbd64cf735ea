"""Residual networks for small pictures: three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from openwork.errors import RecipeError
from openwork.zoo.checks import image_shape, positive, stages

Shortcut = Literal["pad", "projection"]


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every second pixel, and zero channels on both sides. No parameters."""

    def __init__(self, extra: int, stride: int):
        super().__init__()
        self.front, self.back, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.back))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            if shortcut == "pad":
                self.shortcut = PadShortcut(outputs - inputs, stride)
            else:
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of ``depth`` blocks, the mean over the pixels, a linear layer."""

    def __init__(
        self, channels: int, classes: int, depth: int, widths: Sequence[int], stem_stride: int, shortcut: Shortcut
    ):
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(channels, first, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = self._stage(first, first, depth, 1, shortcut)
        self.layer2 = self._stage(first, second, depth, 2, shortcut)
        self.layer3 = self._stage(second, third, depth, 2, shortcut)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, depth: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        blocks = [BasicBlock(inputs, outputs, stride, shortcut)]
        blocks += [BasicBlock(outputs, outputs, 1, shortcut) for _ in range(depth - 1)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet8(
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    width: int = 16,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "projection",
    widths: Sequence[int] | None = None,
) -> ResNet:
    """ResNet-8, one block a stage: with grey pictures 77,754 parameters.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        width: channels of the first stage; the next have twice and four times as many.
        stem_stride: 2 works on half the resolution, three to four times faster.
        shortcut: where the shape changes, ``"projection"`` is a 1x1 convolution and a norm (option B),
            ``"pad"`` a strided slice and zero channels (option A; 75,002 parameters).
        widths: channels of the three stages, in the place of ``width`` and its multiples; they must not fall.

    Raises:
        RecipeError: an argument outside of the above.
    """
    return _resnet("resnet8", 1, input_shape, classes, width, stem_stride, shortcut, widths)


def resnet20(
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    width: int = 16,
    stem_stride: Literal[1, 2] = 1,
    shortcut: Shortcut = "pad",
    widths: Sequence[int] | None = None,
) -> ResNet:
    """ResNet-20, three blocks a stage: 269,722 parameters, 272,186 for grey pictures with projections.

    The names are those of the usual CIFAR-10 checkpoints, so their state dicts load as they are.
    Arguments and errors as for ``resnet8``.
    """
    return _resnet("resnet20", 3, input_shape, classes, width, stem_stride, shortcut, widths)


def _resnet(
    owner: str,
    depth: int,
    input_shape: Sequence[int],
    classes: int,
    width: int,
    stem_stride: int,
    shortcut: Shortcut,
    widths: Sequence[int] | None,
) -> ResNet:
    channels, _, _ = image_shape(owner, input_shape, classes)
    positive(owner, width=width)
    if stem_stride not in (1, 2):
        raise RecipeError(f"{owner}: stem_stride must be 1 or 2, got {stem_stride}")
    if shortcut not in ("pad", "projection"):
        raise RecipeError(f"{owner}: shortcut must be 'pad' or 'projection', got {shortcut!r}")
    return ResNet(channels, classes, depth, stages(owner, 3, width, widths), stem_stride, shortcut)
