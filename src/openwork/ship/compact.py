"""From a pruned model to a physically smaller one: plan, explain, apply, check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import Tensor, nn

from openwork.engine.result import Result
from openwork.errors import StructureError, VerificationFailed
from openwork.graph.attributes import Guess, guesses, rewrites
from openwork.graph.example import Example, arguments
from openwork.graph.groups import Graph, build_graph
from openwork.graph.plan import Cut, Plan, Rewrite, finished, ranges_of
from openwork.graph.trace import device_of
from openwork.ship.homogeneous import with_config
from openwork.ship.verify import difference, outputs_of, reference_of
from openwork.structure.coupling import Coupling

TRIALS = 200
"""Combinations of doubtful attributes that are tried before a compaction is refused."""


def plan_compaction(model: nn.Module, result: Result, *, example: Any = None) -> Plan:
    """What ``compact`` would do, without doing it.

    Args:
        model: the pruned model, of the shapes it had when it was pruned.
        result: what pruning it with a coupled structure (``ow.channels``, ``ow.heads``, ...) returned.
        example: what the model is called with; None takes the example of the structure.

    Raises:
        StructureError: a result of another structure or another model.
        GraphRefused: torch.export cannot follow the forward pass.
    """
    structure = coupling_of(result)
    return _settled(model, result, structure.example if example is None else example)[0]


def _settled(model: nn.Module, result: Result, example: Any) -> tuple[Plan, nn.Module]:
    """The plan whose small model computes the right outputs, and that model."""
    graph = build_graph(model, Example.of(example))
    sizes = {g.name: g.n_units for g in graph.groups}
    for name, units in result.units.items():
        if sizes.get(name) != units.numel():
            raise StructureError(
                f"{name}: the result has {units.numel()} units there, the model {sizes.get(name, 'no such group')}; "
                "compact the model that was pruned, before anything else changes its shapes"
            )
    alive = {n: u.cpu() for n, u in result.units.items()}
    plan = plan_of(model, graph, alive)
    small = plan.apply(model)
    if device_of(model).type == "meta":
        return plan, small
    wanted = reference_of(model, graph, alive, plan, example)
    args, kwargs = arguments(example, device_of(model), seed=0)
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
    if problem.startswith("its outputs"):
        raise VerificationFailed(
            f"{type(model).__name__}: the small model does not compute what the pruned one does ({problem}); was the "
            "model trained or changed after the result was made?"
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


def coupling_of(result: Result) -> Coupling:
    """The coupled structure of a result.

    Raises:
        StructureError: it pruned something else.
    """
    structure = result.recipe.structure
    if not isinstance(structure, Coupling):
        raise StructureError(
            f"compaction removes whole coupled units, but {result.recipe.name} pruned {structure}; prune with "
            "ow.channels(example=x), ow.heads(example=x), ow.hidden(example=x) or ow.experts(example=x)"
        )
    return structure


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
    return Plan(cuts, changed, counts, (before, after), over)


def compact(model: nn.Module, result: Result, *, example: Any = None, homogeneous: bool = False) -> nn.Module:
    """A smaller ordinary model that computes what the pruned one computes.

    Parameters, buffers and attributes (``out_features``, ``groups``, ``num_heads``, ...) are cut; classes and names
    stay, so the result is trained, exported and saved like any other model. Its outputs on the example are compared
    with those of the pruned model before it is returned; ``ow.verify`` does the same on other data.

    Args:
        model: the pruned model; it is not changed.
        result: what pruning it with a coupled structure returned.
        example: what the model is called with; None takes the example of the structure.
        homogeneous: also rewrite the ``config`` of a transformers model, so that plain ``from_pretrained`` builds the
            small one. All layers must then keep the same number of units.

    Returns:
        The small model, in the mode of ``model``; ``small.openwork_compaction`` is the plan that made it.

    Raises:
        StructureError: a result of another structure or model, or a forward pass that writes a size in its code.
        VerificationFailed: the small model runs but computes something else.
        OpenworkError: ``homogeneous`` and layers of different widths.

    Examples:
        >>> import openwork as ow
        >>> from openwork.methods import magnitude
        >>> x, model = torch.randn(2, 1, 8, 8), ow.build_model("mlp").eval()
        >>> result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=x)))
        >>> small = compact(model, result)
        >>> bool(torch.allclose(small(x), model(x), atol=1e-5))
        True
    """
    structure = coupling_of(result)
    plan, small = _settled(model, result, structure.example if example is None else example)
    finished(small, plan, getattr(model, "openwork_source", None))
    return _uniform(small) if homogeneous else small


def _uniform(small: nn.Module) -> nn.Module:
    """The small model with a config that builds it, so that nothing of ours is needed to load it."""
    with_config(small)
    config: Any = small.config
    plain = {**config.to_dict(), "architectures": [type(small).__name__]}
    config.architectures = plain["architectures"]
    small.openwork_source = {"kind": "hf", "name": type(small).__name__, "options": {"config": plain}}  # type: ignore[assignment]
    return small


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in pairs:
        owner = first.setdefault(id(tensor), name)
        if owner != name:
            names.setdefault(owner, []).append(name)
    return names
