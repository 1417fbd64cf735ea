"""Channels and heads of an ONNX file go by norm until a budget is met; the smaller file is proved by running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwork.core.targets import Select, matches
from openwork.errors import DensityMissed, FileError, RecipeError, StructureError, VerificationFailed, did_you_mean
from openwork.graph.cost import Cost
from openwork.graph.groups import Group
from openwork.onnx.cutting import masked, small
from openwork.onnx.file import LIMIT, read_onnx
from openwork.onnx.graph import OnnxGraph, onnx_graph
from openwork.onnx.running import Array, inputs_of, run
from openwork.ship.atomic import new_file
from openwork.structure.coupled import Coupled

KINDS = ("channels", "heads")
UNITS = ("params", "macs", "bytes")
TOLERANCE = 0.01
WIDER = 64
"""Steps that a last attempt tries at once, shared among the groups of a small model."""
MENDS = 8
LOOSE = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2}


@dataclass(frozen=True)
class OnnxReport:
    """What was done: kept and all units by group, costs before and after, and the error against the masked model.

    ``error`` is the largest difference of an output over the largest output, or over 1 where that is larger.
    ``stays`` counts the dimensions of tensors that stay by reason, ``without_rule`` the operators nobody knows.
    """

    file: str
    units: dict[str, tuple[int, int]]
    params: tuple[int, int]
    macs: tuple[int, int]
    bytes: tuple[int, int]
    error: float
    stays: dict[str, int]
    without_rule: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"  {name}: {kept} of {n} units stay" for name, (kept, n) in self.units.items()]
        lines += [f"  stays: {reason} ({n} places)" for reason, n in self.stays.items()]
        for word, (before, after) in (("parameters", self.params), ("multiply-accumulates", self.macs)):
            lines.append(f"{before:,} {word} became {after:,} ({after / max(1, before):.4f})")
        return "\n".join([*lines, f"largest error against the masked model: {self.error:.2e}"])


def prune_onnx(
    source: str | Path,
    out: str | Path | None,
    *,
    target: Mapping[str, float],
    kinds: tuple[str, ...] = KINDS,
    where: Select = Select(),
    multiple: int = 1,
    at_least: int = 1,
    dims: Mapping[str, int] | None = None,
    overwrite: bool = False,
) -> OnnxReport:
    """Prune channels and heads of an ONNX file of any framework and write a smaller one.

    Units are ranked over the whole model by the L2 norm of all their weights, divided by the mean of their group, and
    the smallest go until the budget is met. The smaller model and the one with zeros instead run in ONNX Runtime on
    made inputs and must agree before anything is written. Widths that a normalisation measures stay.

    Args:
        source: an ONNX file, operator set 11 or later; weights beside it are read from its own folder only.
        out: the file to write, weights inside; None writes nothing.
        target: one share that stays, ``{"params": 0.5}``, ``{"macs": 0.5}`` or ``{"bytes": 0.5}``, met within 1 %.
        kinds: ``channels``, ``heads``, or both.
        where: patterns on the names of initializers, as for ``ow.prune``; ``min_units`` leaves small groups whole.
        multiple: the kept units of every group are a multiple of this (all of them in smaller groups).
        at_least: so many units stay in every group.
        dims: sizes of open input dimensions, by name, for the runs; 2 where none is given.
        overwrite: replace ``out``.

    Raises:
        FileError: a file that is missing, corrupt, in the way, or has weights outside its folder.
        StructureError: a quantised model, nothing to prune, or a pattern that names nothing.
        RecipeError: a target, a bound or a dimension that cannot be meant, or the extra ``onnx`` is missing.
        DensityMissed: no cut comes within 1 % of the target; the closest is named.
        VerificationFailed: the smaller model computes something else; nothing is written.
    """
    unit, share = _checked(target, kinds, multiple, at_least)
    if out is not None and Path(out).exists() and not overwrite:
        raise FileError(f"{out}: exists already; choose another file or overwrite it (overwrite=True, --overwrite)")
    model = read_onnx(source)
    graph = onnx_graph(model, dims=dims)
    parts = _parts(graph, kinds, where, multiple, at_least, str(source))
    cost = Cost(graph, tuple((n, a.itemsize) for n, a in graph.weights.items()))
    alive = _within(_Ranking(parts, graph.weights), cost, unit, share)
    smaller = small(model, graph, alive)
    error = _proved(smaller, masked(model, graph, alive), inputs_of(model, dims or {}, seed=1), graph)
    if out is not None:
        _write(smaller, Path(out))
    stays: dict[str, int] = {}
    for row in graph.frozen:
        stays[row.reason] = stays.get(row.reason, 0) + 1
    before, after = ([cost(u, units) for u in UNITS] for units in ({}, alive))
    pairs = dict(zip(UNITS, zip(before, after, strict=True), strict=True))
    units = {p.name: (int(alive[p.name].sum()), p.n_units) for p in parts}
    return OnnxReport(str(out or ""), units, error=error, stays=stays, without_rule=dict(graph.unknown), **pairs)


def _checked(target: Mapping[str, float], kinds: tuple[str, ...], multiple: int, at_least: int) -> tuple[str, float]:
    if len(target) != 1:
        raise RecipeError(f"prune_onnx: target must name one unit, for instance {{'macs': 0.5}}, got {dict(target)!r}")
    unit, share = next(iter(target.items()))
    if unit not in UNITS:
        raise RecipeError(f"prune_onnx: unknown unit of a target {unit!r}; {did_you_mean(str(unit), UNITS)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        hint = f"; {share:g} % is {share / 100:g}" if isinstance(share, int | float) and 1 < share <= 100 else ""
        raise RecipeError(
            f"prune_onnx: target must be the share of {unit} that stays, inside (0, 1), got {share!r}{hint}"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"prune_onnx: unknown kind of units {kind!r}; {did_you_mean(kind, KINDS)}")
    if not kinds or multiple < 1 or at_least < 1:
        raise RecipeError(
            f"prune_onnx: needs a kind of units, and multiple and at_least of at least 1, got {kinds}, {multiple}, "
            f"{at_least}"
        )
    return unit, float(share)


def _parts(
    graph: OnnxGraph, kinds: tuple[str, ...], where: Select, multiple: int, at_least: int, owner: str
) -> list[Coupled]:
    chosen = [g for g in graph.groups if g.kind in kinds]
    for pattern in (*where.include, *where.exclude):
        if not any(matches(pattern, name) for name in graph.weights):
            raise StructureError(f"{owner}: pattern {pattern!r} matches no initializer; {_listed(graph)}")
    parts = []
    for group in chosen:
        makers = {s.tensor for s in group.sites if not s.consumes} or {group.name}
        every = {s.tensor for s in group.sites}
        if where.include and not any(matches(p, n) for p in where.include for n in makers):
            continue
        if group.n_units < max(2, where.min_units) or any(matches(p, n) for p in where.exclude for n in every):
            continue
        parts.append(_coupled(group, graph, multiple, at_least))
    if not parts:
        others = {f"{g.kind} are not asked for" for g in graph.groups if g.kind not in kinds}
        left = ["all groups are left out or too small"] if chosen else sorted(others)
        reasons = "; ".join(dict.fromkeys([*left, *(row.reason for row in graph.frozen)]))
        raise StructureError(f"{owner}: finds nothing to prune ({reasons})")
    return parts


def _coupled(group: Group, graph: OnnxGraph, multiple: int, at_least: int) -> Coupled:
    shapes = tuple((n, graph.weights[n].shape) for n in dict.fromkeys(s.tensor for s in group.sites))
    return Coupled(group.name, group.n_units, group.sites, shapes, group.kind, "", multiple, at_least)


def _listed(graph: OnnxGraph) -> str:
    return f"groups: {', '.join(g.name for g in graph.groups) or 'none'}"


class _Ranking:
    """Units of all groups in one order, smallest first; how many of each group stay when so many have gone."""

    def __init__(self, parts: list[Coupled], weights: Mapping[str, Array]):
        self.parts = parts
        scores = []
        for part in parts:
            values = {n: torch.from_numpy(weights[n].astype(np.float32)) for n in part.members}
            norm = part.pool(values, "norm")
            scores.append(norm / norm.mean().clamp(min=1e-30))
        ranks = torch.cat(scores).argsort(stable=True).argsort()
        self.ranks = ranks.split([p.n_units for p in parts])
        self.total = len(ranks)

    def counts(self, gone: int) -> list[int]:
        """Kept units of every group when the smallest ``gone`` have gone; floors and multiples hold."""
        return [self._allowed(i, int((ranks >= gone).sum())) for i, ranks in enumerate(self.ranks)]

    def _allowed(self, i: int, count: int) -> int:
        n, step, least = self.parts[i].n_units, self.parts[i].multiple, self.parts[i].at_least
        if step > n:
            return n
        return min(n, max(count // step, 1, -(-least // step)) * step)

    def near(self, counts: list[int], reach: int) -> Iterator[list[int]]:
        """Up to ``reach`` steps more or less in one group, or in two of them."""
        steps = [
            (i, by * part.multiple) for i, part in enumerate(self.parts) for k in range(1, reach + 1) for by in (k, -k)
        ]
        moves = [(a,) for a in steps] + [
            pair for pair in combinations(steps[: 32 if reach == 1 else None], 2) if pair[0][0] != pair[1][0]
        ]
        for move in moves:
            made = list(counts)
            for i, by in move:
                made[i] = self._allowed(i, counts[i] + by)
            if made != counts:
                yield made

    def alive(self, counts: list[int]) -> dict[str, Tensor]:
        """Bool per unit of every group: the largest stay."""
        groups = zip(self.parts, self.ranks, counts, strict=True)
        return {part.name: ranks.argsort().argsort() >= part.n_units - count for part, ranks, count in groups}


def _within(ranking: _Ranking, cost: Cost, unit: str, share: float) -> dict[str, Tensor]:
    """Bisect how many units go, then mend the last step group by group, at last in wider steps of small models."""
    dense = cost(unit, {})
    wanted = share * dense

    def costs(counts: list[int]) -> int:
        return cost(unit, ranking.alive(counts))

    low, high = 0, ranking.total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if costs(ranking.counts(middle)) > wanted else (low, middle)
    best = min((ranking.counts(gone) for gone in (low, high)), key=lambda c: abs(costs(c) - wanted))
    few = len(ranking.parts) <= 8
    for reach in (1, WIDER // len(ranking.parts)) if few else (1,):
        for _ in range(MENDS):
            if abs(costs(best) - wanted) <= TOLERANCE * wanted:
                return ranking.alive(best)
            better = min(ranking.near(best, reach), key=lambda c: abs(costs(c) - wanted), default=best)
            if abs(costs(better) - wanted) >= abs(costs(best) - wanted):
                break
            best = better
    least = costs(ranking.counts(ranking.total))
    raise DensityMissed(
        f"prune_onnx: {share:g} of the {dense:,} {unit} cannot be met within 1 %; the closest reachable is "
        f"{costs(best) / dense:.4f}, the least {least / dense:.4f}: floors, multiples and axes that stay leave nothing "
        "in between"
    )


def _proved(smaller: Any, dense: Any, inputs: Mapping[str, Array], graph: OnnxGraph) -> float:
    """The largest difference between two models over the largest output.

    Raises:
        VerificationFailed: it is too large, or the smaller model does not run.
    """
    wanted = run(dense, inputs)
    try:
        found = run(smaller, inputs)
    except FileError as problem:
        raise VerificationFailed(f"the smaller model does not run, so nothing was written: {problem}") from None
    worst = 0.0
    coarse = min((a.dtype.name for a in graph.weights.values()), key=lambda n: -LOOSE.get(n, 1e-5))
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a.shape != b.shape:
            raise VerificationFailed(f"output {i} has shape {a.shape} instead of {b.shape}; nothing was written")
        if not a.size:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        error = float(np.abs(x - y).max() / max(1.0, np.abs(y).max()))
        if not error <= LOOSE.get(coarse, 1e-5):
            raise VerificationFailed(
                f"output {i} of the smaller model differs from the masked one by {error:.3g}; nothing was written"
            )
        worst = max(worst, error)
    return worst


def _write(model: Any, path: Path) -> None:
    content = model.SerializeToString()
    if len(content) > LIMIT:
        raise FileError(f"{path}: {len(content):,} bytes are too many for one ONNX file; prune more")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FileError(f"{path.parent}: could not be created ({problem.strerror})") from None
    with new_file(path) as part:
        part.write_bytes(content)
