"""A model without weights, and its blocks: parameters on the meta device, buffers real, filled piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import RecipeError, StructureError

BIDIRECTIONAL = ("AutoModel", "AutoModelForMaskedLM")
"""Classes of models without the head of a causal language model: encoders, and bodies alone."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside keep their buffers but lose the storage of their parameters (one at a time is allocated)."""
    register = nn.Module.register_parameter

    def without_values(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = without_values  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def auto_class_of(config: Any) -> str:
    """The class of transformers for a folder: ``AutoModelForCausalLM`` unless its config names another kind.

    That is ``AutoModel`` for a body without a head (``BertModel``), ``AutoModelForMaskedLM`` for ``BertForMaskedLM``.
    """
    named = str(next(iter(config.architectures or ()), ""))
    if named.endswith("ForMaskedLM"):
        return "AutoModelForMaskedLM"
    body = named.endswith("Model") and not named.endswith(("HeadModel", "HeadsModel")) and hasattr(config, "vocab_size")
    return "AutoModel" if body else "AutoModelForCausalLM"


def build_skeleton(config: Any, owner: str) -> nn.Module:
    """The language model of a config, without weights, in eval mode.

    Raises:
        RecipeError: transformers has no such language model.
    """
    import transformers

    try:
        with on_meta(), torch.random.fork_rng(devices=()):
            model = getattr(transformers, auto_class_of(config)).from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as problem:
        first = str(problem).splitlines()[0]
        raise RecipeError(f"{owner}: not a language model that transformers can build ({first})") from None
    return model.eval()


def find_blocks(model: nn.Module, named: str | None = None) -> dict[str, nn.Module]:
    """Name -> decoder block, in the order of the forward pass.

    Args:
        model: any model.
        named: the list that holds the blocks (``"model.layers"``); None: the one ``ModuleList`` that is as long as the
            config's number of layers and holds the most parameters.

    Raises:
        StructureError: no such list, or none can be found.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m)}
    if named is not None:
        name = named.removesuffix(".*")
        if name not in lists:
            known = ", ".join(sorted(lists)) or "none"
            raise StructureError(f"blocks {named!r} must name a list of modules of the model; known: {known}")
        return {f"{name}.{i}": block for i, block in enumerate(lists[name])}
    config = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    fitting = {n: m for n, m in lists.items() if isinstance(m, nn.ModuleList) and len(m) == depth}
    if not fitting:
        known = ", ".join(sorted(lists)) or "none"
        raise StructureError(
            f"{type(model).__name__}: no list of {depth} decoder blocks was found; name it with "
            f"blocks=... (--blocks); lists of modules: {known}"
        )
    name = max(fitting, key=lambda n: sum(p.numel() for p in fitting[n].parameters()))
    return {f"{name}.{i}": block for i, block in enumerate(fitting[name])}


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters values, all tied names at once."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = module._parameters.get(leaf)
        if old is None:
            module._buffers[leaf] = tensor
            continue
        new = nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
        for other in model.modules():
            for key, param in other._parameters.items():
                if param is old:
                    other._parameters[key] = new


def empty(module: nn.Module) -> None:
    """Take the values of all parameters away."""
    done: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for leaf, param in child._parameters.items():
            if param is not None and not param.is_meta:
                bare = done.setdefault(id(param), nn.Parameter(param.detach().to("meta"), param.requires_grad))
                child._parameters[leaf] = bare
