"""Optimal brain surgery on whole groups (OBSPA): what reads them says what they cost, and is refitted without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.allocation import Global
from openwork.core import views
from openwork.core.now import Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import keep_top
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.rules.refit import damped, refit, removal_costs
from openwork.stats.grams import Grams
from openwork.stats.readers import NoiseGram, ReaderGram

Scale = Literal["mean", "output", "none"]


@dataclass(frozen=True)
class Reader:
    """A weight that sums over units: its matrix view, and for every column the unit it reads (or -1) per partition."""

    view: views.MatrixView
    columns: Mapping[str, Tensor]


@dataclass(frozen=True)
class GroupSurgeon(Rule):
    """Remove the units whose absence changes the outputs of their readers least, and refit the readers.

    With ``H = X X^T + damp mean(diag) I`` of a reader's inputs and ``p`` the columns of one unit, the unit costs
    ``tr(W_p ([H^-1]_pp)^-1 W_p^T)``, the squared change of the outputs after the best correction; costs add over all
    readers of the unit. Then every reader is refitted on the columns it keeps, ``W_K + W_P H_PK H_KK^-1``, jointly for
    all removed units of all partitions. Only readers change: what makes a removed unit goes without a correction.

    ``scale`` makes the costs of different partitions comparable before the allocation: divided by their mean in the
    partition (``mean``), each reader's by the size of its output ``tr(W H W^T)`` (``output``), or left (``none``).
    """

    gram: ReaderGram | NoiseGram = field(default_factory=ReaderGram)
    allocation: Allocation = field(default_factory=Global)
    damp: float = 0.01
    correct: bool = True
    scale: Scale = "mean"

    def __post_init__(self) -> None:
        if not self.damp >= 0:
            raise RecipeError(f"GroupSurgeon: damp must not be negative, got {self.damp}")
        if self.scale not in ("mean", "output", "none"):
            raise RecipeError(f"GroupSurgeon: scale must be 'mean', 'output' or 'none', got {self.scale!r}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.gram}) | getattr(self.allocation, "needs", frozenset())

    def init(self, now: Now) -> Any:
        readers_of(now, {})  # refuses before anything is measured

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        grams: dict[str, Grams] = now[self.gram]
        readers = readers_of(now, grams)
        hessians = {n: damped(grams[n].matrices, self.damp, n) for n in readers}
        scores = self._scores(now, readers, hessians)
        counts = self.allocation(now, scores, phase.share)
        units = {n: keep_top(scores[n], counts[n], now.parts[n].scope()) for n in scores}
        edits: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        for name, reader in readers.items() if self.correct else ():
            before, after = _kept(reader, now.units), _kept(reader, units)
            if bool((before & ~after).any()):
                old = _grouped(reader, now.weights[name], hessians[name]) * before
                new = refit(old, hessians[name], before, after)
                change = new - old
                energy = float(((old @ hessians[name]) * old).sum())
                errors[name] = float(((change @ hessians[name]) * change).sum()) / energy if energy > 0 else 0.0
                edits[name] = reader.view.close(new.reshape(reader.view.folded)).to(now.weights[name].dtype)
        return Update(units, edits, state, log={"readers": errors})

    def _scores(self, now: Now, readers: Mapping[str, Reader], hessians: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {
            n: torch.zeros(p.n_units, dtype=torch.float64, device=now.units[n].device) for n, p in now.parts.items()
        }
        for name, reader in readers.items():
            alive = _kept(reader, now.units)
            weight = _grouped(reader, now.weights[name], hessians[name]) * alive
            energy = float(((weight @ hessians[name]) * weight).sum()) if self.scale == "output" else 1.0
            inverse = _inverse(hessians[name], alive)
            for part, columns in reader.columns.items():
                cost = removal_costs(weight, inverse, torch.where(alive, columns, -1), now.parts[part].n_units)
                scores[part] += cost / (energy or 1.0)
        for name, alive in now.units.items():
            mean = float(scores[name][alive].mean()) if self.scale == "mean" and bool(alive.any()) else 1.0
            scores[name] = (scores[name] / (mean or 1.0)).masked_fill(~alive, float("-inf"))
        return scores


def readers_of(now: Now, grams: Mapping[str, Grams]) -> dict[str, Reader]:
    """Every weight that reads units of some partition; ``grams`` tell stacked experts from convolutions.

    Raises:
        RecipeError: units that nothing reads or that are not whole input columns, or a weight that is neither linear
            nor a convolution.
    """
    found: dict[str, Reader] = {}
    for part_name, part in now.parts.items():
        sites = _sites(part_name, part)
        if not sites:
            raise RecipeError(
                f"{part_name}: no layer reads these units as its inputs, so GroupSurgeon has nothing to weigh and to "
                "refit; take magnitude, taylor or group_importance for experts, blocks and tokens"
            )
        for name, dim, labels in sites:
            view = _view(name, tuple(now.weights[name].shape), dim, grams.get(name))
            columns = view.open(labels.to(now.weights[name].device)).reshape(-1, view.folded[2])
            if bool((columns != columns[:1]).any()):
                raise RecipeError(
                    f"{name}: GroupSurgeon removes whole inputs of a layer; use ow.channels(example=x), another "
                    "coupled structure, or InputChannel()"
                )
            old = found.get(name)
            found[name] = Reader(view, {**(old.columns if old else {}), part_name: columns[0]})
    return found


def _sites(name: str, part: Partition) -> list[tuple[str, int, Tensor]]:
    """(tensor, the dimension that is summed over, the unit of every entry or -1)."""
    sites = getattr(part, "sites", None)
    if sites is None:  # tiles of one matrix
        order = part.view.order  # type: ignore[attr-defined]
        numbers = torch.arange(part.n_units)
        return [(m, 0 if order == (1, 0) else 1, part.spread(numbers)[m]) for m in part.members]
    shapes = dict(part.shapes)  # type: ignore[attr-defined]
    found = []
    for site in sites:
        if site.consumes:
            shape = shapes[site.tensor]
            wide = [-1 if d == site.dim else 1 for d in range(len(shape))]
            found.append((site.tensor, site.dim, site.labels.view(wide).expand(shape)))
    return found


def _view(name: str, shape: tuple[int, ...], dim: int, grams: Grams | None) -> views.MatrixView:
    if len(shape) == 2:
        return views.linear_view(shape) if dim == 1 else views.transposed_view(shape)
    if len(shape) == 3 and dim == 2:
        return views.stacked_view(shape)
    if len(shape) == 3 and dim == 1 and grams is not None and grams.matrices.shape[:2] == shape[:2]:
        return views.MatrixView(shape, (0, 2, 1), (shape[0], shape[2], shape[1]), shape[1])  # experts (E, in, out)
    if len(shape) in (3, 4) and dim == 1:
        return views.conv_view(shape)
    raise RecipeError(
        f"{name}: GroupSurgeon knows the inputs of linear layers, convolutions and stacked experts, not of a weight "
        f"of shape {shape} that is summed along {dim}; leave it out with Select(exclude=({name!r},))"
    )


def _kept(reader: Reader, units: Mapping[str, Tensor]) -> Tensor:
    """``[in]``: the columns whose units are all alive."""
    kept: Tensor | None = None
    for part, columns in reader.columns.items():
        alive = units[part][columns.clamp(min=0)] | (columns < 0)
        kept = alive if kept is None else kept & alive
    assert kept is not None
    return kept


def _grouped(reader: Reader, weight: Tensor, hessian: Tensor) -> Tensor:
    """``[groups, rows, in]`` float64, one matrix per group of the convolution."""
    return reader.view.open(weight.double()).reshape(len(hessian), -1, hessian.shape[-1])


def _inverse(hessian: Tensor, alive: Tensor) -> Tensor:
    """``H^-1`` of the columns alive, zero elsewhere; ``[groups, in, in]``."""
    if bool(alive.all()):
        return torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    inner = hessian[:, alive][:, :, alive]
    found = torch.zeros_like(hessian)
    at = alive.nonzero().flatten()
    found[:, at[:, None], at[None, :]] = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    return found
