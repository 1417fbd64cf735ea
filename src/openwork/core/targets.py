"""Which parameters are pruned: patterns on names, a matrix view for each, and a reason for each one left out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from openwork.core import views
from openwork.errors import StructureError, did_you_mean

QUANTISERS = ("torchao", "bitsandbytes", "optimum", "quanto", "gptqmodel", "auto_gptq", "awq", "compressed_tensors")
"""Packages whose layers and parameters hold quantised weights."""


@dataclass(frozen=True)
class Select:
    """Which parameters a recipe is about.

    Args:
        include: glob patterns on parameter or module names (``"layers.*.mlp*"``, ``"fc1"``); a pattern that starts
            with ``re:`` is a regular expression matched against the whole parameter name. Empty: every
            prunable weight. A pattern that matches nothing is an error.
        exclude: the same, taken away.
        min_units: tensors with fewer units than this stay dense (listed in the coverage, not an error).

    Examples:
        >>> Select(exclude=("head",)).exclude
        ('head',)
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_units: int = 1

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            value = getattr(self, field)
            if not isinstance(value, tuple | list) or not all(isinstance(p, str) for p in value):
                raise StructureError(f"Select: {field} must be a tuple of patterns, got {value!r}")
            for pattern in value:
                check_pattern("Select", pattern)
            object.__setattr__(self, field, tuple(value))
        if not isinstance(self.min_units, int) or self.min_units < 1:
            raise StructureError(f"Select: min_units must be at least 1, got {self.min_units!r}")


@dataclass(frozen=True)
class Target:
    """One prunable parameter: its name, its shape and its matrix view; ``conv`` marks convolution kernels."""

    name: str
    shape: tuple[int, ...]
    view: views.MatrixView
    conv: bool = False
    groups: int = 1

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n


def check_pattern(owner: str, pattern: str) -> None:
    """Refuse what ``matches`` could not read."""
    if not isinstance(pattern, str):
        raise StructureError(f"{owner}: a pattern must be a string, got {pattern!r}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, OverflowError, RecursionError) as problem:
            raise StructureError(f"{owner}: {pattern!r} is not a regular expression ({problem})") from None


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter, either whole or through one of its modules."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def find_targets(
    model: nn.Module, where: Select, *, skeleton: bool = False, frozen_ok: bool = False
) -> tuple[list[Target], dict[str, str]]:
    """The selected parameters in registration order, and a reason for every one that is left out.

    Tied parameters appear once, under the name that is registered first; a pattern may use any of their names. With
    ``skeleton`` the parameters may be without values (meta device), to be loaded piece by piece; with ``frozen_ok``
    they need not be trainable.

    Raises:
        StructureError: a pattern that matches nothing, an include pattern that selects nothing prunable, parameters
            without values (meta device, lazy layers), no target at all.
    """
    refuse_unusable(model, where, skeleton)
    owners, params = _owners(model), dict(model.named_parameters())
    aliases = _aliases(model)
    targets: list[Target] = []
    skipped: dict[str, str] = {}
    for name, param in params.items():
        names = aliases[name]
        explicit = any(_hit(where.include, n) for n in names)
        found = _describe(name, param, owners[name], explicit, frozen_ok)
        if where.include and not explicit:
            skipped[name] = found if isinstance(found, str) else "not selected by include"
        elif any(_hit(where.exclude, n) for n in names):
            skipped[name] = "excluded"
        elif isinstance(found, Target):
            targets.append(found)
        else:
            skipped[name] = found
    _refuse_vain_patterns(where, targets, skipped, aliases)
    if not targets:
        reasons = sorted(set(skipped.values()))
        raise StructureError(
            f"nothing to prune in {type(model).__name__}: all {len(params)} parameters were left out "
            f"({'; '.join(reasons)}); "
            "name what should be pruned with Select(include=...)"
        )
    return targets, skipped


def refuse_unusable(model: nn.Module, where: Select, skeleton: bool = False) -> None:
    """Refuse models without values in their parameters (``skeleton`` allows these), and patterns that match nothing.

    Raises:
        StructureError: no parameters, lazy or quantised layers, the meta device, a pattern without a match.
    """
    params = dict(model.named_parameters())
    quantised = next(
        (f"{n or 'the model'} ({type(m).__name__})" for n, m in model.named_modules() if _quantised(m)), ""
    )
    if quantised:
        raise StructureError(
            f"{quantised} is quantised, so its weights cannot be ranked or cut; prune the floating-point model and "
            "quantise the result"
        )
    if not params:
        raise StructureError(f"{type(model).__name__} has no parameters, so there is nothing to prune")
    lazy = [n for n, p in params.items() if nn.parameter.is_lazy(p)]
    if lazy:
        raise StructureError(f"{lazy[0]}: the layer is lazy and has no weights yet; run one batch through the model")
    meta = [n for n, p in params.items() if p.is_meta]
    if meta and not skeleton:
        raise StructureError(
            f"{meta[0]}: parameters must hold values, got the meta device ({len(meta)} of {len(params)} parameters); "
            "load the weights first, for instance with model.to_empty(...) and load_state_dict"
        )
    _refuse_idle_patterns(where, model)


def _quantised(module: nn.Module) -> bool:
    """Whether a library for quantised layers made the module, or a tensor of its own."""
    made = [type(module), *map(type, module.parameters(recurse=False))]
    own = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.is_quantized]
    return bool(own) or any(
        ".quantized." in f"{kind.__module__}." or kind.__module__.split(".")[0] in QUANTISERS for kind in made
    )


def prunable_numel(model: nn.Module, also: Iterable[str] = ()) -> int:
    """Entries of all weights that a default selection would prune, the second denominator of every report.

    Weights in ``also`` count as well: an embedding is prunable for those who asked for it.
    """
    owners, named = _owners(model), set(also)
    return sum(
        p.numel()
        for n, p in model.named_parameters()
        if n in named or isinstance(_describe(n, p, owners[n], explicit=False, frozen_ok=True), Target)
    )


def _hit(patterns: Iterable[str], name: str) -> bool:
    return any(matches(p, name) for p in patterns)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(param), name), []).append(name)
    return names


def _refuse_vain_patterns(
    where: Select, targets: list[Target], skipped: dict[str, str], aliases: dict[str, list[str]]
) -> None:
    """An include pattern that prunes nothing must not do so in silence, unless ``exclude`` says so."""
    chosen = [n for t in targets for n in aliases[t.name]]
    chosen += [n for name, reason in skipped.items() if reason == "excluded" for n in aliases[name]]
    for pattern in where.include:
        if not any(matches(pattern, n) for n in chosen):
            name = next(n for n in skipped if any(matches(pattern, alias) for alias in aliases[n]))
            raise StructureError(
                f"{name}: cannot be pruned: {skipped[name]}; take {pattern!r} out of Select(include=...)"
            )


def _refuse_idle_patterns(where: Select, model: nn.Module) -> None:
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    known = [n for n, _ in model.named_modules() if n] + names
    for field, patterns in (("include", where.include), ("exclude", where.exclude)):
        for pattern in patterns:
            if not any(matches(pattern, n) for n in names):
                raise StructureError(
                    f"Select: {field} pattern {pattern!r} matches no parameter; {did_you_mean(pattern, known)}"
                )


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    owners: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            owners.setdefault(f"{prefix}.{leaf}" if prefix else leaf, (module, leaf))
    return owners


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _describe(
    name: str, param: nn.Parameter, owner: tuple[nn.Module, str], explicit: bool, frozen_ok: bool = False
) -> Target | str:
    """The target behind one parameter, or the reason why it is none."""
    module, leaf = owner
    shape = tuple(param.shape)
    if param.ndim < 2:
        return "norm" if isinstance(module, _NORMS) else "bias or scale (one-dimensional)"
    if not param.is_floating_point():
        return f"not floating point ({param.dtype})"
    if ".parametrizations." in f".{name}":
        return "already under a torch parametrisation; remove it first"
    if not param.requires_grad and not frozen_ok:
        return "frozen (requires_grad is False)"
    if param.numel() == 0:
        return "empty"
    if isinstance(module, _CONVS) and leaf == "weight":
        return Target(name, shape, views.conv_view(shape), conv=True, groups=module.groups)
    if isinstance(module, _TRANSPOSED) and leaf == "weight":
        return Target(name, shape, views.transposed_conv_view(shape), conv=True, groups=module.groups)
    if isinstance(module, nn.Linear) and leaf == "weight":
        return Target(name, shape, views.linear_view(shape))
    if is_transposed_linear(module) and leaf == "weight":
        return Target(name, shape, views.transposed_view(shape))
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and param.ndim == 2:
        return Target(name, shape, views.linear_view(shape))
    if param.ndim == 3 and shape[0] > 1 and (explicit or "expert" in f"{name}.{type(module).__name__}".lower()):
        return Target(name, shape, views.stacked_view(shape))
    if param.ndim == 2 and explicit:
        return Target(name, shape, views.linear_view(shape))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding (name it in Select(include=...) to prune it)"
    return f"{leaf} of {type(module).__name__}, not a known matrix (name it in Select(include=...) to prune it)"


def is_transposed_linear(module: nn.Module) -> bool:
    """transformers' Conv1D, looked up only when the user has imported transformers."""
    known = sys.modules.get("transformers.pytorch_utils")
    return known is not None and isinstance(module, getattr(known, "Conv1D", ()))
