"""Sums over layer inputs: squares and moments; per expert where experts are fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from openwork.core.batches import forward
from openwork.core.distributed import summed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.partition import Partition
from openwork.core.shards import piece_like, reshard
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic, RecipeError
from openwork.stats.products import Product, Products, unfolded
from openwork.structure.coupled import Coupled


def check_batches(owner: str, batches: int | None) -> None:
    """Refuse a number of batches that measures nothing."""
    if batches is not None and batches < 1:
        raise RecipeError(f"{owner}: batches must be at least 1, got {batches}")


def watch(ctx: Measuring, batches: int | None, see: Callable[[Product], None], lookups: set[str] | None = None) -> None:
    """Run the model in eval mode without gradients and show every product with a member to ``see``.

    Members that an Embedding looks up are refused, or added to ``lookups``.
    """
    weights = weights_of(ctx)
    what = "calibration batches" if batches is None else f"{batches} calibration batches"
    with torch.no_grad(), ctx.calling("eval") as call:
        for batch in ctx.feed.sweep(batches, what):
            with Products(weights, ctx.parts.values(), see, ctx.model if ctx.sharded else None, lookups):
                forward(lambda *a, **k: call({}, *a, **k), batch)
    reshard(ctx.model)


def refuse_unseen(ctx: Measuring, seen: set[str], lookups: set[str] | None = None) -> None:
    """Every member must have met an input; of those that an Embedding looked up, one of each partition.

    Raises:
        MissingStatistic: one has not.
    """
    missing = set(ctx.members) - seen - (lookups or set())
    if missing:
        raise MissingStatistic(
            f"{sorted(missing)[0]}: its inputs were never seen ({len(missing)} tensors); it is not the weight of a "
            "layer that the forward pass calls, leave it out with Select(exclude=...)"
        )
    for name, part in ctx.parts.items():
        if seen.isdisjoint(part.members):
            raise MissingStatistic(
                f"{name}: its units are looked up in a table and nothing multiplies with them, so no inputs weigh "
                "them; take a criterion that needs none (magnitude, taylor, group_importance), or leave them out with "
                f"Select(exclude=({part.members[0]!r},))"
            )


def weighing(parts: Mapping[str, Partition]) -> dict[str, Partition]:
    """The same partitions, of coupled units only the matrices that read them; all their matrices when none does.

    Raises:
        MissingStatistic: units without a matrix.
    """
    found: dict[str, Partition] = {}
    for name, part in parts.items():
        found[name] = part
        if isinstance(part, Coupled):
            shapes = dict(part.shapes)
            seen = part.reading
            matrices = [m for m in seen.members if len(shapes[m]) > 1]
            if not matrices:
                raise MissingStatistic(
                    f"{name}: no matrix reads or makes these units, so no inputs weigh them; leave them out with "
                    f"Select(exclude=({part.members[0]!r},))"
                )
            found[name] = seen.only(matrices)
    return found


@dataclass(frozen=True)
class InputSquares(Stat):
    """For every weight, the sum over samples and positions of the squared input that it multiplies.

    The value maps parameter names to float32 tensors of the weight's shape (constant along the outputs; do not write
    into them), counted in eval mode over ``batches`` batches, or over every batch of the data once (None). Linear
    layers, Conv1D, convolutions and fused experts are known; others are refused. Of a sharded weight it is the piece.
    Of coupled units only the ``weighing`` matrices are measured, without tables that are only looked up.
    """

    sharded: ClassVar[bool] = True
    batches: int | None = 8

    def __post_init__(self) -> None:
        check_batches("InputSquares", self.batches)

    def measure(self, ctx: Measuring) -> dict[str, Tensor]:
        coupled = any(isinstance(p, Coupled) for p in ctx.parts.values())
        ctx = replace(ctx, parts=weighing(ctx.parts))
        params = {n: ctx.model.get_parameter(n) for n in ctx.members}
        total: dict[str, Tensor] = {}
        lookups: set[str] | None = set() if coupled else None

        def see(product: Product) -> None:
            shape = params[product.name].shape
            squares = _squares(product, shape)
            if product.conv is None:
                squares = squares.reshape((-1, 1) if product.transposed else (1, -1))
            if len(shape) == 3 and product.conv is None:  # experts: one row of sums each
                total.setdefault(product.name, squares.new_zeros(shape[0], *squares.shape))
                total[product.name][product.index] += squares
            else:
                total[product.name] = total[product.name] + squares if product.name in total else squares

        watch(ctx, self.batches, see, lookups)
        refuse_unseen(ctx, set(total), lookups)
        summed(total[n] for n in sorted(total))
        return {n: piece_like(params[n], total[n].expand(params[n].shape)) for n in params if n in total}


def _squares(product: Product, shape: Sequence[int]) -> Tensor:
    """The sums of one product: ``[in]``, for a convolution ``shape`` (constant along the outputs of a group)."""
    squared = product.x.float().square()
    if product.conv is None:
        return squared.reshape(-1, squared.shape[-1]).sum(0)
    # the gradient of a convolution with respect to its kernel, for an output gradient of ones, is this sum
    groups = int(product.conv["groups"])
    leaf = squared.new_zeros(groups, *shape[1:], requires_grad=True)
    with torch.enable_grad():
        assert product.call is not None
        out = product.call(squared, leaf, None, **product.conv)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
    return grad if groups == 1 else grad.repeat_interleave(shape[0] // groups, 0)


@dataclass(frozen=True)
class Moments:
    """Sums over the ``tokens`` [groups] rows that met a weight: ``first`` and ``squares`` [groups, in], float64.

    ``samples`` counts the batch entries (sequences) behind them.
    """

    first: Tensor
    squares: Tensor
    tokens: Tensor
    samples: int

    @property
    def mean(self) -> Tensor:
        """``[groups, in]``."""
        return self.first / self.tokens.clamp(min=1)[:, None]

    @property
    def variance(self) -> Tensor:
        """``[groups, in]``, biased, never negative."""
        mean = self.squares / self.tokens.clamp(min=1)[:, None]
        return (mean - self.mean.square()).clamp(min=0)


@dataclass(frozen=True)
class InputMoments(Stat):
    """Parameter name -> ``Moments`` of the inputs, merged exactly over batches; one group per expert or conv group.

    Of a sharded weight they are those of all its groups, on every rank.
    """

    sharded: ClassVar[bool] = True
    batches: int | None = None

    def __post_init__(self) -> None:
        check_batches("InputMoments", self.batches)

    def measure(self, ctx: Measuring) -> dict[str, Moments]:
        weights = {n: ctx.model.get_parameter(n) for n in ctx.members}
        sums: dict[str, list[Tensor]] = {}
        samples: dict[str, int] = {}

        def see(product: Product) -> None:
            weight = weights[product.name]
            rows = unfolded(product, tuple(weight.shape)).double()
            groups = len(weight) if is_stack(product, weight) else len(rows)
            if product.name not in sums:
                width = rows.shape[-1]
                sums[product.name] = [
                    rows.new_zeros(groups, width),
                    rows.new_zeros(groups, width),
                    no_tokens(groups, rows),
                ]
            at = slice(product.index, product.index + 1) if is_stack(product, weight) else slice(None)
            first, squares, tokens = sums[product.name]
            first[at] += rows.sum(1)
            squares[at] += rows.square().sum(1)
            tokens[at] += rows.shape[1]
            samples[product.name] = samples.get(product.name, 0) + (len(product.x) if product.x.ndim > 1 else 1)

        watch(ctx, self.batches, see)
        refuse_unseen(ctx, set(sums))
        for name in sorted(sums):
            number = torch.tensor(samples[name])
            summed((*sums[name], number))
            samples[name] = int(number)
        return {name: Moments(s[0], s[1], s[2], samples[name]) for name, s in sums.items()}


def is_stack(product: Product, weight: Tensor) -> bool:
    """Whether the weight is a stack of experts."""
    return weight.ndim == 3 and product.conv is None


def no_tokens(groups: int, like: Tensor) -> Tensor:
    """``[groups]`` zeros to count in."""
    return torch.zeros(groups, dtype=torch.int64, device=like.device)
