"""Convolutions of other libraries that compute what ``nn.Conv2d`` does, recognised by the trace of their forward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from openwork.runtime.fold import is_hooked, replace_module

Sides = tuple[int, int, int, int]
"""Zeros on the left, on the right, above and below."""


def recognise(model: nn.Module) -> list[str]:
    """Put ``nn.Conv2d`` in the place of every subclass of it that only pads with zeros and convolves, in place.

    The static "same" padding of EfficientNets is one. The weights stay the same tensors under the same names. Left as
    they are: forwards that compute anything else or cannot be traced, unequal padding of two sides, layers with hooks
    or with more state.

    Returns:
        Names of the layers that were replaced.
    """
    found = []
    for name, layer in list(model.named_modules()):
        if name and isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
            plain = as_conv2d(layer)
            if plain is not None:
                replace_module(model, name, plain)
                found.append(name)
    return found


def as_conv2d(layer: nn.Conv2d) -> nn.Conv2d | None:
    """``nn.Conv2d`` that computes what a subclass of it does, with its very weights; None when that is not certain."""
    if any(is_hooked(m) for m in layer.modules()) or not layer.state_dict().keys() <= {"weight", "bias"}:
        return None
    try:
        nodes = list(fx.Tracer().trace(layer).nodes)
    except Exception:  # (tracing runs the user's code on stand-ins; any failure means "not recognised")
        return None
    chain = [n for n in nodes if n.op not in ("get_attr", "output")]
    if len(chain) < 2 or chain[0].op != "placeholder" or nodes[-1].args != (chain[-1],):
        return None
    if any(node.args[:1] != (before,) for before, node in pairwise(chain)):
        return None
    pads, window = [_zeros(layer, node) for node in chain[1:-1]], _window(layer, chain[-1])
    if None in pads or window is None:
        return None
    left, right, above, below = (sum(p[i] for p in pads if p is not None) for i in range(4))
    if left != right or above != below or min(left, above) < 0:
        return None
    down, across = window["padding"]
    window["padding"] = (down + above, across + left)
    size: Any = tuple(layer.weight.shape[2:])
    with torch.device("meta"):
        channels = layer.weight.shape[1] * window["groups"]
        plain = nn.Conv2d(channels, len(layer.weight), size, bias=layer.bias is not None, **window)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def _zeros(layer: nn.Module, node: fx.Node) -> Sides | None:
    """The zeros that a step puts around the image; None for any other step."""
    if node.op == "call_module":
        module = layer.get_submodule(str(node.target))
        if type(module) is nn.Identity:
            return 0, 0, 0, 0
        return tuple(module.padding) if type(module) is nn.ZeroPad2d else None  # type: ignore[return-value]
    if node.op != "call_function" or node.target is not F.pad:
        return None
    given: dict[str, Any] = {**dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)), **node.kwargs}
    pad = given["pad"]
    plain = given.get("mode", "constant") == "constant" and not given.get("value")
    return tuple(pad) if plain and len(pad) == 4 and all(type(p) is int for p in pad) else None


def _window(layer: nn.Conv2d, node: fx.Node) -> dict[str, Any] | None:
    """Stride, padding, dilation and groups of a convolution with the weights of the layer; None for any other step."""
    if node.op != "call_function" or node.target is not F.conv2d:
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    own = [getattr(given[n], "op", None) == "get_attr" and given[n].target == n for n in ("weight", "bias")]
    if not own[0] or (given["bias"] is None) != (layer.bias is None) or not (own[1] or given["bias"] is None):
        return None
    pairs = {name: _pair(given[name]) for name in names[3:6]}
    return None if None in pairs.values() or type(given["groups"]) is not int else pairs | {"groups": given["groups"]}


def _pair(value: Any) -> tuple[int, int] | None:
    both = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    return both if len(both) == 2 and all(type(v) is int for v in both) else None
