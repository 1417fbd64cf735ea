"""A packed model as a folder: ``model.packed.safetensors`` and ``openwork.json``; ``load`` reads it anywhere."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.targets import Select, find_targets, is_transposed_linear
from openwork.core.views import conv_view, linear_view
from openwork.engine.result import Result
from openwork.errors import FileError, OpenworkError, StructureError
from openwork.formats import Format, smallest, weight
from openwork.formats.stored import INPUTS, exact_dtype
from openwork.kernels.native import warn_if_slow
from openwork.runtime.fold import replace_module
from openwork.runtime.fuse import apply
from openwork.runtime.layers import Packed, PackedConv2d, PackedLinear
from openwork.runtime.plan import Plan
from openwork.runtime.prepacked import Prepacked, prepacked
from openwork.runtime.recognise import recognise
from openwork.runtime.turn import turn
from openwork.ship.agreement import demand_result
from openwork.ship.atomic import new_folder
from openwork.ship.fitting import demand_folded, demand_layers, demand_parts, demand_plain, misfit, tensor_name
from openwork.ship.packed import PackedFile, write_packed
from openwork.ship.rebuilt import rebuilt
from openwork.ship.seal import demand_same, sealed
from openwork.ship.tied import untied
from openwork.zoo.hugging_face import known_source

WIDE = {str(d).removeprefix("torch."): d for d in (*INPUTS, torch.float64)}
"""Types of dense weights, as the index of a folder writes them."""

PACKED_FORMAT = "packed-1"
PACKED = "model.packed.safetensors"


def export(
    model: nn.Module, result: Result, folder: str | Path, *, overwrite: bool = False, beside: Sequence[Path] = ()
) -> Path:
    """Write a packed model; the folder appears whole or not at all.

    The file holds storage formats, not the order of one machine's kernels, so that ``load`` works on another machine.

    Args:
        model: what ``pack`` returned.
        result: of the pruning, kept beside the weights.
        folder: must not exist, unless ``overwrite``.
        overwrite: replace an earlier result.
        beside: files that are copied into the folder, those of a tokenizer for instance.

    Raises:
        OpenworkError: a model that ``pack`` did not make.
        VerificationFailed: the result of another model: a mask prunes what is not zero, or a weight is not there.
        FileError: the folder is in the way, or the disk refuses.
    """
    plan = getattr(model, "openwork_plan", None)
    if not isinstance(plan, Plan):
        raise OpenworkError(f"export: needs a model that pack() returned, got {type(model).__name__}; pack it first")
    demand_result(model, result)
    layers: dict[str, Any] = {}
    skip: set[str] = set()
    stored: dict[str, Format | Tensor] = {}
    first: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Packed):
            fmt = module.format
            skip.update(tensor_name(name, f"weight_{n}") for n in fmt.tensors())
            if id(module) not in first:  # a module that is registered twice is stored once
                first.add(id(module))
                stored[tensor_name(name, "weight")] = fmt
                layers[name] = _describe(module)
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in skip}
    tensors, tied = untied(state)
    stored.update({n: _small(model, n, t) if n in result.masks else t for n, t in tensors.items()})
    data = {
        "format": PACKED_FORMAT,
        "source": known_source(model),
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "layers": layers,
        "gone": list(getattr(model, "openwork_gone", ())),
        "fused": getattr(model, "openwork_inside", {}),
        "channels_last": getattr(model, "openwork_last", False),
        "onednn": [n for n, m in model.named_modules() if isinstance(m, Prepacked)],
        "tied": tied,
        "plan": plan.plain(),
        "result": result.to_dict(),
    }
    with new_folder(Path(folder), overwrite) as work:
        write_packed(work / PACKED, stored)
        text = json.dumps(sealed(data, work / PACKED), indent=1, allow_nan=False)
        (work / "openwork.json").write_text(text + "\n", encoding="utf-8")
        config = getattr(model, "config", None)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(work)  # type: ignore[union-attr]
        for file in beside:
            if not (work / file.name).exists():
                shutil.copyfile(file, work / file.name)
    return Path(folder)


def load_packed(
    folder: Path, data: Mapping[str, Any], model: nn.Module | None, *, allow_factory: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The packed model of a folder, ready to run, and the dictionary of its result.

    ``model`` is the dense architecture, which is copied; without it the folder must know how to build it.

    Raises:
        FileError: damaged files, those of two exports mixed, or a model that does not fit: compiled, packed, or with
            layers of other kinds.
        OpenworkError: the model cannot be built again, pass ``model=``; or ``OPENWORK_ISA`` asks for kernels that are
            not there.
    """
    place = folder / "openwork.json"
    warn_if_slow()  # also: what is wrong with the kernels is no damage of the files
    if model is None:
        model = rebuilt(folder, data, allow_factory)
    else:
        demand_plain(folder, data, model)
        model = copy.deepcopy(model)
    recognise(model)
    file = PackedFile(folder / PACKED)
    demand_same(file, data, place)
    stored = dict(file)
    try:
        targets = {t.name: t for t in find_targets(model, Select(), frozen_ok=True)[0]}
    except StructureError as problem:
        raise misfit(folder, data, model, str(problem)) from None
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    try:
        plan = Plan.read(data["plan"])
        model.eval()
        demand_parts(place, data, stored)
        demand_layers(folder, data, model, targets)
        demand_folded(place, data, model)
        for name in data["gone"]:
            replace_module(model, name, nn.Identity())
        for name, described in data["layers"].items():
            fmt = stored.pop(tensor_name(name, "weight"))
            bias = stored.get(tensor_name(name, "bias"))
            if not isinstance(fmt, Format) or isinstance(bias, Format):
                raise TypeError(f"{tensor_name(name, 'bias')} is packed")
            target = targets[tensor_name(name, "weight")]
            if target.groups != 1 or target.view.folded != (1, fmt.rows, fmt.cols):
                raise FileError(
                    f"{folder / PACKED}: {target.name} is {fmt.rows} x {fmt.cols}, the model wants "
                    f"{' x '.join(map(str, target.view.folded[1:]))}"
                )
            layer = model.get_submodule(name)
            own = getattr(layer, "bias", None)
            if (bias is None) != (own is None) and not (own is None and isinstance(layer, nn.Conv2d)):
                where = "missing in the file" if bias is None else "unknown to the model"
                raise FileError(f"{folder / PACKED}: {tensor_name(name, 'bias')} is {where}")
            model = replace_module(model, name, _build(layer, fmt, bias, described))
        for name in [n for n, t in stored.items() if isinstance(t, Format)]:
            target = targets[name]
            stored[name] = weight(stored[name].unpack()[None], target).to(dtypes[name])  # type: ignore[union-attr]
        for alias, name in data["tied"].items():
            stored[alias] = stored[name]
        for name in data["onednn"]:
            model.get_submodule(name)
        result = dict(data["result"])
    except FileError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise FileError(f"{place}: incomplete or damaged ({type(problem).__name__}: {problem})") from None
    _fill(model, stored, folder)
    for name in data["onednn"]:
        fast = prepacked(model.get_submodule(name))
        if fast is not None:
            model = replace_module(model, name, fast)
    try:
        fusions, last = data.get("fused", {}), bool(data.get("channels_last"))
        apply(model, fusions)
    except (AttributeError, ValueError, TypeError, KeyError) as problem:
        raise FileError(f"{place}: what was fused does not fit ({type(problem).__name__}: {problem})") from None
    if last:
        turn(model)
    for param in model.parameters():
        param.requires_grad_(False)
    model.openwork_plan = plan  # type: ignore[assignment]
    model.openwork_gone = tuple(data["gone"])  # type: ignore[assignment]
    model.openwork_inside, model.openwork_last = fusions, last  # type: ignore[assignment]
    return model, result


def _small(model: nn.Module, name: str, tensor: Tensor) -> Format | Tensor:
    """A pruned weight that runs dense is stored as small as its zeros allow all the same."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if tensor.dtype not in INPUTS or not isinstance(layer, nn.Linear | nn.Conv2d | Prepacked):
        return tensor
    if tensor.dim() == 4:
        view, groups = conv_view(tuple(tensor.shape)), layer.groups
    else:
        view, groups = linear_view(tuple(tensor.shape)), 1
    if groups != 1:
        return tensor
    matrix = view.open(tensor)[0]
    fmt = smallest(matrix, matrix != 0, dtype=exact_dtype(tensor.dtype))
    return fmt if fmt.nbytes < tensor.nbytes else tensor


def _describe(module: Packed) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": module.kind, "activation": module.activation, "transposed": module.transposed}
    data["dtype"] = str(module.weight_dtype).removeprefix("torch.")
    if isinstance(module, PackedConv2d):
        names = ("kernel_size", "stride", "padding", "dilation")
        data["window"] = {n: list(getattr(module, n)) for n in names}
    return data


def _build(layer: nn.Module, fmt: Format, bias: Tensor | None, data: Mapping[str, Any]) -> Packed:
    """The packed layer for a layer of the model, whose window it takes over: a file is not asked for it."""
    if isinstance(layer, nn.Conv2d):
        window: dict[str, Any] = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
        if data["window"] != {n: list(v) for n, v in window.items()}:
            raise ValueError(f"the window of a convolution is {data['window']}, the model wants {window}")
        packed: Packed = PackedConv2d(fmt, bias, data["kind"], activation=data["activation"], **window)
    else:
        packed = PackedLinear(fmt, bias, data["kind"], data["activation"])
        packed.transposed = is_transposed_linear(layer)
    packed.weight_dtype = WIDE[data.get("dtype", "float32")]  # older folders do not say it
    return packed


def _fill(model: nn.Module, stored: Mapping[str, Format | Tensor], folder: Path) -> None:
    """Load what is not packed; a convolution that took over a norm has a bias that the fresh model lacks."""
    rest = {n: t for n, t in stored.items() if isinstance(t, Tensor)}
    for name in rest:
        owner, _, leaf = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            raise FileError(f"{folder / PACKED}: {name} is unknown to {type(model).__name__}") from None
        if leaf == "bias" and getattr(module, "bias", 0) is None and isinstance(module, nn.Conv2d | nn.Linear):
            module.bias = nn.Parameter(torch.zeros(len(module.weight)))
    own = model.state_dict()
    packed = {tensor_name(n, "") for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, Packed)}
    wanted = {n for n in own if not any(n.startswith(p) and "weight_" in n[len(p) :] for p in packed)}
    wrong = sorted(wanted ^ set(rest))
    if wrong:
        where = "missing in the file" if wrong[0] in wanted else "unknown to the model"
        raise FileError(f"{folder / PACKED}: {wrong[0]} is {where} ({len(wrong)} names differ)")
    for name, tensor in rest.items():
        if own[name].shape != tensor.shape:
            raise FileError(
                f"{folder / PACKED}: {name} is {tuple(tensor.shape)}, the model wants {tuple(own[name].shape)}"
            )
    model.load_state_dict({**own, **rest})
