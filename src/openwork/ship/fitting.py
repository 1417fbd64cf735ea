"""Whether a model is the one that a packed folder was made of, asked before anything is put into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from openwork.core.distributed import is_compiled
from openwork.core.targets import Target, is_transposed_linear
from openwork.errors import FileError
from openwork.formats import Format
from openwork.runtime.fold import ACTIVATIONS
from openwork.runtime.fuse import word_of
from openwork.runtime.layers import Packed
from openwork.runtime.prepacked import Prepacked

FOLDED = (nn.BatchNorm2d, nn.GELU, nn.Identity, *ACTIVATIONS)
"""The modules that packing may put ``nn.Identity`` in the place of."""


def tensor_name(layer: str, leaf: str) -> str:
    """The name of a tensor of a layer; the layer is "" when it is the whole model."""
    return f"{layer}.{leaf}" if layer else leaf


def misfit(folder: Path, data: Mapping[str, Any], model: nn.Module, what: str) -> FileError:
    """The error for a model that is not the one that was packed."""
    own, known = f"{type(model).__module__}.{type(model).__qualname__}", str(data.get("model_class"))
    hint = "" if known == own or known.startswith(Packed.__module__) else f" (a {known})"
    return FileError(
        f"{folder}: does not fit {type(model).__name__}: {what}; pass the dense model that was packed{hint}"
    )


def demand_plain(folder: Path, data: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse a model that is compiled, wrapped or packed, as its layers have other names or no weights.

    Raises:
        FileError: it is.
    """
    if is_compiled(model):
        raise misfit(folder, data, model, "model= is compiled, load first and compile what load returns")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise misfit(folder, data, model, "model= wraps another module, take its .module")
    if any(isinstance(m, Packed | Prepacked) for m in model.modules()):
        raise misfit(folder, data, model, "model= is packed already")


def demand_layers(folder: Path, data: Mapping[str, Any], model: nn.Module, targets: Mapping[str, Target]) -> None:
    """Refuse a model whose layers are not of the kinds that were packed, or that lacks one of the modules.

    Raises:
        FileError: it is such a model.
        KeyError, TypeError, AttributeError: data that ``export`` did not write.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in (*data["layers"], *data["gone"], *data["onednn"]):
        if name not in modules:
            raise misfit(folder, data, model, f"it has no module {name}")
    for name, described in data["layers"].items():
        layer = modules[name]
        turned = is_transposed_linear(layer)
        wanted = "Conv2d" if "window" in described else "Linear"
        found = next((k for k in ("Conv2d", "Linear") if isinstance(layer, getattr(nn, k))), "")
        if wanted != (found or ("Linear" if turned else "")) or described.get("transposed", turned) != turned:
            more = " that holds its weight as (in, out)" if described.get("transposed") else ""
            raise misfit(folder, data, model, f"{name} must be a {wanted}{more}, got {type(layer).__name__}")
        weight = tensor_name(name, "weight")
        if weight not in targets:
            raise misfit(folder, data, model, f"{weight} must be a weight of its own, it has the name of another one")


def demand_folded(place: Path, data: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse an index that takes away more than packing does.

    Every activation that is gone must be computed by a packed layer.

    Raises:
        FileError: another module is gone, or nothing computes an activation that is.
    """
    found = Counter(layer["activation"] for layer in data["layers"].values())
    for name in dict.fromkeys(data["gone"]):
        module = model.get_submodule(name)
        if type(module) not in FOLDED:
            raise FileError(
                f"{place}: gone names {name}, a {type(module).__name__}; packing takes away nothing but norms, "
                "activations and nn.Identity, so the index was forged or the model is another one"
            )
        word = word_of(module)
        if word is not None:
            found[word] -= 1
            if found[word] < 0:
                raise FileError(
                    f"{place}: gone names {name}, but no packed layer computes its {word}; the index is damaged or "
                    "the model is another one"
                )


def demand_parts(place: Path, data: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse an index with a layer that the file of weights lacks.

    Raises:
        FileError: a layer without packed weights.
    """
    for name in data["layers"]:
        weight = tensor_name(name, "weight")
        if not isinstance(stored.get(weight), Format):
            raise FileError(f"{place}: {weight} is not packed, but the index says so; one of the two files was changed")
