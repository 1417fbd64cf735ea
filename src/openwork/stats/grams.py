"""The Gram matrix of every weight's inputs; per expert where experts are fused, shared where inputs are equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.core.distributed import summed
from openwork.core.measuring import Measuring, weights_of
from openwork.core.stat import Stat
from openwork.errors import DivergedError
from openwork.stats.inputs import check_batches, is_stack, no_tokens, refuse_unseen, watch
from openwork.stats.products import Product, unfolded


@dataclass(frozen=True)
class Grams:
    """``matrices`` [groups, in, in] = sum of x x^T over ``tokens`` [groups] rows; weights with equal inputs share.

    Columns are in the order of the weight's default matrix view; convolutions have one group per group of channels,
    fused experts one per expert, everything else one.
    """

    matrices: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class InputGram(Stat):
    """Parameter name -> ``Grams`` of the inputs, in eval mode, over ``batches`` batches or the whole data (None).

    Products are accumulated in float32, with ``double`` in float64, whatever the dtype of the model. Weights that meet
    the very same tensor one after another (query, key and value) share the work and the memory.
    """

    batches: int | None = None
    double: bool = False

    def __post_init__(self) -> None:
        check_batches("InputGram", self.batches)

    def measure(self, ctx: Measuring) -> dict[str, Grams]:
        weights = weights_of(ctx)
        gathering = _Gathering(weights, self.double)
        watch(ctx, self.batches, gathering.see)
        found = gathering.finish()
        refuse_unseen(ctx, set(found))
        for grams in {id(g.matrices): g for _, g in sorted(found.items())}.values():
            summed((grams.matrices, grams.tokens))
        for name, grams in found.items():
            if not bool(torch.isfinite(grams.matrices.diagonal(dim1=1, dim2=2)).all()):
                raise DivergedError(
                    f"{name}: its calibration inputs hold NaN or infinity (or overflow their square); check the "
                    "model's weights and the data"
                )
        return found


class _Gathering:
    """Adds up the Gram matrices. The last input stays open, so that the next weight that meets it shares its product.

    The product is taken at once, before the model can overwrite the input in place.
    """

    def __init__(self, weights: dict[str, Tensor], double: bool):
        self.weights, self.double = weights, double
        self.open: tuple[Product, int] | None = None
        self.pending: tuple[Tensor, int] | None = None
        self.users: list[tuple[str, int]] = []
        self.sums: dict[tuple[tuple[str, int], ...], tuple[Tensor, Tensor]] = {}

    def see(self, product: Product) -> None:
        weight = self.weights[product.name]
        user = (product.name, product.index if is_stack(product, weight) else -1)
        if user in self.users or not self._is_open(product):
            self.close()
            rows = unfolded(product, tuple(weight.shape))
            wide = torch.float64 if self.double else torch.promote_types(rows.dtype, torch.float32)
            rows = rows.to(wide)
            self.pending = torch.bmm(rows.transpose(1, 2), rows), rows.shape[1]
            self.open = product, _version(product.x)
        self.users.append(user)

    def _is_open(self, product: Product) -> bool:
        """Whether this is the open input again: the same memory (both are alive), and not written to since."""
        if self.open is None or product.conv is not None or self.open[0].conv is not None:
            return False
        a, b = self.open[0].x, product.x
        same = a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.numel() > 0
        return same and self.open[1] == _version(b) >= 0

    def close(self) -> None:
        if self.pending is not None:
            matrix, count = self.pending
            key = tuple(self.users)
            if key not in self.sums:
                self.sums[key] = torch.zeros_like(matrix), no_tokens(len(matrix), matrix)
            total, tokens = self.sums[key]
            total += matrix
            tokens += count
        self.open, self.pending, self.users = None, None, []

    def finish(self) -> dict[str, Grams]:
        self.close()
        found: dict[str, Grams] = {}
        for name, weight in self.weights.items():
            mine = [(user[1], sums) for key, sums in self.sums.items() for user in key if user[0] == name]
            if len(mine) == 1 and mine[0][0] < 0:  # shared with the other users of the same input
                found[name] = Grams(*mine[0][1])
            elif mine:
                found[name] = _added(mine, len(weight) if mine[0][0] >= 0 else len(mine[0][1][0]))
        return found


def _added(mine: list[tuple[int, tuple[Tensor, Tensor]]], groups: int) -> Grams:
    """Sums of several inputs: of all groups (index -1), or of one expert each."""
    like = mine[0][1][0]
    matrices, tokens = like.new_zeros(groups, *like.shape[1:]), no_tokens(groups, like)
    for index, (matrix, count) in mine:
        at = slice(index, index + 1) if index >= 0 else slice(None)
        matrices[at] += matrix
        tokens[at] += count
    return Grams(matrices, tokens)


def _version(x: Tensor) -> int:
    """How often a tensor was written to; -1 where torch does not count (inference mode)."""
    return -1 if x.is_inference() else x._version
