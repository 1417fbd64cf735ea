"""Which rows share a group, so that the columns that a group keeps hold most of its weight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

PATIENCE = 12
SMALL = 64


def kept_of(rows: Tensor, order: Tensor, size: int, keep: int) -> Tensor:
    """``[groups]``: the sum of the ``keep`` largest columns of every group of ``size`` consecutive rows in an order."""
    return _top(_sums(rows, order, size), keep)


def align(layers: Sequence[Tensor], size: int, keep: Sequence[int], seed: int = 0, tries: int = 64) -> Tensor:
    """An order of the rows that all layers share, found by swaps from the given order and from one by likeness.

    Up to 64 rows, orders at random are climbed from as well. A climb ends when no swap of two rows among ``tries``
    at random, ``PATIENCE`` times over, keeps more; where there are fewer pairs than tries, when none at all does.

    Args:
        layers: ``[rows, columns]`` each, scores of zero or more that add up inside a group.
        size: rows of a group; the last group may be smaller.
        keep: columns that a group keeps, of every layer.
        seed: of the swaps that are tried.
        tries: swaps that are looked at together.

    Returns:
        int64 ``[rows]``: the old row at every new place. Never worse than the given order.
    """
    n = len(layers[0])
    rng = torch.Generator().manual_seed(seed)
    layers = [r / r.sum().clamp_min(torch.finfo(r.dtype).tiny) for r in layers]  # every layer weighs the same
    starts = [torch.arange(n), _by_likeness(layers, size)]
    starts += [torch.randperm(n, generator=rng) for _ in range(4 if n <= SMALL else 0)]
    found = [_climb(layers, size, keep, start, tries, rng) for start in starts]
    values = [sum(float(kept_of(r, o, size, k).sum()) for r, k in zip(layers, keep, strict=True)) for o in found]
    return found[max(range(len(found)), key=values.__getitem__)]


def _top(sums: Tensor, keep: int) -> Tensor:
    return sums.topk(min(keep, sums.shape[-1]), dim=-1, sorted=False).values.sum(-1)


def _sums(rows: Tensor, order: Tensor, size: int) -> Tensor:
    place = torch.arange(len(order)) // size
    return rows.new_zeros(int(place[-1]) + 1, rows.shape[1]).index_add_(0, place, rows[order])


def _by_likeness(layers: Sequence[Tensor], size: int) -> Tensor:
    """The heaviest row that is left, and the rows most like what its group has so far."""
    rows = torch.cat([r / r.norm().clamp_min(torch.finfo(r.dtype).tiny) for r in layers], 1)
    lengths = rows.norm(dim=1)
    unit = rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    left, order = torch.ones(len(rows), dtype=torch.bool), list[int]()
    while len(order) < len(rows):
        if len(order) % size == 0:
            first = int(lengths.masked_fill(~left, -1).argmax())
            group = rows[first].clone()
        else:
            first = int((unit @ group).masked_fill(~left, -1).argmax())
            group += rows[first]
        left[first] = False
        order.append(first)
    return torch.tensor(order)


def _climb(
    layers: Sequence[Tensor], size: int, keep: Sequence[int], order: Tensor, tries: int, rng: torch.Generator
) -> Tensor:
    order, n = order.clone(), len(order)
    sums = [_sums(r, order, size) for r in layers]
    values = [_top(s, k) for s, k in zip(sums, keep, strict=True)]
    every = torch.tensor(list(combinations(range(n), 2))) if n * (n - 1) // 2 <= max(tries, 256) else None
    misses = 0
    while misses < (1 if every is not None else PATIENCE):
        pairs = every if every is not None else torch.randint(n, (tries, 2), generator=rng)
        pairs = pairs[pairs[:, 0] // size != pairs[:, 1] // size]
        if not len(pairs):
            misses += 1
            continue
        groups, old = pairs // size, order[pairs]
        gain = torch.zeros(len(pairs), dtype=layers[0].dtype)
        for rows, s, v, k in zip(layers, sums, values, keep, strict=True):
            change = rows[old[:, 1]] - rows[old[:, 0]]
            gain += _top(s[groups[:, 0]] + change, k) + _top(s[groups[:, 1]] - change, k) - v[groups].sum(1)
        touched: set[int] = set()
        for at in gain.argsort(descending=True).tolist():
            pair = groups[at].tolist()
            if gain[at] <= 1e-7:
                break
            if touched.isdisjoint(pair):  # swaps between other groups stay what they were found to be
                touched.update(pair)
                order[pairs[at]] = order[pairs[at].flip(0)]
        misses = 0 if touched else misses + 1
        if touched:
            sums = [_sums(r, order, size) for r in layers]
            values = [_top(s, k) for s, k in zip(sums, keep, strict=True)]
    return order
