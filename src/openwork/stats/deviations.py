"""How much each output of a layer varies over the batch, against its inputs (Beta-Rank)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.core.distributed import summed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import DataError, MissingStatistic, RecipeError
from openwork.stats.inputs import check_batches, is_stack, refuse_unseen, watch
from openwork.stats.products import Product
from openwork.structure.coupled import Coupled

Ratio = Literal["out_over_in", "in_over_out"]


def making(parts: Mapping[str, Partition]) -> dict[str, Partition]:
    """The same partitions, of coupled units only the matrices and kernels that make them."""
    found: dict[str, Partition] = {}
    for name, part in parts.items():
        if not hasattr(part, "sites"):
            found[name] = part
            continue
        shapes = dict(part.shapes)  # type: ignore[attr-defined]
        made = part.side(False)  # type: ignore[attr-defined]
        matrices = [m for m in made.members if len(shapes[m]) > 1]
        if not matrices:
            raise MissingStatistic(
                f"{name}: no layer makes these units; leave them out with Select(exclude=({name!r},))"
            )
        found[name] = made.only(matrices)
    return found


@dataclass(frozen=True)
class DeviationRatios(Stat):
    """Parameter name -> float64: the mean over positions of ``sigma_out / sigma_in`` (or its inverse).

    There is one value per output, shaped so that it multiplies the weight: ``[out, 1, ...]``, or ``[1, out]`` of
    weights that are held as ``(in, out)``. Tables that are only looked up are left out where other layers make the same
    units. Of stacked experts ``[E, ...]`` the tokens that meet an expert are its batch; one that meets fewer than two
    has 0. ``sigma_out`` is the standard deviation of one output at one position over the batch, ``sigma_in`` that of
    the inputs under it, over the batch and the entries of the patch; both are population deviations, in eval mode,
    before the norm that follows. Positions whose inputs (for the inverse: outputs) do not vary are left out of the
    mean. A value of ``batches`` above 1 averages over so many batches.

    Raises:
        DataError: a batch of one sample, or a layer none of whose inputs vary.
        MissingStatistic: a weight that is neither a linear layer's nor a convolution's nor a stack of experts.
    """

    batches: int = 1
    ratio: Ratio = "out_over_in"

    def __post_init__(self) -> None:
        check_batches("DeviationRatios", self.batches)
        if self.ratio not in ("out_over_in", "in_over_out"):
            raise RecipeError(f"DeviationRatios: ratio must be 'out_over_in' or 'in_over_out', got {self.ratio!r}")

    def measure(self, ctx: Measuring) -> dict[str, Tensor]:
        ctx = replace(ctx, parts=making(ctx.parts))
        weights = weights_of(ctx)
        total: dict[str, Tensor] = {}
        times: dict[str, Tensor] = {}
        lookups: set[str] = set()

        def see(product: Product) -> None:
            name, weight = product.name, weights[product.name]
            stack = is_stack(product, weight)
            found = self._of(product, weight[product.index] if stack else weight, stack)
            if found is None:
                return
            shape = [1] * (weight.ndim - stack)
            shape[-1 if product.transposed else 0] = -1
            found = found.view(shape)
            if name not in total:
                lead = (len(weight),) if stack else ()
                total[name] = found.new_zeros(*lead, *found.shape)
                times[name] = found.new_zeros(*lead, *(1 for _ in shape))
            at: Any = product.index if stack else ...
            total[name][at] += found
            times[name][at] += 1

        coupled = any(isinstance(p, Coupled) for p in ctx.parts.values())
        watch(ctx, self.batches, see, lookups if coupled else None)
        refuse_unseen(ctx, set(total), lookups)
        summed(t for n in sorted(total) for t in (total[n], times[n]))
        return {n: total[n] / times[n].clamp(min=1) for n in weights if n in total}

    def _of(self, product: Product, weight: Tensor, stack: bool) -> Tensor | None:
        """``[out]``; None for an expert that met too few tokens to say."""
        x = product.x.double()
        if stack and len(x) < 2:
            return None
        if len(x) < 2 or x.ndim < 2:
            raise DataError(f"{product.name}: a batch of one sample has no deviation; pass batches of two or more")
        deviations = _of_linear if product.conv is None else _of_convolution
        inputs, outputs = deviations(product, x, weight.double())  # [1 or out, positions], [out, positions]
        if not bool((inputs > 0).any()):
            if stack:
                return None
            raise DataError(f"{product.name}: none of its inputs vary over the batch; pass a larger or another batch")
        inputs = inputs.expand_as(outputs)
        above, below = (outputs, inputs) if self.ratio == "out_over_in" else (inputs, outputs)
        varies = below > 0
        ratio = torch.where(varies, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)
        return ratio.sum(1) / varies.sum(1).clamp(min=1)


def _of_linear(product: Product, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.reshape(len(x), -1, x.shape[-1])  # [n, positions, in]
    outputs = (x @ (weight if product.transposed else weight.T)).std(0, correction=0).T
    return x.permute(1, 0, 2).flatten(1).std(1, correction=0)[None], outputs


def _of_convolution(product: Product, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Patches need not be unfolded: their sums are a convolution with ones."""
    assert product.conv is not None
    assert product.call is not None
    x = x[None] if x.ndim == weight.ndim - 1 else x
    groups = int(product.conv["groups"])
    outputs = product.call(x, weight, None, **product.conv).std(0, correction=0).flatten(1)
    grouped = x.reshape(len(x), groups, -1, *x.shape[2:])
    ones = torch.ones_like(weight[:groups, :1])
    count = weight[0].numel() * len(x)
    centre = x.mean()  # takes the common offset out before squares are subtracted; padding keeps its zeros
    first = product.call(grouped.sum(2), ones, None, **product.conv).sum(0) / count
    inside = (
        product.call(torch.ones_like(grouped[:, :, 0]) * grouped.shape[2], ones, None, **product.conv).sum(0) / count
    )
    squares = product.call((grouped - centre).square().sum(2), ones, None, **product.conv).sum(0) / count
    # E[(x - c)^2] over the patch, zeros of the padding included, and its mean
    squares = squares + (1 - inside) * centre.square()
    variance = (squares - (first - centre).square()).clamp_min(0.0)
    # what is left of a constant patch is rounding
    variance = torch.where(variance <= squares.clamp_min(0) * 1e-12, 0.0, variance)
    inputs = variance.sqrt().flatten(1)  # [groups, positions]
    return inputs.repeat_interleave(len(weight) // groups, 0), outputs
