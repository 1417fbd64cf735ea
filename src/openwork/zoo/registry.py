"""Models by name, from a folder, or from a function of the user; each remembers how to build it again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from openwork.core.annotations import switched
from openwork.data.factory import call_factory
from openwork.errors import RecipeError, did_you_mean
from openwork.graph.plan import Plan, finished
from openwork.zoo.click_mlp import click_mlp
from openwork.zoo.deep_resnet import resnet18, resnet50
from openwork.zoo.hugging_face import from_config, from_folder
from openwork.zoo.lenet import lenet
from openwork.zoo.mlp import lenet300, mlp
from openwork.zoo.resnet import resnet8, resnet20
from openwork.zoo.vgg import vgg16_bn, vgg19_bn
from openwork.zoo.vit import vit

ZOO: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet300": lenet300,
    "lenet": lenet,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "vit": vit,
    "click_mlp": click_mlp,
}


def table_options(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """What a data set with categorical columns tells a model of the zoo that asks for their ``sizes``.

    Examples:
        >>> table_options("click_mlp", (3, 5)), table_options("mlp", (3, 5)), table_options("click_mlp", ())
        ({'sizes': [3, 5]}, {}, {})
    """
    asks = name in ZOO and "sizes" in inspect.signature(ZOO[name]).parameters
    return {"sizes": list(sizes)} if asks and sizes else {}


def build_model(
    name_or_factory: str,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model of the zoo, of a local Hugging Face folder, or of ``package.module:function``.

    The model carries ``openwork_source``, a plain dict from which ``rebuild_model`` builds it again. A
    function of the user gets ``input_shape`` and ``classes`` only if it has such parameters.

    Raises:
        RecipeError: unknown name or option, or a function that returns no module.
        FileError: a folder without a usable config or weights.

    Examples:
        >>> model = build_model("mlp", input_shape=(1, 28, 28), hidden=(32,))
        >>> model.openwork_source["options"]
        {'input_shape': [1, 28, 28], 'classes': 10, 'hidden': [32]}
    """
    offered = {"input_shape": input_shape, "classes": classes}
    offered = {name: value for name, value in offered.items() if value is not None}
    if ":" in name_or_factory:
        return _from_factory(name_or_factory, options, offered)
    if name_or_factory in ZOO:
        return _from_zoo(name_or_factory, {**offered, **options})
    folder = Path(name_or_factory).expanduser()
    if folder.is_dir():
        if options:
            raise RecipeError(f"{folder}: a Hugging Face folder takes no options, got {sorted(options)}")
        model, config = from_folder(folder)
        return _with_source(model, "hf", name_or_factory, {"config": config})
    raise RecipeError(
        f"unknown model {name_or_factory!r}: neither a name of the zoo, nor a folder with config.json, nor "
        f"package.module:function; {did_you_mean(name_or_factory, ZOO)}"
    )


def rebuild_model(source: Mapping[str, Any], allow_factory: bool = False) -> nn.Module:
    """Build the model that a source describes, with fresh weights.

    Args:
        source: what ``openwork_source`` held, perhaps read from a file.
        allow_factory: also import and call a function that the source names; only for files you trust.

    Raises:
        RecipeError: a source of another form, or a function without permission.
    """
    fields = (("kind", str), ("name", str), ("options", Mapping))
    if not isinstance(source, Mapping) or not all(isinstance(source.get(key), kind) for key, kind in fields):
        raise RecipeError(f"a model source must hold kind, name and options, got {source!r}")
    kind, name, options = source["kind"], source["name"], dict(source["options"])
    if kind == "zoo":
        return _from_zoo(name, options)
    if kind == "hf":
        return _with_source(from_config(options.get("config", {}), name), "hf", name, options)
    if kind == "compact":
        dense, plan = rebuild_model(options.get("source", {}), allow_factory), Plan.from_dict(options.get("plan"))
        return finished(plan.apply(dense), plan, options.get("source"))
    if kind != "factory":
        kinds = ("compact", "factory", "hf", "zoo")
        raise RecipeError(f"unknown kind of model source {kind!r}; {did_you_mean(kind, kinds)}")
    if not allow_factory:
        raise RecipeError(
            f"this model is built by {name}; importing code that a file names is your decision: "
            "pass allow_factory=True if you trust it, or build the model yourself and load the weights"
        )
    return _from_factory(name, options, {})


def _from_zoo(name: str, options: Mapping[str, Any]) -> nn.Module:
    if name not in ZOO:
        raise RecipeError(f"unknown model {name!r}; {did_you_mean(name, ZOO)}")
    signature = inspect.signature(ZOO[name])
    for option in options:
        if option not in signature.parameters:
            raise RecipeError(f"{name} has no option {option!r}; {did_you_mean(option, signature.parameters)}")
    arguments = signature.bind(**switched(name, ZOO[name], options))
    arguments.apply_defaults()  # written out, so that a later default does not change an older result
    return _with_source(ZOO[name](**arguments.arguments), "zoo", name, arguments.arguments)


def _from_factory(spec: str, options: Mapping[str, Any], offered: Mapping[str, Any]) -> nn.Module:
    model, arguments = call_factory(spec, options, offered, RecipeError)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{spec} must return a torch.nn.Module, got {type(model).__name__}")
    return _with_source(model, "factory", spec, arguments)


def _with_source(model: nn.Module, kind: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    model.openwork_source = {"kind": kind, "name": name, "options": plain}  # type: ignore[assignment]
    return model
