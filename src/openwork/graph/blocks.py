"""Residual blocks that can go: with all parameters at zero they pass their input on, which is tried, not guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openwork.errors import StructureError
from openwork.graph.cost import UNITS
from openwork.graph.example import Example
from openwork.graph.groups import build_graph
from openwork.graph.trace import device_of, quiet


@dataclass(frozen=True)
class BlockOf:
    """A module that can be skipped: its path, its parameters, whether it returns a tuple."""

    path: str
    params: tuple[str, ...]
    wrap: bool


def residual_blocks(model: nn.Module, example: Any) -> tuple[list[BlockOf], dict[str, str]]:
    """Run the model once; every module that maps a tensor to one of its shape is tried with its parameters at zero.

    Returns:
        The innermost modules that then return their first input, in the order in which they run, and for the other
        modules that were tried why they stay.

    Raises:
        StructureError: a model without values (meta tensors).

    Examples:
        >>> import openwork as ow
        >>> model = ow.build_model("resnet8", (1, 28, 28), 10)
        >>> [block.path for block in residual_blocks(model, torch.zeros(1, 1, 28, 28))[0]]
        ['layer1.0']
    """
    if device_of(model).type == "meta":
        raise StructureError(
            f"{type(model).__name__}: residual blocks are found by running the model, and meta tensors have no values"
        )
    names = {id(p): n for n, p in model.named_parameters()}
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    paths = {m: path for path, m in model.named_modules() if path and any(True for _ in m.parameters())}
    runs: Counter[str] = Counter()
    passing: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    busy = [False]

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if busy[0]:
            return
        path = paths[module]
        runs[path] += 1
        given = args[0] if args else next(iter(kwargs.values()), None)
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(given, Tensor) or not isinstance(first, Tensor) or given.shape != first.shape:
            return
        if not bool(given.any()):  # of zeros nothing can be learned: a pruned block feeds them to what it holds
            return
        if isinstance(output, tuple) and any(isinstance(o, Tensor) for o in output[1:]):
            reasons[path] = "returns more than one tensor"
            return
        zeros = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
        busy[0] = True
        try:
            made = functional_call(module, zeros, args, kwargs)
        except Exception as failure:  # a block that divides by its weights fails in its own ways
            reasons[path] = f"does not run with its parameters at zero ({type(failure).__name__})"
            return
        finally:
            busy[0] = False
        made = made[0] if isinstance(made, tuple) else made
        if torch.equal(made, given) or torch.allclose(made, given, atol=1e-6, rtol=1e-6):
            passing[path] = isinstance(output, tuple)
        else:
            reasons[path] = "does not pass its input on when its parameters are zero"

    handles = [m.register_forward_hook(hook, with_kwargs=True) for m in paths]
    args, kwargs = Example.of(example).tensors(device_of(model), seed=0)
    try:
        with quiet(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(model.named_modules())
    blocks = []
    for path, wrap in passing.items():
        mine = list(modules[path].parameters())
        inside = Counter(id(p) for m in modules[path].modules() for p in m._parameters.values() if p is not None)
        if any(other.startswith(f"{path}.") for other in passing):
            reasons[path] = "holds smaller residual blocks"
        elif runs[path] > 1:
            reasons[path] = "runs more than once in a forward pass"
        elif any(uses[i] > n for i, n in inside.items()):
            reasons[path] = "shares parameters with another module"
        else:
            blocks.append(BlockOf(path, tuple(dict.fromkeys(names[id(p)] for p in mine)), wrap))
    return blocks, reasons


@dataclass(frozen=True)
class DepthCost:
    """Parameters, bytes and multiply-accumulates as a function of the blocks alive."""

    whole: Mapping[str, int]
    blocks: tuple[Mapping[str, int], ...]

    def __call__(self, unit: str, alive: Mapping[str, Tensor]) -> int:
        stay = alive.get("layers")
        gone = [] if stay is None else (~stay).nonzero().flatten().tolist()
        return self.whole[unit] - sum(self.blocks[i][unit] for i in gone)


def depth_cost(model: nn.Module, example: Example, blocks: list[BlockOf]) -> DepthCost:
    """Count every block: its parameters, and the products that its operations make.

    Raises:
        GraphRefused: torch.export cannot follow the forward pass.
    """
    graph = build_graph(model, example)
    params = dict(model.named_parameters())
    work: Counter[str] = Counter()
    for node, products in graph.reading.products.items():
        stack = node.meta.get("nn_module_stack") or {}
        path = str(list(stack.values())[-1][0]) if stack else ""
        for axes in products:
            total = 1
            for axis in axes:
                total *= axis.size
            work[path] += total

    def counted(names: Any, prefix: str | None) -> dict[str, int]:
        macs = sum(n for p, n in work.items() if prefix is None or p == prefix or p.startswith(f"{prefix}."))
        sizes = [(params[n].numel(), params[n].element_size()) for n in names]
        return dict(zip(UNITS, (sum(n for n, _ in sizes), macs, sum(n * size for n, size in sizes)), strict=True))

    return DepthCost(counted(params, None), tuple(counted(b.params, b.path) for b in blocks))
