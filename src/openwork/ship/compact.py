"""From a pruned model to a physically smaller one: plan, explain, apply, check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openwork.engine.result import Result
from openwork.errors import StructureError, VerificationFailed
from openwork.graph.compare import difference, outputs_of, with_ids
from openwork.graph.example import Example, arguments
from openwork.graph.groups import build_graph
from openwork.graph.plan import Plan, finished
from openwork.graph.shrink import shortened, shrink
from openwork.graph.trace import device_of
from openwork.ship.homogeneous import with_config
from openwork.structure.coupling import Coupling
from openwork.structure.depth import Depth
from openwork.zoo.hugging_face import config_source, from_config, known_source


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
    structure = result.recipe.structure
    if isinstance(structure, Depth):
        blocks = structure.blocks(model, result.recipe.where)
        return shortened(model, blocks, result.units.get("layers", torch.ones(0)), example)
    graph = build_graph(model, Example.of(example))
    sizes = {g.name: g.n_units for g in graph.groups}
    for name, units in result.units.items():
        if sizes.get(name) != units.numel():
            raise StructureError(
                f"{name}: the result has {units.numel()} units there, the model {sizes.get(name, 'no such group')}; "
                "compact the model that was pruned, before anything else changes its shapes"
            )
    return shrink(model, graph, {n: u.cpu() for n, u in result.units.items()}, example)


def coupling_of(result: Result) -> Coupling | Depth:
    """The coupled structure of a result.

    Raises:
        StructureError: it pruned something else.
    """
    structure = result.recipe.structure
    if not isinstance(structure, Coupling | Depth):
        raise StructureError(
            f"compaction removes whole coupled units, but {result.recipe.name} pruned {structure}; prune with "
            "ow.channels(example=x), ow.heads, ow.hidden, ow.experts, ow.layers or ow.vocabulary"
        )
    return structure


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
            small one. All layers must then keep the same number of units; the blocks that ``ow.layers`` leaves are
            numbered anew. A model built from the new config is compared with the small one.

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
    finished(small, plan, known_source(model))
    return _uniform(small, structure.example if example is None else example) if homogeneous else small


def _uniform(small: nn.Module, example: Any) -> nn.Module:
    """The small model with a config that builds it, so that nothing of ours is needed to load it."""
    args, kwargs = arguments(example, device_of(small), seed=0)
    args, kwargs = with_ids(Plan.from_dict(small.openwork_compaction), args, kwargs)
    wanted = outputs_of(small, args, kwargs)
    with_config(small)
    source = config_source(small)
    small.config.architectures = [source["name"]]  # type: ignore[union-attr]
    fresh = from_config(source["options"]["config"], source["name"]).to(device_of(small))
    fresh.load_state_dict(small.state_dict())
    problem = difference(outputs_of(fresh, args, kwargs), wanted)
    if problem:
        raise VerificationFailed(
            f"{source['name']}: a model built from the new config does not compute what the small one does "
            f"({problem}); take homogeneous=False and load with ow.load"
        )
    small.openwork_source = source  # type: ignore[assignment]
    return small


def token_map(small: nn.Module) -> Tensor:
    """Which token has which number in a model whose vocabulary was cut.

    Args:
        small: made by ``ow.compact`` after pruning with ``ow.vocabulary``.

    Returns:
        ``[old vocabulary]`` int64: the new number of every old token id, -1 for tokens that are gone. Translate what a
        tokenizer gives with ``token_map(small)[ids]``.

    Raises:
        StructureError: the vocabulary of the model is whole.
    """
    plain = getattr(small, "openwork_compaction", None)
    plan = Plan.from_dict(plain) if plain is not None else None
    ids = plan.token_ids if plan is not None else None
    if plan is None or ids is None:
        raise StructureError(f"{type(small).__name__}: its vocabulary is whole; only ow.vocabulary cuts it")
    made = torch.full((next(c.size for c in plan.cuts if c.kept == len(ids)),), -1)
    made[ids] = torch.arange(len(ids))
    return made
