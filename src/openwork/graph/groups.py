"""The axes of a network, sorted into groups of entries that go together and axes that stay, with a reason."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openwork.graph.axes import Axis, factors, find, freeze, is_frozen, leaves
from openwork.graph.example import Example
from openwork.graph.reader import Reading, read
from openwork.graph.trace import Traced, trace

UNUSED = "not used in the forward pass of the example"
KINDS = ("channels", "heads", "hidden", "experts", "vocabulary")


@dataclass(frozen=True)
class Site:
    """Where a group lies in one tensor: ``labels[i]`` is the unit that entry i of dimension ``dim`` belongs to, or -1.

    ``consumes`` is True where the entries are summed over: clearing them there takes the unit out of the function.
    """

    tensor: str
    dim: int
    labels: Tensor
    consumes: bool
    parameter: bool


@dataclass(frozen=True)
class Group:
    """Units that are removed together. ``over`` names an operation that takes statistics over them.

    ``kind``: ``experts``; ``hidden`` (there are such statistics, so the masked network normalises differently);
    ``heads``; ``vocabulary`` (rows that token ids count); or ``channels``. ``at_least`` and ``multiple`` are what the
    operations need: a router that picks two experts needs two, grouped products want rows of 16 bytes.
    """

    name: str
    kind: str
    n_units: int
    sites: tuple[Site, ...]
    over: str = ""
    at_least: int = 1
    multiple: int = 1
    atoms: tuple[Axis, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Frozen:
    """Entries of one dimension of one tensor that stay, and why."""

    tensor: str
    dim: int
    entries: int
    reason: str


@dataclass
class Groups:
    """What a graph says: groups, what stays, operations without a rule, and the time it took in seconds."""

    groups: list[Group]
    frozen: list[Frozen]
    unknown: dict[str, int]
    n_ops: int
    seconds: float
    reading: Reading = field(repr=False)

    def of(self, *kinds: str) -> list[Group]:
        """The groups of some kinds."""
        return [g for g in self.groups if g.kind in kinds]

    @cached_property
    def owner(self) -> dict[int, tuple[str, int]]:
        """Identity of an atom -> its group and its unit (-1: every entry of the atom is a unit)."""
        found = {}
        for group in self.groups:
            single = len(group.atoms) == 1
            for unit, atom in enumerate(group.atoms):
                found[id(find(atom))] = (group.name, -1 if single else unit)
        return found


@dataclass
class Graph(Groups):
    """What ``build_graph`` finds in a module of torch."""

    traced: Traced = field(repr=False)

    def inputs_of(self, tensors: Mapping[str, Tensor], given: Any) -> list[Any]:
        """What the traced graph is called with: parameters and buffers, constants, and the leaves of ``given``."""
        inputs = iter(tree_leaves(given))
        found: list[Any] = []
        for node in self.traced.module.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in self.traced.tensors:
                found.append(tensors[self.traced.tensors[node.name]])
            else:
                found.append(self.traced.values[node.name] if node.name in self.traced.values else next(inputs))
        return found


def build_graph(model: nn.Module, example: Any) -> Graph:
    """Trace a model and find which entries of which tensors must be removed together.

    Args:
        model: any module; meta tensors do as well. It is left as it was.
        example: what it is called with: a tensor, a tuple of arguments, a mapping of keyword arguments.

    Raises:
        GraphRefused: torch.export cannot follow the forward pass.
        StructureError: the example is no example.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> [(g.name, g.kind, g.n_units) for g in build_graph(model, torch.zeros(1, 4)).groups]
        [('0.weight', 'channels', 6)]
    """
    start = time.perf_counter()
    traced = trace(model, Example.of(example))
    reading = read(model, traced)
    _freeze_unused(model, traced, reading)
    _freeze_attention(model, reading)
    tensors = {n: True for n, _ in model.named_parameters()} | {n: False for n, _ in model.named_buffers()}
    groups, frozen = sort_out(reading, tensors)
    return Graph(groups, frozen, reading.unknown, reading.n_ops, time.perf_counter() - start, reading, traced)


def sort_out(reading: Reading, tensors: dict[str, bool]) -> tuple[list[Group], list[Frozen]]:
    """Groups and what stays, once all axes of a graph are related; ``tensors`` are True where they are parameters."""
    _freeze_doubled(reading)
    groups, frozen = _sorted_out(_collect(reading, tensors), reading, tensors)
    return _bounded(groups, reading), frozen


def _freeze_unused(model: nn.Module, traced: Traced, reading: Reading) -> None:
    live = {n.name for n in traced.module.graph.nodes if n.op == "placeholder" and n.users}
    used = {id(reading.sites[tensor]) for name, tensor in traced.tensors.items() if name in live}
    for axes in reading.sites.values():
        if id(axes) not in used:
            for axis in axes:
                freeze(axis, UNUSED)


def _freeze_attention(model: nn.Module, reading: Reading) -> None:
    """torch's own attention module computes the width of a head from ``embed_dim``, so neither can change."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            for name, _ in module.named_parameters(prefix=path):
                for axis in reading.sites[name]:
                    freeze(axis, "nn.MultiheadAttention computes its head width from embed_dim")


def _freeze_doubled(reading: Reading) -> None:
    """A unit that meets itself in one reshaped axis cannot be removed without leaving a hole."""
    for axes in reading.sites.values():
        for axis in axes:
            for product in _products(axis):
                inside = [{id(leaf) for leaf in leaves(f)} for f in factors(product, "prod")]
                for i, some in enumerate(inside):
                    both = some & set().union(*inside[:i])
                    for leaf in leaves(product):
                        if id(leaf) in both:
                            freeze(leaf, "occurs twice in one reshaped axis")


def _products(axis: Axis) -> Iterator[Axis]:
    axis = find(axis)
    if axis.kind == "prod":
        yield axis
    for part in axis.parts:
        yield from _products(part)


Sites = list[tuple[str, int, Tensor, bool]]


def _collect(reading: Reading, tensors: dict[str, bool]) -> dict[int, tuple[Axis, Sites]]:
    """Every atom with its places: tensor, dimension, label per entry (the entry of the atom, or -1), consuming."""
    found: dict[int, tuple[Axis, Sites]] = {}
    for name in tensors:
        for dim, axis in enumerate(reading.sites[name]):
            for leaf, labels in _labels(axis).values():
                found.setdefault(id(leaf), (leaf, []))[1].append(
                    (name, dim, labels, id(axis) in reading.notes.consumed)
                )
    return found


def _labels(axis: Axis) -> dict[int, tuple[Axis, Tensor]]:
    """Identity of a leaf -> (leaf, its entry at every position of the axis or -1)."""
    axis = find(axis)
    if not axis.parts:
        return {id(axis): (axis, torch.arange(axis.size))}
    inner = [_labels(part) for part in axis.parts]
    found: dict[int, tuple[Axis, Tensor]] = {}
    before, after = 0, axis.size
    for part, known in zip(axis.parts, inner, strict=True):
        after = after // part.size if axis.kind == "prod" else after
        for key, (leaf, labels) in known.items():
            if axis.kind == "prod":
                wide = labels.repeat_interleave(after).repeat(axis.size // (after * part.size))
            else:
                wide = torch.full((axis.size,), -1)
                wide[before : before + part.size] = labels
            old = found[key][1] if key in found else None
            found[key] = (leaf, wide if old is None else torch.where(wide >= 0, wide, old))
        before += part.size
    return found


def _sorted_out(
    collected: dict[int, tuple[Axis, Sites]], reading: Reading, tensors: dict[str, bool]
) -> tuple[list[Group], list[Frozen]]:
    bundles: dict[int, list[tuple[Axis, Sites]]] = {}
    frozen: list[Frozen] = []
    groups: list[Group] = []
    names: set[str] = set()
    for leaf, sites in collected.values():
        reason = _reason(leaf, sites, tensors)
        if reason:
            frozen += [Frozen(n, d, int((at >= 0).sum()), reason) for n, d, at, _ in sites if tensors[n]]
        elif leaf.size == 1 and leaf.bundle is not None:
            bundles.setdefault(id(find(leaf.bundle)), []).append((leaf, sites))
        else:
            groups.append(_group([(leaf, sites)], tensors, names))
    for units in bundles.values():
        if len(units) > 1:
            groups.append(_group(units, tensors, names))
        else:
            frozen += [Frozen(n, d, 1, "a single entry") for n, d, _, _ in units[0][1] if tensors[n]]
    order = {name: i for i, name in enumerate(tensors)}
    groups.sort(key=lambda g: (order[g.sites[0].tensor], g.sites[0].dim))
    return groups, frozen


def _reason(leaf: Axis, sites: Sites, tensors: dict[str, bool]) -> str:
    if _is_vocabulary(leaf):
        return ""
    if leaf.frozen:
        return leaf.frozen
    if leaf.size == 1 and leaf.bundle is None:
        return "a single entry"
    if not any(consumes and tensors[n] for n, _, _, consumes in sites) and not leaf.over:
        return "no weight reads it, so there is nothing to clear"
    return ""


def _is_vocabulary(leaf: Axis) -> bool:
    return "vocabulary" in leaf.tags and "locked" not in leaf.tags and leaf.size > 1


def _group(units: list[tuple[Axis, Sites]], tensors: dict[str, bool], names: set[str]) -> Group:
    merged: dict[tuple[str, int], tuple[Tensor, bool]] = {}
    for i, (_, sites) in enumerate(units):
        for name, dim, labels, consumes in sites:
            at = torch.where(labels >= 0, torch.full_like(labels, i), labels) if len(units) > 1 else labels
            old = merged.get((name, dim))
            merged[name, dim] = (at if old is None else torch.where(at >= 0, at, old[0]), consumes)
    made = tuple(Site(n, d, at, consumes, tensors[n]) for (n, d), (at, consumes) in merged.items())
    made = tuple(sorted(made, key=lambda s: (s.consumes, not s.parameter)))
    leaf = units[0][0]
    tags = frozenset().union(*(u.tags for u, _ in units))
    kind = next((word for word in ("vocabulary", "experts") if word in tags), "")
    kind = kind or ("hidden" if leaf.over else "heads" if "heads" in tags else "channels")
    first = made[0].tensor
    name, n = first, 1
    while name in names:
        n += 1
        name = f"{first}#{n}"
    names.add(name)
    size = len(units) if len(units) > 1 else leaf.size
    return Group(name, kind, size, made, leaf.over, atoms=tuple(u for u, _ in units))


def _bounded(groups: list[Group], reading: Reading) -> list[Group]:
    """The groups with the bounds that operations set on their axes."""
    least: dict[int, int] = {}
    multiple: dict[int, int] = {}
    for axis, fewest, of in reading.notes.bounds:
        top = find(axis)
        if not top.parts:
            least[id(top)] = max(fewest, least.get(id(top), 1))
        for leaf, needed in _multiples(axis, of):
            multiple[id(leaf)] = math.lcm(needed, multiple.get(id(leaf), 1))
    found = []
    for group in groups:
        keys = [id(find(atom)) for atom in group.atoms]
        bounds = (max(least.get(k, 1) for k in keys), math.lcm(*(multiple.get(k, 1) for k in keys)))
        found.append(replace(group, at_least=bounds[0], multiple=bounds[1]))
    return found


def _multiples(axis: Axis, of: int) -> Iterator[tuple[Axis, int]]:
    """Every atom of an axis, and of what its length must be a multiple so that the axis is one of ``of``."""
    axis = find(axis)
    for part in axis.parts:
        fixed = [p.size for p in axis.parts if p is not part and is_frozen(p)] if axis.kind == "prod" else []
        yield from _multiples(part, of // math.gcd(of, math.prod(fixed)))
    if not axis.parts:
        yield axis, of
