"""VGG with batch norms (Simonyan and Zisserman 2015), with the short head that is usual for small pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from openwork.errors import RecipeError
from openwork.zoo.checks import image_shape

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {"vgg16_bn": (2, 2, 3, 3, 3), "vgg19_bn": (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with a pooling after each, the mean over the pixels, a linear layer.

    The convolutions lie in ``features`` under the numbers they have in torchvision.
    """

    def __init__(self, channels: int, classes: int, depths: Sequence[int], widths: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for depth, width in zip(depths, widths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # odd sides, down to one pixel, stay legal
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg16_bn(input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, widths: Sequence[int] = WIDTHS) -> VGG:
    """VGG-16: 13 convolutions and one linear layer, 14,728,266 parameters for ten classes.

    Args:
        input_shape: (channels, height, width).
        classes: number of outputs.
        widths: channels of the five stages.

    Raises:
        RecipeError: a shape that is no picture, or other than five widths above 0.
    """
    return _built("vgg16_bn", input_shape, classes, widths)


def vgg19_bn(input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, widths: Sequence[int] = WIDTHS) -> VGG:
    """VGG-19: 16 convolutions and one linear layer, 20,040,522 parameters; arguments and errors as for ``vgg16_bn``."""
    return _built("vgg19_bn", input_shape, classes, widths)


def _built(owner: str, input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> VGG:
    channels, _, _ = image_shape(owner, input_shape, classes)
    if len(widths) != 5 or min(widths) < 1:
        raise RecipeError(f"{owner}: widths must be five sizes above 0, got {tuple(widths)}")
    return VGG(channels, classes, DEPTHS[owner], widths)
