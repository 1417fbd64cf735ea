"""What the network that a run leaves behind costs: multiply-accumulates, bytes, and milliseconds where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.core.protocols import Structure
from openwork.core.targets import Select
from openwork.engine.result import Result
from openwork.errors import OpenworkError
from openwork.graph.example import Example, Tensorlike
from openwork.metrics.effective import effective_masks
from openwork.runtime import pack
from openwork.runtime.timing import interleaved, spread
from openwork.stats.work import LayerMacs
from openwork.structure import Element, partition


def multiply_accumulates(model: nn.Module, input_shape: Sequence[int]) -> int | None:
    """Multiply-accumulates of one input with the weights that are not zero; None where a weight is not followed.

    Linear and convolution layers count. Products of activations with each other (attention) do not, which no mask
    changes.

    Examples:
        >>> layer = nn.Linear(4, 3)
        >>> _ = layer.weight.data.index_fill_(1, torch.tensor([0]), 0.0)
        >>> multiply_accumulates(layer, [4])
        9
    """
    macs = layer_macs(model, input_shape)
    if macs is None:
        return None
    weights = dict(model.named_parameters())
    return sum(n // weights[name].numel() * int((weights[name].detach() != 0).sum()) for name, n in macs.items())


def layer_macs(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int] | None:
    """Parameter name -> multiply-accumulates of one input with all its weights; None where a weight is not followed."""
    try:
        parts = partition(model, Element(), Select())[0]
        example = Example((Tensorlike((1, *input_shape)),))
        device = next(model.parameters()).device
        return LayerMacs(example).measure(Measuring(model, parts, Feed(None, device), None))
    except OpenworkError:
        return None


def connected(model: nn.Module, result: Result, input_shape: Sequence[int]) -> int | None:
    """Kept entries of the pruned tensors on a path from an input to an output; None where paths are not followed."""
    try:
        found = effective_masks(model, result.masks, Example((Tensorlike((1, *input_shape)),)))
    except OpenworkError:
        return None
    return sum(int(m.sum()) for m in found.values())


def stored_bytes(model: nn.Module, result: Result) -> int:
    """Bytes of the values that are not zero, and one bit for every unit of a tensor that is not whole."""
    values = sum(int((p.detach() != 0).sum()) * p.element_size() for p in model.parameters())
    bits = sum(t["units"] for t in result.tensors if t["units"] and t["kept"] < t["numel"])
    return values + -(-bits // 8)


def milliseconds(model: nn.Module, structure: Structure, x: Tensor) -> dict[str, float] | None:
    """Median processor time of the dense and of the packed network on one batch, on one thread, measured in turn.

    None where the structure has no packed format.
    """
    try:
        packed = pack(model, structure, example=x)
    except OpenworkError:
        return None
    was, dense = model.training, model.eval()
    with torch.no_grad():
        times = interleaved({"dense": lambda: dense(x), "packed": lambda: packed(x)})
    model.train(was)
    return {name: spread(t)["ms"] for name, t in times.items()}


def cost_of(model: nn.Module, result: Result, input_shape: Sequence[int], batch: Tensor | None) -> dict[str, Any]:
    """The cost part of a record; ``batch`` is timed when it is given."""
    told: dict[str, Any] = {"macs": multiply_accumulates(model, input_shape), "bytes": stored_bytes(model, result)}
    if batch is not None:
        told["milliseconds"] = milliseconds(model, result.recipe.structure, batch)
    return told
