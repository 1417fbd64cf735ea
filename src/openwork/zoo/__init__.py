"""Plain torch models to start from, and one way to build any model by name."""

from openwork.zoo.lenet import lenet
from openwork.zoo.mlp import lenet300, mlp
from openwork.zoo.registry import build_model, rebuild_model
from openwork.zoo.resnet import resnet8, resnet20
from openwork.zoo.vit import vit

__all__ = ["build_model", "lenet", "lenet300", "mlp", "rebuild_model", "resnet8", "resnet20", "vit"]
