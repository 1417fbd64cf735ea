"""Gradients of one batch, added up over micro-batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openwork.core.batches import device_of
from openwork.core.distributed import world
from openwork.core.recipe import Recipe
from openwork.errors import RecipeError
from openwork.lab.ranks import apart


def micro_size(batch_size: int, accumulate: int) -> int:
    """The most samples of one forward pass on this process, its share of a batch in ``accumulate`` parts.

    Examples:
        >>> micro_size(2048, 8)
        256
    """
    return -(-batch_size // (accumulate * world()))


def micro_batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """A batch in nearly equal parts of at most ``size`` samples; rather one sample more than a part of only one.

    Examples:
        >>> import torch
        >>> [len(part) for part, _ in micro_batches(torch.ones(9, 3), torch.ones(9), size=4)]
        [3, 3, 3]
        >>> [len(part) for part, _ in micro_batches(torch.ones(5, 3), torch.ones(5), size=2)]
        [3, 2]
    """
    parts = -(-len(y) // size)
    if size > 1:
        parts = max(1, min(parts, len(y) // 2))
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


def add_gradients(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[], Tensor | float],
    batch: tuple[Tensor, Tensor],
    whole: int,
    size: int,
) -> float:
    """Leave the gradients of ``loss`` on a batch plus ``penalty`` in the parameters; returns the sum of both.

    Each micro-batch has its own forward and backward pass and counts by its samples. The penalty is taken once. Ranks
    average gradients in the last backward pass only.

    Args:
        model: what ``together`` gave.
        loss: the mean over samples x ``[n, *shape]``, y ``[n]``, which are moved to the device of the model.
        penalty: what is added to the loss of a step.
        batch: the part of this rank.
        whole: the samples of the batch over all ranks.
        size: the most samples of a micro-batch.
    """
    device, value = device_of(model), 0.0
    parts = micro_batches(*batch, size)
    for index, (x, y) in enumerate(parts):
        last = index + 1 == len(parts)
        with nullcontext() if last else apart(model):
            # ranks average gradients; the last batch of an epoch may be shared unequally
            part = loss(x.to(device), y.to(device)) * (len(y) * world() / whole)
            if last:
                part = part + penalty()
            value += float(part.detach())
            part.backward()
    return value


def refuse_accumulation(recipe: Recipe, accumulate: int) -> None:
    """Refuse micro-batches for a method whose every forward pass draws masks of its own.

    Raises:
        RecipeError: it is one.
    """
    if accumulate > 1 and hasattr(recipe.relaxation, "samples"):
        raise RecipeError(
            f"{recipe.name}: accumulate must be 1, since every forward pass draws a mask of its own and the "
            f"micro-batches of a step would not share one, got {accumulate}; take smaller batches"
        )


def refuse_single_samples(model: nn.Module, batch_size: int, accumulate: int) -> None:
    """Refuse micro-batches of a single sample, of which a batch norm cannot take the statistics.

    Raises:
        RecipeError: the share of a process leaves such a one and the model has a batch norm.
    """
    samples = batch_size // (accumulate * world())
    norm = next((n for n, m in model.named_modules() if isinstance(m, _BatchNorm)), None)
    if accumulate > 1 and samples < 2 and norm is not None:
        raise RecipeError(
            f"accumulate: micro-batches must have at least 2 samples for the batch norm {norm}, got {samples} "
            f"(batch_size {batch_size}, {accumulate} parts, {world()} processes); accumulate less or raise batch_size"
        )
