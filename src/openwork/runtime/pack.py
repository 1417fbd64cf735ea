"""``pack``: a copy of a pruned model whose layers run on packed weights wherever that is measured to be faster."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.core.distributed import is_compiled
from openwork.core.targets import Select, Target, find_targets, is_transposed_linear
from openwork.errors import OpenworkError
from openwork.formats import Blocks, Format, choose, detect, matrices
from openwork.formats.choose import Layout, covered
from openwork.formats.stored import DTYPES, exact_dtype
from openwork.kernels import isa, kinds_of, multiplies_int8
from openwork.kernels.native import warn_if_slow
from openwork.kernels.ops import pointwise
from openwork.runtime.carried import demand_plain_weights
from openwork.runtime.fold import activations_after, fold_norms, is_hooked, replace_module, trace
from openwork.runtime.inputs import record_inputs
from openwork.runtime.layers import Packed, PackedConv2d, PackedLinear
from openwork.runtime.plan import Choice, Plan, decide, key_of
from openwork.runtime.prepacked import prepacked
from openwork.runtime.promise import Made, Packing, keep_promise
from openwork.runtime.recognise import recognise
from openwork.runtime.same import demand_same
from openwork.runtime.stand_in import stand_in
from openwork.runtime.turn import may_turn, turned
from openwork.zoo.hugging_face import known_source

LOOSE = 2  # times the weights that are not zero: what is stored beyond does not follow the structure


def pack(
    model: nn.Module,
    structure: Any = None,
    plan: Literal["measure", "always"] = "measure",
    *,
    example: Any = None,
    where: Select | None = None,
    dtype: torch.dtype | None = None,
    activations: Literal["float", "int8"] = "float",
    override: Mapping[str, str] | None = None,
    fold: bool = True,
) -> nn.Module:
    """A copy of the model for inference, its sparse layers packed. The model itself is not touched.

    Linear layers and ungrouped two-dimensional convolutions are packed, those of other libraries too where their
    forward is seen to do nothing but pad with zeros and convolve; what is zero in the weights counts as pruned.
    The copy is an ordinary module in evaluation mode (``state_dict``, ``deepcopy``, ``torch.compile``,
    ``torch.export``) and carries its decisions as ``openwork_plan``; print it.

    Args:
        model: pruned, floating point, on the processor.
        structure: what was pruned, ``ow.Block(32, 32)`` for instance; the storage format follows from it. By default
            it is told from the zeros of each layer: blocks of 64, 32 or 16, four outputs, else single weights.
        plan: ``"measure"`` times dense and packed layers at the shapes of ``example`` and takes the fastest (for
            networks of convolutions in both memory formats), and falls back layer by layer until the whole is not
            slower than dense; ``"always"`` packs without measuring.
        example: an input, a tuple of inputs or a dict of keyword inputs; needed to measure.
        where: layers to consider; default all.
        dtype: of the stored values: float32, bfloat16, or int8 with scales. Default: bfloat16 where a layer's weight is
            bfloat16, else float32 (for float16 too, which bfloat16 would round). Sums are float32.
        activations: ``"int8"`` (with ``dtype=torch.int8``) also rounds what linear layers and 1 x 1 convolutions with
            blocks of at least 16 x 4 are given, each token or pixel by its largest magnitude, and multiplies whole
            numbers. Their weights then have a scale for each output. All other layers compute with floats.
        override: layer -> ``"dense"``, ``"onednn"``, ``"block"``, ``"column"`` or ``"int8"``; these are not measured,
            and stay even where the whole is slower for it.
        fold: fold BatchNorm into the convolution before it, and activations and residual sums into packed layers,
            where modules can be traced.

    Raises:
        OpenworkError: a model that cannot be packed, an unknown plan, dtype or override, a missing example.
        FormatError: a structure that no format follows from.
    """
    layout = None if structure is None else choose(structure)
    _check(model, plan, example, dtype, activations)
    new = copy.deepcopy(model).eval()
    new.openwork_source = known_source(model)  # type: ignore[assignment]
    recognise(new)
    targets, skipped = find_targets(new, where or Select(), frozen_ok=True)
    graph = trace(new) if fold else None
    folded = [] if graph is None else fold_norms(new, graph)
    layers, alone, reasons = _layers(new, targets, skipped)
    for name in override or {}:
        if name not in layers and name not in alone:
            raise OpenworkError(f"pack: override names {name!r}, which is not a layer that can be packed here")
    if not layers:
        raise OpenworkError(
            f"pack: no layer of {type(model).__name__} can be packed "
            f"({'; '.join(sorted({*reasons.values(), *alone.values()}))})"
        )
    warn_if_slow()
    seen = [*layers, *alone]
    inputs, output = record_inputs(stand_in(new), seen, example) if example is not None else ({}, None)
    acts = {} if graph is None else activations_after(new, graph)
    stored: dict[str, Format] = {}
    loose: list[str] = []
    for name, target in layers.items():
        matrix = matrices(new.get_submodule(name).get_parameter("weight").detach().float(), target)[0]
        mask = matrix != 0
        kind = dtype or exact_dtype(new.get_submodule(name).get_parameter("weight").dtype)
        form = layout or choose(detect(mask))
        if activations == "int8" and _rounds(new.get_submodule(name)):
            form = _by_output(form)
        stored[name] = form.pack(matrix, mask, dtype=kind)
        height, width = (layout.height, layout.width) if isinstance(layout, Blocks) else (None, None)
        if height and width and float(mask.float().mean()) * LOOSE < covered(mask, height, width):
            loose.append(name)
    if activations == "int8" and not any(map(multiplies_int8, stored.values())):
        raise OpenworkError(
            "pack: activations='int8' needs a linear layer, or a 1 x 1 convolution, that is pruned in blocks of a "
            f"height that 16 divides and a width that 4 divides, {type(model).__name__} has none; prune in blocks, or "
            "leave activations out"
        )
    if loose:
        warnings.warn(
            f"pack: the zeros of {', '.join(loose)} do not follow {structure}, most of what is stored is zero; leave "
            "structure out to have it told from the zeros",
            stacklevel=2,
        )
    one = partial(_one, new, stored, alone, plan, override or {}, dtype)
    made = {name: one(name, inputs.get(name)) for name in seen}
    last = False
    if plan == "measure" and may_turn(graph, output) and any(_is_image(x) for x in inputs.values()):
        other = {name: one(name, turned(inputs.get(name))) for name in seen}
        last = _total(other) < _total(made)
        made = other if last else made
    originals = {name: new.get_submodule(name) for name in made}
    taken: dict[str, tuple[str, nn.Module]] = {}
    for name, m in made.items():
        if m.module is not None:
            new = replace_module(new, name, m.module)
        if name in acts and isinstance(m.module, PackedLinear | PackedConv2d):
            m.module.activation, act = acts[name]
            taken[name] = (act, new.get_submodule(act))
    for act, _ in taken.values():
        replace_module(new, act, nn.Identity())
    packing = Packing(new, made, originals, taken, last, fold)
    packing.finish()
    if plan == "measure":
        keep_promise(packing, model, example)
    new = packing.model
    if example is not None:
        demand_same(new, model, example, dtype)
    choices = [m.choice for m in made.values()]
    choices += [Choice(n, (), "", 1.0, reason=r) for n, r in sorted(reasons.items())]
    new.openwork_plan = Plan(tuple(choices))  # type: ignore[assignment]
    # What `export` must do again before it can load the state: modules that became nothing, forwards that were fused.
    new.openwork_gone = (*(norm for _, norm in folded), *(act for act, _ in taken.values()))  # type: ignore[assignment]
    new.openwork_inside = packing.inside  # type: ignore[assignment]
    new.openwork_last = packing.last  # type: ignore[assignment]
    for param in new.parameters():
        param.requires_grad_(False)
    return new


def _one(
    model: nn.Module,
    stored: Mapping[str, Format],
    alone: Mapping[str, str],
    plan: str,
    override: Mapping[str, str],
    dtype: torch.dtype | None,
    name: str,
    x: Tensor | None,
) -> Made:
    """What is decided for one layer, and the module that takes its place. Those in ``alone`` have no packed form."""
    layer, fmt, wanted = model.get_submodule(name), stored.get(name), override.get(name)
    shape = tuple(x.shape) if x is not None else ()
    base = Choice(name, shape, type(fmt).__name__ if fmt else "", fmt.density if fmt else 1.0)
    makers: dict[str, Callable[[], nn.Module | None]] = {}
    kinds = () if fmt is None else (*(("int8",) if multiplies_int8(fmt) else ()), *kinds_of(fmt))
    if fmt is not None:
        makers = {kind: partial(_packed, layer, fmt, kind) for kind in kinds}
    makers["onednn"] = partial(prepacked, layer)
    if wanted is not None:
        if wanted not in (*makers, "dense"):
            raise OpenworkError(
                f"pack: override for {name} must be one of {', '.join(['dense', *makers])}, got {wanted!r}"
            )
        chosen = replace(base, chosen=wanted, reason="override")
        module = None if wanted == "dense" else makers[wanted]()
        if module is None and wanted != "dense":
            raise OpenworkError(f"pack: override for {name}: {wanted} does not run this layer; choose another")
        return Made(chosen, module)
    if plan == "always":
        if fmt is None:
            return Made(replace(base, reason=alone[name]))
        kind = kinds[0]
        return Made(replace(base, chosen=kind, reason="always"), makers[kind]())
    if x is None:
        return Made(replace(base, reason="the example did not reach it"))
    full = base.density > 0.9
    reason = f"nothing to gain: {100 * base.density:.0f} % of it would be stored" if full else ""
    reason = alone.get(name, reason)
    if full or isa() == "python":
        makers = {"onednn": makers["onednn"]}
    modules = {kind: module for kind, make in makers.items() if (module := make()) is not None}
    kept = {**fmt.meta()} if fmt else {"dense": list(layer.get_parameter("weight").shape)}
    window = {k: getattr(layer, k, None) for k in ("kernel_size", "stride", "padding", "dilation")}
    key = key_of(
        shape=shape, stride=x.stride(), format=kept, density=round(base.density, 2), dtype=str(x.dtype),
        window=window, candidates=sorted(modules),
    )  # fmt: skip
    times, kind, errors = decide(layer, modules, x, key, dtype or exact_dtype(layer.get_parameter("weight").dtype))
    wrong = sorted(set(modules) - set(times))
    reason = reason or (f"not exact enough: {', '.join(wrong)}" if wrong else "")
    choice = replace(base, times=times, chosen=kind, error=errors[kind], reason=reason)
    return Made(choice, modules.get(kind), errors)


def _packed(layer: nn.Module, fmt: Format, kind: str) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        window: dict[str, Any] = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
        packed: Packed = PackedConv2d(fmt, layer.bias, kind, **window)
    else:
        packed = PackedLinear(fmt, layer.bias, kind)  # type: ignore[arg-type]
        packed.transposed = is_transposed_linear(layer)
    packed.weight_dtype = layer.get_parameter("weight").dtype
    return packed


def _total(made: Mapping[str, Made]) -> float:
    """Milliseconds of all layers as they were chosen."""
    return sum(choice.times.get(choice.chosen, 0.0) for choice in (m.choice for m in made.values()))


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous()


def _is_packed(module: nn.Module) -> bool:
    return isinstance(module, PackedLinear | PackedConv2d)


def _layers(
    model: nn.Module, targets: list[Target], skipped: Mapping[str, str]
) -> tuple[dict[str, Target], dict[str, str], dict[str, str]]:
    """Layers that can be packed; with the reason, those that only oneDNN may run faster, and all other weights."""
    found: dict[str, Target] = {}
    alone: dict[str, str] = {}
    reasons = {n: r for n, r in skipped.items() if not r.startswith(("bias or scale", "norm"))}
    for target in targets:
        owner, _, leaf = target.name.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf != "weight" or not (type(layer) in (nn.Linear, nn.Conv2d) or is_transposed_linear(layer)):
            reasons[target.name] = f"{leaf} of {type(layer).__name__}, no packed layer for it"
        elif is_hooked(layer):
            reasons[target.name] = "hooks watch this layer, or its forward is its own"
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            alone[owner] = f"a convolution in {layer.groups} groups"
        elif isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            reasons[target.name] = f"padding {layer.padding!r} in mode {layer.padding_mode!r}"
        else:
            found[owner] = target
    owners = {id(model.get_submodule(name).get_parameter("weight")): name for name in reversed(found)}
    for name, layer in model.named_modules():
        first = owners.get(id(layer._parameters.get("weight")), name)
        if first != name and name not in found:
            reasons[f"{name}.weight"] = f"tied to {first}.weight, stays dense"
    return found, alone, reasons


def _rounds(layer: nn.Module) -> bool:
    """Whether there is an arithmetic of int8 for a layer of this kind."""
    return not isinstance(layer, nn.Conv2d) or pointwise(layer.kernel_size, layer.padding)  # type: ignore[arg-type]


def _by_output(form: Layout) -> Layout:
    """With a scale for each output where blocks are large enough for int8 arithmetic."""
    if not isinstance(form, Blocks) or form.height is None or form.width is None:
        return form
    return replace(form, by_row=form.height % 16 == 0 and form.width % 4 == 0)


def _check(model: nn.Module, plan: str, example: Any, dtype: torch.dtype | None, activations: str) -> None:
    if plan not in ("measure", "always"):
        raise OpenworkError(f"pack: plan must be 'measure' or 'always', got {plan!r}")
    if plan == "measure" and example is None:
        raise OpenworkError("pack: measuring needs example=, an input of the size you will run; or plan='always'")
    if dtype is not None and dtype not in DTYPES.values():
        raise OpenworkError(f"pack: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if activations not in ("float", "int8"):
        raise OpenworkError(f"pack: activations must be 'float' or 'int8', got {activations!r}")
    if activations == "int8" and dtype != torch.int8:
        raise OpenworkError(f"pack: activations='int8' multiplies weights in int8, got dtype={dtype}; use torch.int8")
    if is_compiled(model):
        raise OpenworkError("pack: the model is compiled; pack it first and compile the packed copy")
    if any(_is_packed(m) for m in model.modules()):
        raise OpenworkError("pack: the model is packed already")
    for name, module in model.named_modules():
        demand_plain_weights(name, module)
    for name, param in model.named_parameters():
        if param.device.type != "cpu":
            raise OpenworkError(f"pack: {name} is on {param.device}; the kernels run on the processor, use model.cpu()")
