"""``pack``: a copy of a pruned model whose layers run on packed weights wherever that is measured to be faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.core.targets import Select, Target, find_targets, is_transposed_linear
from openwork.errors import OpenworkError
from openwork.formats import Format, choose, matrices
from openwork.formats.stored import DTYPES
from openwork.kernels import isa, kinds_of
from openwork.kernels.native import warn_once
from openwork.runtime.fold import activations_after, fold_norms, is_hooked, replace_module, trace
from openwork.runtime.fuse import Fusions, fuse, unfuse
from openwork.runtime.layers import PackedConv2d, PackedLinear
from openwork.runtime.plan import Choice, Plan, decide, key_of
from openwork.runtime.prepacked import prepacked
from openwork.runtime.recognise import recognise
from openwork.runtime.timing import interleaved
from openwork.runtime.turn import may_turn, turn, turned
from openwork.structure import Element
from openwork.zoo.hugging_face import known_source

SLOWER = 1.02  # end to end, a packed model needs at most this share of the dense time


def pack(
    model: nn.Module,
    structure: Any = None,
    plan: Literal["measure", "always"] = "measure",
    *,
    example: Any = None,
    where: Select | None = None,
    dtype: torch.dtype = torch.float32,
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
        structure: what was pruned, ``ow.Block(32, 32)`` for instance; the storage format follows from it. Default:
            ``ow.Element()``.
        plan: ``"measure"`` times dense and packed layers at the shapes of ``example`` and takes the fastest (for
            networks of convolutions in both memory formats), and falls back layer by layer until the whole is not
            slower than dense; ``"always"`` packs without measuring.
        example: an input, a tuple of inputs or a dict of keyword inputs; needed to measure.
        where: layers to consider; default all.
        dtype: of the stored values: float32, bfloat16, or int8 with scales. Sums are float32.
        override: layer -> ``"dense"``, ``"onednn"``, ``"block"`` or ``"column"``; these are not measured, and stay
            even where the whole is slower for it.
        fold: fold BatchNorm into the convolution before it, and activations and residual sums into packed layers,
            where modules can be traced.

    Raises:
        OpenworkError: a model that cannot be packed, an unknown plan, dtype or override, a missing example.
        FormatError: a structure that no format follows from.
    """
    layout = choose(Element() if structure is None else structure)
    _check(model, plan, example, dtype)
    new = copy.deepcopy(model).eval()
    new.openwork_source = known_source(model)  # type: ignore[assignment]
    recognise(new)
    targets, skipped = find_targets(new, where or Select(), frozen_ok=True)
    graph = trace(new) if fold else None
    folded = [] if graph is None else fold_norms(new, graph)
    layers, reasons = _layers(new, targets, skipped)
    for name in override or {}:
        if name not in layers:
            raise OpenworkError(f"pack: override names {name!r}, which is not a layer that can be packed here")
    if not layers:
        raise OpenworkError(
            f"pack: no layer of {type(model).__name__} can be packed ({'; '.join(sorted(set(reasons.values())))})"
        )
    if isa() == "python":
        warn_once()
    inputs, output = record_inputs(new, list(layers), example) if example is not None else ({}, None)
    acts = {} if graph is None else activations_after(new, graph)
    stored: dict[str, Format] = {}
    for name, target in layers.items():
        matrix = matrices(new.get_submodule(name).get_parameter("weight").detach().float(), target)[0]
        stored[name] = layout.pack(matrix, matrix != 0, dtype=dtype)
    one = partial(_one, new, stored, plan, override or {}, dtype)
    made = {name: one(name, inputs.get(name)) for name in layers}
    last = False
    if plan == "measure" and may_turn(graph, output) and any(_is_image(x) for x in inputs.values()):
        other = {name: one(name, turned(inputs.get(name))) for name in layers}
        last = _total(other) < _total(made)
        made = other if last else made
    choices = [choice for choice, _ in made.values()]
    choices += [Choice(n, (), "", 1.0, reason=r) for n, r in sorted(reasons.items())]
    modules = {name: module for name, (_, module) in made.items() if module is not None}
    originals = {name: new.get_submodule(name) for name in modules}
    for name, module in modules.items():
        new = replace_module(new, name, module)
        if name in acts and isinstance(module, PackedLinear | PackedConv2d):
            module.activation = acts[name][0]
    fused = {n: new.get_submodule(acts[n][1]) for n, m in modules.items() if n in acts and _is_packed(m)}
    for name in fused:
        replace_module(new, acts[name][1], nn.Identity())
    if last:
        turn(new)
    inside = fuse(new) if fold else {}
    if plan == "measure":
        new, choices, inside = _keep_promise(new, model, example, choices, originals, acts, fused, inside)
    new.openwork_plan = Plan(tuple(choices))  # type: ignore[assignment]
    # What `export` must do again before it can load the state: modules that became nothing, forwards that were fused.
    new.openwork_gone = (*(norm for _, norm in folded), *(acts[name][1] for name in fused))  # type: ignore[assignment]
    new.openwork_inside = inside  # type: ignore[assignment]
    new.openwork_last = last  # type: ignore[assignment]
    for param in new.parameters():
        param.requires_grad_(False)
    return new


def record_inputs(model: nn.Module, names: list[str], example: Any) -> tuple[dict[str, Tensor], Any]:
    """Run the example once; the first input of every named layer that was reached, and what the model returned."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.setdefault(name, args[0].detach().clone(memory_format=torch.preserve_format))

        return take

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        output = call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen, output


@torch.no_grad()
def call(model: nn.Module, example: Any) -> Any:
    """The model on an example: a tensor, a tuple, or a dict of keywords."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def _one(
    model: nn.Module,
    stored: Mapping[str, Format],
    plan: str,
    override: Mapping[str, str],
    dtype: torch.dtype,
    name: str,
    x: Tensor | None,
) -> tuple[Choice, nn.Module | None]:
    """What is decided for one layer, and the module that takes its place."""
    layer, fmt, wanted = model.get_submodule(name), stored[name], override.get(name)
    shape = tuple(x.shape) if x is not None else ()
    base = Choice(name, shape, type(fmt).__name__, fmt.density)
    makers: dict[str, Callable[[], nn.Module | None]] = {
        kind: partial(_packed, layer, fmt, kind) for kind in kinds_of(fmt)
    }
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
        return chosen, module
    if plan == "always":
        kind = kinds_of(fmt)[0]
        return replace(base, chosen=kind, reason="always"), makers[kind]()
    if x is None:
        return replace(base, reason="the example did not reach it"), None
    full = fmt.density > 0.9
    reason = f"nothing to gain: {100 * fmt.density:.0f} % of it would be stored" if full else ""
    if full or isa() == "python":
        makers = {"onednn": makers["onednn"]}
    modules = {kind: module for kind, make in makers.items() if (module := make()) is not None}
    window = {k: getattr(layer, k, None) for k in ("kernel_size", "stride", "padding", "dilation")}
    key = key_of(
        shape=shape, stride=x.stride(), format={**fmt.meta()}, density=round(fmt.density, 2), dtype=str(x.dtype),
        window=window, candidates=sorted(modules),
    )  # fmt: skip
    times, kind, error = decide(layer, modules, x, key, dtype)
    wrong = sorted(set(modules) - set(times))
    reason = reason or (f"not exact enough: {', '.join(wrong)}" if wrong else "")
    return replace(base, times=times, chosen=kind, error=error, reason=reason), modules.get(kind)


def _packed(layer: nn.Module, fmt: Format, kind: str) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        window: dict[str, Any] = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation")}
        return PackedConv2d(fmt, layer.bias, kind, **window)
    linear = PackedLinear(fmt, layer.bias, kind)  # type: ignore[arg-type]
    linear.transposed = is_transposed_linear(layer)
    return linear


def _total(made: Mapping[str, tuple[Choice, nn.Module | None]]) -> float:
    """Milliseconds of all layers as they were chosen."""
    return sum(choice.times.get(choice.chosen, 0.0) for choice, _ in made.values())


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous()


def _is_packed(module: nn.Module) -> bool:
    return isinstance(module, PackedLinear | PackedConv2d)


def _layers(
    model: nn.Module, targets: list[Target], skipped: Mapping[str, str]
) -> tuple[dict[str, Target], dict[str, str]]:
    """Layers that can be packed, and for every other weight matrix the reason why not."""
    found: dict[str, Target] = {}
    reasons = {n: r for n, r in skipped.items() if not r.startswith(("bias or scale", "norm"))}
    for target in targets:
        owner, _, leaf = target.name.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf != "weight" or not (type(layer) in (nn.Linear, nn.Conv2d) or is_transposed_linear(layer)):
            reasons[target.name] = f"{leaf} of {type(layer).__name__}, no packed layer for it"
        elif is_hooked(layer):
            reasons[target.name] = "hooks watch this layer"
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reasons[target.name] = f"a convolution in {layer.groups} groups"
        elif isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            reasons[target.name] = f"padding {layer.padding!r} in mode {layer.padding_mode!r}"
        else:
            found[owner] = target
    return found, reasons


def _keep_promise(
    new: nn.Module,
    model: nn.Module,
    example: Any,
    choices: list[Choice],
    originals: Mapping[str, nn.Module],
    acts: Mapping[str, tuple[str, str]],
    fused: dict[str, nn.Module],
    inside: dict[str, Fusions],
) -> tuple[nn.Module, list[Choice], dict[str, Fusions]]:
    """Put the layers that gain least back until the whole is not slower than the dense model."""
    dense = copy.deepcopy(model).eval()
    while any(c.chosen != "dense" and c.reason != "override" for c in choices):
        both = {"dense": partial(call, dense, example), "new": partial(call, new, example)}
        times = interleaved(both, rounds=5)
        if sorted(times["new"])[2] <= SLOWER * sorted(times["dense"])[2]:
            break
        changed = [c for c in choices if c.chosen != "dense" and c.reason != "override"]
        changed.sort(key=lambda c: c.times["dense"] - c.times[c.chosen])
        back = {c.name for c in changed[: max(1, len(changed) // 2)]}
        unfuse(new)
        for name in back:
            new = replace_module(new, name, originals[name])
            if name in fused:
                replace_module(new, acts[name][1], fused.pop(name))
        inside = fuse(new) if inside else {}
        put = "slower end to end"
        choices = [
            replace(c, chosen="dense", error=0.0, reason=c.reason or put) if c.name in back else c for c in choices
        ]
    return new, choices, inside


def _check(model: nn.Module, plan: str, example: Any, dtype: torch.dtype) -> None:
    if plan not in ("measure", "always"):
        raise OpenworkError(f"pack: plan must be 'measure' or 'always', got {plan!r}")
    if plan == "measure" and example is None:
        raise OpenworkError("pack: measuring needs example=, an input of the size you will run; or plan='always'")
    if dtype not in DTYPES.values():
        raise OpenworkError(f"pack: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise OpenworkError("pack: the model is compiled; pack it first and compile the packed copy")
    if any(_is_packed(m) for m in model.modules()):
        raise OpenworkError("pack: the model is packed already")
    for name, param in model.named_parameters():
        if param.device.type != "cpu":
            raise OpenworkError(f"pack: {name} is on {param.device}; the kernels run on the processor, use model.cpu()")
