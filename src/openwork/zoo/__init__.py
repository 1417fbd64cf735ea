"""Plain torch models to start from, and one way to build any model by name."""

from openwork.zoo.click_mlp import click_mlp
from openwork.zoo.deep_resnet import resnet18, resnet50
from openwork.zoo.lenet import lenet
from openwork.zoo.mlp import lenet300, mlp
from openwork.zoo.registry import build_model, rebuild_model
from openwork.zoo.resnet import resnet8, resnet20
from openwork.zoo.vgg import vgg16_bn, vgg19_bn
from openwork.zoo.vit import vit

__all__ = [
    "build_model", "click_mlp", "lenet", "lenet300", "mlp", "rebuild_model", "resnet8", "resnet18", "resnet20",
    "resnet50", "vgg16_bn", "vgg19_bn", "vit",
]  # fmt: skip
