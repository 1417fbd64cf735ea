"""How much each output of a layer varies over the batch, against its inputs (Beta-Rank)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from openwork.core.distributed import summed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.partition import Partition
from openwork.core.stat import Stat
from openwork.errors import DataError, MissingStatistic, RecipeError
from openwork.stats.inputs import check_batches, refuse_unseen, watch
from openwork.stats.products import Product

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
    """Parameter name -> ``[out]`` float64: the mean over positions of ``sigma_out / sigma_in`` (or its inverse).

    ``sigma_out`` is the standard deviation of one output at one position over the batch, ``sigma_in`` that of the
    inputs under it, over the batch and the entries of the patch; both are population deviations, in eval mode, before
    the norm that follows. Positions whose inputs (for the inverse: outputs) do not vary are left out of the mean. A
    value of ``batches`` above 1 averages over so many batches.

    Raises:
        DataError: a batch of one sample, or a layer none of whose inputs vary.
        MissingStatistic: a weight that is neither a linear layer's nor a convolution's.
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

        def see(product: Product) -> None:
            name = product.name
            found = self._of(product, weights[name])
            total[name] = total[name] + found if name in total else found
            times[name] = times.get(name, found.new_zeros(1)) + 1

        watch(ctx, self.batches, see)
        refuse_unseen(ctx, set(total))
        summed(t for n in sorted(total) for t in (total[n], times[n]))
        return {n: total[n] / times[n] for n in weights}

    def _of(self, product: Product, weight: Tensor) -> Tensor:
        x = product.x.double()
        if len(x) < 2 or x.ndim < 2:
            raise DataError(f"{product.name}: a batch of one sample has no deviation; pass batches of two or more")
        deviations = _of_linear if product.conv is None else _of_convolution
        inputs, outputs = deviations(product, x, weight.double())  # [1 or out, positions], [out, positions]
        if not bool((inputs > 0).any()):
            raise DataError(f"{product.name}: none of its inputs vary over the batch; pass a larger or another batch")
        inputs = inputs.expand_as(outputs)
        above, below = (outputs, inputs) if self.ratio == "out_over_in" else (inputs, outputs)
        varies = below > 0
        ratio = torch.where(varies, above / below.clamp_min(torch.finfo(below.dtype).tiny), 0.0)
        return ratio.sum(1) / varies.sum(1).clamp(min=1)


def _of_linear(product: Product, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if weight.ndim != 2:
        raise MissingStatistic(
            f"{product.name}: deviations are known for linear and convolution layers; leave it out with "
            f"Select(exclude=({product.name!r},))"
        )
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
