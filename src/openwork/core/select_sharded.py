"""The choice of ``keep_top`` over scores that lie in pieces on several ranks, without gathering them.

The k-th largest score is found by its bits, 11 at a time: every rank counts its scores per digit among those that
share the digits found so far, the counts are summed, and the digit that holds the k-th is the next. A 32-bit score
takes three such sums of about 2,048 numbers, whatever the number of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from openwork.core.across import Traffic as Traffic
from openwork.errors import OpenworkError

DIGIT = 11
CHUNK = 1 << 22  # scores turned into keys at a time, so that memory stays small


def keep_top_sharded(
    pieces: Sequence[Tensor], keep: int, group: Any = None, traffic: Traffic | None = None
) -> list[Tensor]:
    """Keep exactly ``keep`` of all units with the largest scores, the same units as one process would.

    Args:
        pieces: this rank's one-dimensional piece of every tensor, in the same order on all ranks; a tensor is its
            pieces behind one another in the order of the ranks. A piece may be empty. One dtype for all.
        keep: how many of the units of all ranks.
        group: a process group; None is the default one, or a single process without ``torch.distributed``.
        traffic: is added up, when given.

    Returns:
        Bool, one per piece. Among equal scores the earlier tensor, then the lower index is kept.

    Raises:
        OpenworkError: the same on every rank: NaN, another dimension, several dtypes, or a count out of range.
    """
    wires = _Wires(group, traffic)
    dtypes = {p.dtype for p in pieces}
    wrong = len(dtypes) > 1 or any(p.ndim != 1 for p in pieces)
    bad = any(p.is_floating_point() and bool(torch.isnan(p).any()) for p in pieces)
    device = pieces[0].device if pieces else torch.device("cpu")
    facts = torch.tensor([wrong, bad, sum(p.numel() for p in pieces)], dtype=torch.int64, device=device)
    wires.sum(facts)
    any_wrong, any_bad, total = facts.tolist()
    if any_wrong:
        raise OpenworkError("keep_top_sharded: pieces must be one-dimensional and of one dtype on every rank")
    if any_bad:
        raise OpenworkError(f"keep_top_sharded: scores must not be NaN, got some on {any_bad} of {wires.world} ranks")
    if not 0 <= keep <= total:
        raise OpenworkError(f"keep_top_sharded: keep must be between 0 and the {total} units, got {keep}")
    if keep in (0, total):
        return [torch.full((p.numel(),), keep == total, dtype=torch.bool, device=p.device) for p in pieces]
    cut, missing = _kth(pieces, keep, wires, device)
    masks, tied = [], []
    ties = torch.zeros(wires.world, len(pieces), dtype=torch.int64, device=device)
    for i, piece in enumerate(pieces):
        keys = torch.cat(list(_keys(piece)) or [torch.empty(0, dtype=torch.int64, device=device)])
        masks.append(keys > cut)
        tied.append((keys == cut).nonzero().flatten())
        ties[wires.rank, i] = len(tied[i])
    wires.sum(ties)
    before = (ties.T.flatten().cumsum(0) - ties.T.flatten()).reshape(len(pieces), wires.world)[:, wires.rank]
    for i, mask in enumerate(masks):
        mask[tied[i][: max(0, missing - int(before[i]))]] = True
    return masks


class _Wires:
    """Sums over the ranks of a group, counted."""

    def __init__(self, group: Any, traffic: Traffic | None):
        self.on = distributed.is_available() and distributed.is_initialized()
        self.group, self.traffic = group, traffic
        self.world = distributed.get_world_size(group) if self.on else 1
        self.rank = distributed.get_rank(group) if self.on else 0

    def sum(self, tensor: Tensor) -> None:
        if self.traffic is not None:
            self.traffic.bytes += tensor.numel() * tensor.element_size()
            self.traffic.calls += 1
        if self.world > 1:
            distributed.all_reduce(tensor, group=self.group)


def _keys(piece: Tensor) -> Iterator[Tensor]:
    """Int64 keys in chunks, in the order of the scores; equal scores (0 and -0 too) have equal keys."""
    for chunk in piece.detach().split(CHUNK):
        if chunk.dtype in (torch.float16, torch.bfloat16):
            chunk = chunk.float()
        if chunk.dtype == torch.float32:
            bits = (chunk + 0.0).view(torch.int32)
            yield (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
        elif chunk.dtype == torch.float64:
            wide = (chunk + 0.0).view(torch.int64)
            yield wide ^ ((wide >> 63) & 0x7FFFFFFFFFFFFFFF)
        else:
            yield chunk.long()


def _kth(pieces: Sequence[Tensor], keep: int, wires: _Wires, device: torch.device) -> tuple[int, int]:
    """The key of the ``keep``-th largest score, and how many scores equal to it are kept."""
    narrow = bool(pieces) and pieces[0].dtype in (torch.float16, torch.bfloat16, torch.float32)
    low, high = (-(1 << 31), 1 << 31) if narrow else (-(1 << 63), 1 << 63)  # the k-th lies in [low, high)
    left = keep
    while high - low > 1:
        shift = max(0, (high - low).bit_length() - 1 - DIGIT)
        bins = -(-(high - low) >> shift)
        counts = torch.zeros(bins, dtype=torch.int64, device=device)
        for piece in pieces:
            for keys in _keys(piece):
                here = keys[(keys >= low) & (keys <= high - 1)]
                digit = (here >> shift) - (low >> shift) if shift else here - low
                counts += torch.bincount(digit, minlength=bins)
        wires.sum(counts)
        above = counts.flip(0).cumsum(0).flip(0) - counts  # how many lie in higher bins
        at = int(((above < left) & (above + counts >= left)).nonzero()[0])
        left -= int(above[at])
        low, high = low + (at << shift), low + ((at + 1) << shift)
    return low, left
