"""Which attributes of which modules hold sizes that compaction changes: ``out_features``, ``num_heads``, ``groups``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from openwork.graph.axes import Axis, find, leaves
from openwork.graph.groups import Graph, Groups
from openwork.graph.plan import Rewrite

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
NEVER = ("bucket", "vocab", "max_", "position", "window", "patch", "kernel", "stride", "layer", "_id", "epoch", "step")
"""Words of attributes that count something else."""


def width(axis: Axis, graph: Groups, alive: Mapping[str, Tensor]) -> int:
    """How long an axis is after removal."""
    axis = find(axis)
    if axis.parts:
        sizes = [width(part, graph, alive) for part in axis.parts]
        if axis.kind == "cat":
            return sum(sizes)
        total = 1
        for n in sizes:
            total *= n
        return total
    name, unit = graph.owner.get(id(axis), ("", -1))
    if name not in alive:
        return axis.size
    return int(alive[name].sum()) if unit < 0 else int(alive[name][unit])


@dataclass(frozen=True)
class Guess:
    """An attribute that may be a size: values to try, the likeliest first (the old one among them)."""

    module: str
    kind: str
    attribute: str
    old: int
    news: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Guesses of one class and name are right or wrong together."""
        return self.kind, self.attribute


def rewrites(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor], shapes: Shapes) -> list[Rewrite]:
    """What the modules of torch must be told. ``shapes`` are those of all parameters and buffers after cutting."""
    groups = {path: width(axis, graph, alive) for path, axis in graph.reading.notes.groups}
    found = list(_of_vocabulary(model, graph, alive))
    for path, module in model.named_modules():
        rule = _known(module)
        if rule is None:
            continue
        mine: dict[str, Shape] = {leaf: shapes[f"{path}.{leaf}" if path else leaf] for leaf in _own(module)}
        mine["groups"] = (groups.get(path, getattr(module, "groups", getattr(module, "num_groups", 1))),)
        for name, new in rule(module, mine).items():
            old = getattr(module, name, None)
            if old is not None and old != new:
                found.append(Rewrite(path, name, old, new))
    return found + list(_bare_norms(model, graph, alive))


def _bare_norms(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor]) -> Iterator[Rewrite]:
    """Norms over the last dimensions that have no weights: the graph knows how long those are."""
    modules = dict(model.named_modules())
    for path, axes in dict(graph.reading.notes.normed).items():
        module: Any = modules.get(path)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and not _own(module):
            new = tuple(width(axis, graph, alive) for axis in axes)
            if new != tuple(module.normalized_shape):
                yield Rewrite(path, "normalized_shape", tuple(module.normalized_shape), new)


def _of_vocabulary(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor]) -> Iterator[Rewrite]:
    """``vocab_size`` and the id of the padding token, where tokens go."""
    for group in graph.of("vocabulary"):
        if group.name not in alive or bool(alive[group.name].all()):
            continue
        stay = alive[group.name].cpu()
        places = (stay.cumsum(0) - 1).tolist()
        tables = {s.tensor.rpartition(".")[0] for s in group.sites}
        for path, module in model.named_modules():
            if getattr(module, "vocab_size", None) == group.n_units:
                yield Rewrite(path, "vocab_size", group.n_units, int(stay.sum()))
            padding = getattr(module, "padding_idx", None)
            if path in tables and isinstance(padding, int):
                yield Rewrite(path, "padding_idx", padding, places[padding] if bool(stay[padding]) else None)


def guesses(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor]) -> list[Guess]:
    """Integer attributes of other modules that may be sizes.

    An attribute may be a size when an axis of that length passes through the module's operations or those of its
    children and becomes shorter. Names decide among several (``num_heads``, ``num_experts``, ...); compaction tries
    what is left and keeps what computes the right outputs.
    """
    found = []
    for path, module in model.named_modules():
        if _known(module) is None:
            found += list(_guessed(path, module, graph, alive))
    return found


def _known(module: nn.Module) -> Callable[[Any, Shapes], dict[str, Any]] | None:
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _transposed
    rule = next((rule for kind, rule in KNOWN if isinstance(module, kind)), None)
    return rule if rule is not None and _own(module) else None


def _own(module: nn.Module) -> list[str]:
    stores = (module._parameters, module._buffers)
    return [leaf for store in stores for leaf, value in store.items() if value is not None]


def _guessed(path: str, module: nn.Module, graph: Graph, alive: Mapping[str, Tensor]) -> Iterator[Guess]:
    sizes: dict[int, list[Axis]] = {}
    for axis in graph.reading.seen.get(path, ()):
        sizes.setdefault(axis.size, []).append(axis)
    for name, value in sorted(vars(module).items()):
        if not isinstance(value, int) or isinstance(value, bool) or value < 2 or value not in sizes:
            continue
        if any(word in name for word in NEVER):
            continue
        likely = {width(a, graph, alive) for a in sizes[value] if _fits(name, a)}
        every = {width(a, graph, alive) for a in sizes[value]}
        if every != {value}:
            first = sorted(likely or {value}, key=lambda n: (n == value) == _is_count(name))
            news = tuple(dict.fromkeys([*first, value, *sorted(every)]))
            yield Guess(path, type(module).__name__, name, value, news)


def _is_count(name: str) -> bool:
    return "head" in name and "dim" not in name and "size" not in name


def _fits(name: str, axis: Axis) -> bool:
    """Whether an attribute of this name may mean this axis."""
    tags = frozenset().union(*(leaf.tags for leaf in leaves(axis)))
    if "expert" in name:
        return "experts" in tags
    if "group" in name:
        return "repeats" in tags or "heads" in tags
    if _is_count(name):
        return "heads" in tags and find(axis).kind != "prod"
    return True


def _linear(module: Any, s: Shapes) -> dict[str, Any]:
    return {"out_features": s["weight"][0], "in_features": s["weight"][1]}


def _transposed(module: Any, s: Shapes) -> dict[str, Any]:
    return {"nx": s["weight"][0], "nf": s["weight"][1]}


def _convolution(module: Any, s: Shapes) -> dict[str, Any]:
    """``groups`` itself is rewritten from the graph; here its new value is read from there."""
    first, second, groups = s["weight"][0], s["weight"][1], s["groups"][0]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * groups, "groups": groups}
    return {"in_channels": second * groups, "out_channels": first, "groups": groups}


def _norm(module: Any, s: Shapes) -> dict[str, Any]:
    return {"num_features": s["weight" if "weight" in s else "running_mean"][0]}


def _layer_norm(module: Any, s: Shapes) -> dict[str, Any]:
    return {"normalized_shape": s["weight"]}


def _group_norm(module: Any, s: Shapes) -> dict[str, Any]:
    return {"num_channels": s["weight"][0], "num_groups": s["groups"][0]}


def _embedding(module: Any, s: Shapes) -> dict[str, Any]:
    return {"num_embeddings": s["weight"][0], "embedding_dim": s["weight"][1]}


def _recurrent(module: Any, s: Shapes) -> dict[str, Any]:
    return {"input_size": s["weight_ih_l0"][1], "hidden_size": s["weight_hh_l0"][1]}


def _prelu(module: Any, s: Shapes) -> dict[str, Any]:
    return {"num_parameters": s["weight"][0]}


KNOWN: list[tuple[Any, Callable[[Any, Shapes], dict[str, Any]]]] = [
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.LayerNorm | nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding | nn.EmbeddingBag, _embedding),
    (nn.RNNBase, _recurrent),
    (nn.PReLU, _prelu),
]
