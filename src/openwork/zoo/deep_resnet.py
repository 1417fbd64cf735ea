"""The residual networks for photographs of He et al. 2016, with four stages; names and shapes as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from openwork.errors import RecipeError
from openwork.zoo.checks import image_shape, positive, stages

Stem = Literal["photo", "small"]


class Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride lies in the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution and a norm where the shape changes, else nothing."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class DeepResNet(nn.Module):
    """A stem, four stages of blocks, the mean over the pixels, a linear layer ``fc``."""

    def __init__(
        self,
        block: type[Basic | Bottleneck],
        depths: Sequence[int],
        channels: int,
        classes: int,
        widths: Sequence[int],
        stem: Stem,
    ):
        super().__init__()
        width = widths[0]
        large = stem == "photo"
        self.conv1 = nn.Conv2d(channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        inputs = width
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, widths[stage], stride))
                inputs = block.expansion * widths[stage]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18(
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    width: int = 64,
    stem: Stem = "photo",
    widths: Sequence[int] | None = None,
) -> DeepResNet:
    """ResNet-18, two blocks of two 3x3 convolutions a stage: 11,689,512 parameters for 1,000 classes.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        width: channels of the first stage; each later one has twice as many.
        stem: ``"photo"`` begins with a 7x7 convolution and a pooling, together a quarter of the resolution;
            ``"small"`` with a 3x3 convolution that keeps it, for pictures of 32 or 64 pixels.
        widths: channels of the four stages, in the place of ``width`` and its multiples; they must not fall.

    Raises:
        RecipeError: an argument outside of the above.
    """
    return _built("resnet18", Basic, (2, 2, 2, 2), input_shape, classes, width, stem, widths)


def resnet50(
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    width: int = 64,
    stem: Stem = "photo",
    widths: Sequence[int] | None = None,
) -> DeepResNet:
    """ResNet-50, 3, 4, 6 and 3 bottleneck blocks: 25,557,032 parameters for 1,000 classes.

    Weights of torchvision load by name. Arguments and errors as for ``resnet18``.
    """
    return _built("resnet50", Bottleneck, (3, 4, 6, 3), input_shape, classes, width, stem, widths)


def _built(
    owner: str,
    block: type[Basic | Bottleneck],
    depths: Sequence[int],
    input_shape: Sequence[int],
    classes: int,
    width: int,
    stem: Stem,
    widths: Sequence[int] | None,
) -> DeepResNet:
    channels, _, _ = image_shape(owner, input_shape, classes)
    positive(owner, width=width)
    if stem not in ("photo", "small"):
        raise RecipeError(f"{owner}: stem must be 'photo' or 'small', got {stem!r}")
    return DeepResNet(block, depths, channels, classes, stages(owner, len(depths), width, widths), stem)
