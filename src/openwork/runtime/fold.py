"""Norms folded into the convolutions before them, activations into the layers before them."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from openwork.runtime.stand_in import stand_in

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.ReLU6: "relu6"}


class _Shallow(fx.Tracer):
    """Does not look into layers; whatever else is Python is followed."""


def fold_norms(model: nn.Module, graph: fx.Graph | None = None) -> list[tuple[str, str]]:
    """Fold every BatchNorm2d that follows a convolution, and nothing else reads, into it, in place.

    The norm becomes ``nn.Identity``; zeros of the weights stay zeros. A model that cannot be traced is left as it is.

    Args:
        model: in evaluation mode.
        graph: its trace, if there is one already.

    Returns:
        ``(convolution, norm)`` names.
    """
    graph = graph or trace(model)
    if graph is None:
        return []
    modules, folded = dict(model.named_modules()), []
    used = [n.target for n in graph.nodes if n.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or type(modules.get(node.target)) is not nn.BatchNorm2d:
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = modules.get(str(before.target)), modules[node.target]
        single = used.count(before.target) == used.count(node.target) == 1
        if type(conv) is not nn.Conv2d or not single or norm.training or norm.running_mean is None:
            continue
        if is_hooked(conv) or is_hooked(norm):
            continue
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        replace_module(model, str(node.target), nn.Identity())
        folded.append((str(before.target), str(node.target)))
    return folded


def activations_after(model: nn.Module, graph: fx.Graph | None = None) -> dict[str, tuple[str, str]]:
    """Layer -> (activation, module that computes it), where nothing else reads the layer's output."""
    graph = graph or trace(model)
    if graph is None:
        return {}
    modules, found = dict(model.named_modules()), {}
    used = [n.target for n in graph.nodes if n.op == "call_module"]
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1 or used.count(node.target) != 1:
            continue
        after = next(iter(node.users))
        while after.op == "call_module" and type(modules.get(str(after.target))) is nn.Identity:
            if len(after.users) != 1:
                break
            after = next(iter(after.users))
        name = str(after.target)
        if after.op == "call_module" and used.count(after.target) == 1:
            module = modules.get(name)
            word = ACTIVATIONS.get(type(module)) if module is not None and not is_hooked(module) else None
            if type(module) is nn.GELU and not is_hooked(module):
                word = "gelu" if module.approximate == "none" else "gelu_tanh"
            if word is not None:
                found[str(node.target)] = (word, name)
    return found


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks see the module run or its forward is its own, so that it must not be taken away."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, wherever the old one is registered.

    Returns:
        The model; the new module when it took the place of the whole.
    """
    old = model.get_submodule(name)
    new.train(old.training)
    if not name:
        return new
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
    return model


def trace(model: nn.Module) -> fx.Graph | None:
    """The graph of a model down to torch's own layers, or None when it cannot be traced."""
    try:
        return _Shallow().trace(stand_in(model))
    except Exception:  # (tracing runs the user's code on stand-ins; any failure means "cannot be traced")
        return None
