"""Between two choices of units: take from the larger one until a budget is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from openwork.core.now import Update
from openwork.core.partition import Partition
from openwork.core.select import keep_top

Choice = tuple[float, Update]
Units = dict[str, Tensor]
REACH = 64
"""Blocks up and down that a last attempt tries, shared among the partitions."""


def filled(
    under: Choice,
    over: Choice,
    parts: Mapping[str, Partition],
    cost: Callable[[Mapping[str, Tensor]], float],
    wanted: float,
) -> Choice:
    """The choice nearest to a cost among ``under`` and what units of ``over`` can be added to it.

    Units come in the order of the rule's scores (relative to the largest of their group), else of their numbers, in
    blocks of the partition's ``multiple``; partitions take turns. First as many as fit, then single blocks that still
    fit, so that the rest is smaller than the cheapest block.
    """
    blocks = _blocks(under[1], over[1], parts)
    low, high = 0, len(blocks)
    while low < high:  # the longest run of blocks that does not go over
        middle = (low + high + 1) // 2
        if cost(_with(under[1].units, blocks[:middle])) <= wanted:
            low = middle
        else:
            high = middle - 1
    units = _with(under[1].units, blocks[:low])
    for block in blocks[low : low + 64]:
        tried = _with(units, [block])
        if cost(tried) <= wanted:
            units = tried
    return cost(units), replace(under[1], units=units)


def exchanged(
    choice: Choice,
    parts: Mapping[str, Partition],
    cost: Callable[[Mapping[str, Tensor]], float],
    wanted: float,
    close: float,
) -> Choice:
    """The choice, with one or two blocks of a partition exchanged for some of another, if that is nearer.

    For models so small that single units are coarser than the tolerance: units of different cost combine. Groups of the
    same cost need not be told apart, so at most sixteen partitions are tried. Where there are few of them and that is
    not ``close`` to the cost yet, more blocks change places.
    """
    found = _exchanged(choice, parts, cost, wanted, 2)
    few = len(parts) <= 8 and abs(found[0] - wanted) > close
    return _exchanged(choice, parts, cost, wanted, REACH // len(parts)) if few else found


def _exchanged(
    choice: Choice,
    parts: Mapping[str, Partition],
    cost: Callable[[Mapping[str, Tensor]], float],
    wanted: float,
    reach: int,
) -> Choice:
    """The nearest choice that differs by up to ``reach`` blocks in one or two partitions."""
    best = choice
    moves = [(name, step) for name in list(parts)[:16] for step in range(-reach, reach + 1) if step]
    for first in moves:
        for second in [None, *(m for m in moves if m[0] > first[0])]:
            units = dict(choice[1].units)
            for name, step in (m for m in (first, second) if m is not None):
                units[name] = _moved(units[name], choice[1].scores.get(name), parts[name], step)
            found = cost(units)
            if abs(found - wanted) < abs(best[0] - wanted):
                best = found, replace(choice[1], units=units)
    return best


def _moved(units: Tensor, scores: Tensor | None, part: Partition, step: int) -> Tensor:
    """So many blocks more (the best that are out) or fewer (the worst that are in), inside the bounds."""
    size = getattr(part, "multiple", 1)
    order = torch.arange(len(units), 0, -1, device=units.device) if scores is None else scores
    count = int(units.sum()) + step * size
    if not max(1, getattr(part, "at_least", 1)) <= count <= len(units):
        return units
    low = order.double().min() - 1
    if step > 0:
        rank = order.double().masked_fill(units, float("inf"))
    else:
        rank = order.double().masked_fill(~units, float(low))
    return keep_top(rank, count)


def _blocks(under: Update, over: Update, parts: Mapping[str, Partition]) -> list[tuple[str, Tensor]]:
    """Units of ``over`` that ``under`` has not, a few of one partition at a time, the best of every partition first."""
    turns: list[tuple[float, str, Tensor]] = []
    for name, part in parts.items():
        new = (over.units[name] & ~under.units[name]).nonzero().flatten()
        scores = over.scores.get(name)
        if scores is not None and len(new):
            new = new[torch.argsort(scores[new], descending=True, stable=True)]
        size = getattr(part, "multiple", 1)
        pieces = [p for p in new.split(size) if len(p) == size] if len(new) else []
        turns += [((i + 1) / len(pieces), name, piece) for i, piece in enumerate(pieces)]
    return [(name, piece) for _, name, piece in sorted(turns, key=lambda t: t[0])]


def _with(units: Mapping[str, Tensor], blocks: list[tuple[str, Tensor]]) -> Units:
    made = {n: u.clone() for n, u in units.items()}
    for name, piece in blocks:
        made[name][piece] = True
    return made
