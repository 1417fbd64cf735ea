"""Units alive -> the plan whose small model computes the right outputs, and that model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import StructureError, VerificationFailed
from openwork.graph.attributes import Guess, guesses, rewrites
from openwork.graph.blocks import BlockOf
from openwork.graph.compare import difference, outputs_of, reference_of, with_ids
from openwork.graph.example import arguments
from openwork.graph.groups import UNUSED, Graph
from openwork.graph.plan import Cut, Plan, Rewrite, ranges_of
from openwork.graph.trace import device_of

TRIALS = 200
"""Combinations of doubtful attributes that are tried before a compaction is refused."""


def shrink(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor], example: Any) -> tuple[Plan, nn.Module]:
    """The plan that keeps the units alive, and the small model that computes what the masked one does.

    Args:
        model: masked by these units; it is not changed.
        graph: of this model.
        alive: group -> bool ``[n_units]``; groups that are not named stay whole.
        example: what the model is called with.

    Raises:
        StructureError: a size is written in the code of the model.
        VerificationFailed: the small model computes something else.
    """
    plan = plan_of(model, graph, alive)
    small = plan.apply(model)
    if device_of(model).type == "meta":
        return plan, small
    args, kwargs = arguments(example, device_of(model), seed=0)
    wanted = reference_of(model, graph, alive, plan, args, kwargs)
    args, kwargs = with_ids(plan, args, kwargs)
    doubtful = guesses(model, graph, alive)
    problem = "no attempt was made"
    for chosen in islice(_choices(doubtful), TRIALS):
        trial = replace(plan, rewrites=tuple(chosen))
        trial.rewrite(small)
        try:
            found = difference(outputs_of(small, args, kwargs), wanted)
        except Exception as failure:  # the forward pass fails in its own ways when a size is wrong
            problem = problem if problem.startswith("its outputs") else f"{type(failure).__name__}: {failure}"
        else:
            if not found:
                return replace(plan, rewrites=(*plan.rewrites, *chosen)), small
            problem = f"its outputs differ: {found}"
        replace(plan, rewrites=tuple(Rewrite(r.module, r.attribute, r.new, r.old) for r in chosen)).rewrite(small)
    if difference(reference_of(model, graph, alive, plan, *arguments(example, device_of(model), seed=0)), wanted):
        raise VerificationFailed(
            f"{type(model).__name__}: two runs of the pruned model itself differ, so nothing can be proved: it is "
            "random in evaluation mode, too; is there an F.dropout without training=self.training?"
        )
    if problem.startswith("its outputs"):
        raise VerificationFailed(
            f"{type(model).__name__}: the small model does not compute what the pruned one does ({problem}); was the "
            "model trained or changed after the result was made? If not, its code holds the number of an entry or a "
            "length that no attribute holds: leave the layer out with Select(exclude=...)"
        )
    raise StructureError(
        f"{type(model).__name__}: the small model does not run ({problem}); its code holds a size that was not found "
        "among the attributes of its modules; read it from the tensors there, or leave the layer out with "
        "Select(exclude=...)"
    )


def _choices(doubtful: Sequence[Guess]) -> Iterator[list[Rewrite]]:
    """Every attribute at its likeliest value, then one kind of attribute at another value, then two."""
    many: dict[tuple[str, str], int] = {}
    for guess in doubtful:
        many[guess.key] = max(many.get(guess.key, 1), len(guess.news))
    open_keys = [key for key, n in many.items() if n > 1]
    for flips in range(min(4, len(open_keys)) + 1):
        for keys in combinations(open_keys, flips):
            for others in product(*(range(1, many[key]) for key in keys)):
                at = dict(zip(keys, others, strict=True))
                values = [(g, g.news[min(at.get(g.key, 0), len(g.news) - 1)]) for g in doubtful]
                yield [Rewrite(g.module, g.attribute, g.old, new) for g, new in values if new != g.old]


def plan_of(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor]) -> Plan:
    """The plan that keeps the units alive; groups that are not named stay whole."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    masks: dict[tuple[str, int], Tensor] = {}
    for group in graph.groups:
        units = alive.get(group.name)
        if units is None or bool(units.all()):
            continue
        if not bool(units.any()):
            raise StructureError(f"{group.name}: no unit is kept, and no layer can be empty; keep at least one")
        for site in group.sites:
            keep = torch.where(site.labels >= 0, units[site.labels.clamp(min=0)], True)
            old = masks.get((site.tensor, site.dim))
            masks[site.tensor, site.dim] = keep if old is None else keep & old
    cuts = tuple(Cut(t, d, len(keep), ranges_of(keep)) for (t, d), keep in sorted(masks.items()))
    aliases = _aliases(model)
    shapes = {n: list(t.shape) for n, t in tensors.items()}
    for cut in cuts:
        shapes[cut.tensor][cut.dim] = cut.kept
    every = {alias: tuple(shapes[name]) for name in shapes for alias in (name, *aliases.get(name, ()))}
    changed = tuple(rewrites(model, graph, alive, every))
    before = sum(p.numel() for p in model.parameters())
    after = sum(torch.Size(shapes[n]).numel() for n, _ in model.named_parameters())
    counts = {g.name: (int(alive[g.name].sum()), g.n_units) for g in graph.groups if g.name in alive}
    less = {n for n, (kept, units) in counts.items() if kept < units}
    over = tuple(f"{g.name} ({g.over})" for g in graph.groups if g.over and g.name in less)
    tokens = next((ranges_of(alive[g.name]) for g in graph.of("vocabulary") if g.name in less), ())
    idle = [*dict.fromkeys(f.tensor for f in graph.frozen if f.reason == UNUSED)]
    more = ", ..." if len(idle) > 3 else ""
    notes = (f"{', '.join(idle[:3])}{more} did not run on the example and keep their shapes",) if idle and cuts else ()
    return Plan(cuts, changed, counts, (before, after), over, notes, tokens=tokens)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in pairs:
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            names.setdefault(owner, []).append(name)
    return names


def shortened(model: nn.Module, blocks: Sequence[BlockOf], alive: Tensor, example: Any) -> tuple[Plan, nn.Module]:
    """The plan that skips blocks, and the small model, compared with the masked one.

    Args:
        model: with zeros in the blocks that go; it is not changed.
        blocks: the units, in order.
        alive: bool ``[blocks]``.
        example: what the model is called with.

    Raises:
        StructureError: a result of another model.
        VerificationFailed: the small model computes something else.
    """
    if alive.numel() != len(blocks):
        raise StructureError(
            f"layers: the result has {alive.numel()} blocks, the model {len(blocks)}; compact the model that was "
            "pruned, before anything else changes its shapes"
        )
    gone = [b for b, stays in zip(blocks, alive.tolist(), strict=True) if not stays]
    before = sum(p.numel() for p in model.parameters())
    params = dict(model.named_parameters())
    less = sum(params[n].numel() for b in gone for n in b.params)
    removed = tuple((b.path, b.wrap) for b in gone)
    units = {"layers": (len(blocks) - len(gone), len(blocks))}
    plan = Plan((), (), units, (before, before - less), removed=removed)
    small = plan.apply(model)
    args, kwargs = arguments(example, device_of(model), seed=0)
    problem = difference(outputs_of(small, args, kwargs), outputs_of(model, args, kwargs))
    if problem:
        raise VerificationFailed(
            f"{type(model).__name__}: the model without its blocks does not compute what the pruned one does "
            f"({problem}); was the model trained or changed after the result was made?"
        )
    return plan, small
