"""Multiply-accumulates behind every weight, counted while the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openwork.core.batches import Feed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.stat import Stat
from openwork.errors import MissingStatistic
from openwork.graph.example import Example
from openwork.stats.inputs import watch
from openwork.stats.products import Product


@dataclass(frozen=True)
class LayerMacs(Stat):
    """Parameter name -> multiply-accumulates of a forward pass on ``example``, for weights of two or more dimensions.

    A weight that is used several times counts every time; one that never multiplies an input is refused.
    """

    needs_data: ClassVar[bool] = False
    example: Example

    def measure(self, ctx: Measuring) -> dict[str, int]:
        args, named = self.example.tensors(ctx.feed.device)
        weights = weights_of(ctx)
        found: dict[str, int] = {}

        def see(product: Product) -> None:
            weight = weights[product.name]
            if product.conv is None:
                work = (
                    product.x.numel()
                    // product.x.shape[-1]
                    * weight[0].numel()
                    * (len(weight) if weight.ndim == 2 else 1)
                )
            else:
                assert product.call is not None
                out = product.call(product.x.to("meta"), weight.to("meta"), None, **product.conv)
                work = out.numel() * weight[0].numel()
            found[product.name] = found.get(product.name, 0) + work

        feed = Feed([named or args], ctx.feed.device)
        watch(Measuring(ctx.model, ctx.parts, feed, ctx.loss, ctx.seed), 1, see)
        unseen = [n for n, w in weights.items() if w.ndim > 1 and n not in found]
        if unseen:
            raise MissingStatistic(
                f"{unseen[0]}: multiplies no input in the forward pass of the example; leave it out with "
                "Select(exclude=...)"
            )
        return found
