"""Structures that follow the graph of a model: channels, heads, hidden widths, experts, vocabularies."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from openwork.core.partition import Partition
from openwork.core.targets import Select, Target, matches, refuse_unusable
from openwork.errors import StructureError, did_you_mean
from openwork.graph.cost import Cost, cost_of
from openwork.graph.example import Example
from openwork.graph.groups import KINDS, Graph, Group, Groups, build_graph
from openwork.graph.latency import LatencyTable
from openwork.graph.loose import loose_groups
from openwork.graph.trace import GraphRefused
from openwork.structure.coupled import Coupled
from openwork.structure.cover import Covered
from openwork.structure.shapes import Shape

Refused = Literal["masks", "error"]


@dataclass(frozen=True)
class Coupling(Shape):
    """Groups of coupled slices, found in the graph of the model on ``example`` (shapes and dtypes; no values).

    Args:
        example: what the model is called with.
        kinds: ``channels``, ``heads``, ``hidden``, ``experts``, ``vocabulary``.
        multiple: the kept units of every group are a multiple of this (all of them in smaller groups), and of what
            operations need: grouped products of experts want rows of 16 bytes.
        at_least: so many units stay in every group; of experts at least as many as the router picks.
        refused: what happens when torch.export refuses the model: ``masks`` of single filters, or an ``error``.

    Raises:
        StructureError: unknown kinds or words, or bounds below 1.
    """

    example: Example
    kinds: tuple[str, ...] = ("channels",)
    multiple: int = 1
    at_least: int = 1
    refused: Refused = "masks"

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise StructureError(f"unknown kind of coupled units {kind!r}; {did_you_mean(kind, KINDS)}")
        if not self.kinds or self.multiple < 1 or self.at_least < 1:
            raise StructureError(
                f"a coupled structure needs at least one kind, and multiple and at_least of at least 1, got "
                f"{self.kinds!r}, {self.multiple!r} and {self.at_least!r}"
            )
        if self.refused not in get_args(Refused):
            raise StructureError(f"refused must be 'masks' or 'error', got {self.refused!r}")

    def __str__(self) -> str:
        return f"{'+'.join(self.kinds)}()"

    def fit(self, target: Target) -> str:
        return f"{self} follows the graph of a whole model, not one tensor"

    def graph(self, model: nn.Module) -> Graph:
        """The groups of a model, and what stays with a reason.

        Raises:
            GraphRefused: torch.export cannot follow the forward pass.
        """
        return build_graph(model, self.example)

    def _groups(self, model: nn.Module) -> Groups:
        """The graph; where there is none and channels are asked for, the filters of single layers."""
        try:
            return self.graph(model)
        except GraphRefused as problem:
            if self.refused == "error" or "channels" not in self.kinds:
                raise
            try:
                found = loose_groups(model, self.example, problem.why)
            except Exception:  # it does not run at all on the example
                raise problem from None
            warnings.warn(
                f"{type(model).__name__}: there is no graph, since torch.export cannot follow the forward pass "
                f"({problem.why}). Masks of single filters are used instead: norms and the layers that read a channel "
                "stay as they are, nothing can be cut, and budgets are densities. channels(refused='error') refuses",
                stacklevel=2,
            )
            return found

    def cost(self, model: nn.Module, where: Select = Select()) -> Cost:
        """Parameters, bytes and multiply-accumulates of a model as a function of the units alive."""
        return cost_of(model, self.graph(model))

    def timed(self, model: nn.Module) -> LatencyTable:
        """Milliseconds of a model as a function of the units alive, measured now."""
        return LatencyTable.of(model, self.graph(model), self.kinds, self.example)

    def fit_model(self, model: nn.Module, where: Select) -> tuple[dict[str, Partition], list[Covered]]:
        """One partition per group that the selection allows, named after its first tensor, and the coverage.

        A group is included when a pattern names a tensor that makes its units, and excluded when a pattern names any of
        its tensors. Without a graph, see ``refused``, the groups are the filters of single layers, with a warning; the
        coverage then gives the reason.

        Raises:
            GraphRefused: torch.export cannot follow the forward pass, and masks were not wanted or are not possible.
            StructureError: an include pattern that prunes nothing, or no group at all; the reasons are listed.
        """
        refuse_unusable(model, where)
        graph = self._groups(model)
        parts, reasons = _chosen(self, graph, model, where)
        within: dict[str, list[str]] = {}
        for name, part in parts.items():
            for member in part.members:
                within.setdefault(member, []).append(name)
        for row in graph.frozen:
            reasons.setdefault(row.tensor, []).append(row.reason)
        coverage = []
        for name, param in model.named_parameters():
            groups = tuple(within.get(name, ()))
            why = "" if groups else "; ".join(dict.fromkeys(reasons.get(name, ["no axis that can be pruned"])))
            units = sum(parts[g].n_units for g in groups)
            coverage.append(Covered(name, tuple(param.shape), param.numel(), units, why, groups))
        if not parts:
            listed = "; ".join(dict.fromkeys(r for c in coverage for r in c.skipped.split("; ")))
            raise StructureError(f"{self} finds nothing to prune in {type(model).__name__} ({listed})")
        return dict(parts), coverage


def _chosen(
    structure: Coupling, graph: Groups, model: nn.Module, where: Select
) -> tuple[dict[str, Coupled], dict[str, list[str]]]:
    params = dict(model.named_parameters())
    parts: dict[str, Coupled] = {}
    reasons: dict[str, list[str]] = {}
    hit: set[str] = set()
    for group in graph.groups:
        reason = _left_out(structure, group, params, where)
        makers = [s.tensor for s in group.sites if s.parameter and not s.consumes] or [group.name]
        asked = [p for p in where.include if any(matches(p, t) for t in makers)]
        if not reason or reason == "excluded":
            hit.update(asked)
        if reason:
            for site in group.sites:
                reasons.setdefault(site.tensor, []).append(reason)
            continue
        sites = tuple(s for s in group.sites if s.parameter)
        shapes = tuple((n, tuple(params[n].shape)) for n in dict.fromkeys(s.tensor for s in sites))
        bounds = (math.lcm(structure.multiple, group.multiple), max(structure.at_least, group.at_least))
        parts[group.name] = Coupled(group.name, group.n_units, sites, shapes, group.kind, group.over, *bounds)
    idle = [p for p in where.include if p not in hit]
    if idle:
        raise StructureError(
            f"Select: include pattern {idle[0]!r} names no group of {structure}; groups: "
            f"{', '.join(g.name for g in graph.of(*structure.kinds)) or 'none'}"
        )
    return parts, reasons


def _left_out(structure: Coupling, group: Group, params: dict[str, nn.Parameter], where: Select) -> str:
    if group.kind not in structure.kinds:
        return f"belongs to {group.kind}, not asked for"
    tensors = [s.tensor for s in group.sites if s.parameter]
    makers = [s.tensor for s in group.sites if s.parameter and not s.consumes] or tensors
    if where.include and not any(matches(p, t) for p in where.include for t in makers):
        return "not selected by include"
    if any(matches(p, t) for p in where.exclude for t in tensors):
        return "excluded"
    stuck = [t for t in tensors if not params[t].requires_grad]
    if stuck:
        return f"coupled to {stuck[0]}, which is frozen (requires_grad is False)"
    return f"{group.n_units} units, fewer than min_units={where.min_units}" if group.n_units < where.min_units else ""


def channels(example: Any, *, multiple: int = 1, at_least: int = 1, refused: Refused = "masks") -> Coupling:
    """Channels of convolutions and neurons of linear layers, with everything that is coupled to them.

    Units are removed together from every tensor they touch: the filters that make them, norms and biases, residual
    partners, and the inputs of every layer that reads them. Removing them leaves the function of the masked network
    exactly as it is; widths that a normalisation measures as a whole belong to ``hidden``.

    Args:
        example: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        multiple: keep a multiple of so many units in every group.
        at_least: keep so many units in every group.
        refused: when ``torch.export`` refuses the model (control flow that depends on data), ``masks`` clears single
            filters with their biases, says so in a warning, and nothing can be cut; ``error`` raises.

    Examples:
        >>> import torch
        >>> channels(example=torch.zeros(1, 3, 32, 32)).kinds
        ('channels',)
    """
    return Coupling(Example.of(example), ("channels",), multiple, at_least, refused)


def heads(example: Any, *, multiple: int = 1, at_least: int = 1) -> Coupling:
    """Attention heads: with grouped queries a key-value head takes its queries along, and queries go evenly.

    Arguments as in ``channels``.
    """
    return Coupling(Example.of(example), ("heads",), multiple, at_least)


def hidden(example: Any, *, multiple: int = 1, at_least: int = 1) -> Coupling:
    """Widths that a normalisation measures: the residual stream of transformers, channels inside a GroupNorm group.

    The smaller network normalises over what is left, so it equals a masked network that does the same, not one that
    counts zeros (``ow.verify`` compares with the former). Arguments as in ``channels``.
    """
    return Coupling(Example.of(example), ("hidden",), multiple, at_least)


def experts(example: Any, *, multiple: int = 1, at_least: int = 1) -> Coupling:
    """Whole experts of a mixture with stacked weights, with their rows of the router.

    The smaller router takes its softmax over the experts that are left. Arguments as in ``channels``.
    """
    return Coupling(Example.of(example), ("experts",), multiple, at_least)


def vocabulary(example: Any, *, multiple: int = 1, at_least: int = 1) -> Coupling:
    """Tokens: rows of the embedding that the model's ids count, with the rows of the output head, tied or not.

    The small model counts its tokens anew, ``ow.token_map(small)`` says how, and its logits are those of the tokens
    that stay. Arguments as in ``channels``.
    """
    return Coupling(Example.of(example), ("vocabulary",), multiple, at_least)
