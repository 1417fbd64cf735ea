"""DSnoT: exchange pruned and kept weights of a row until the expected output of the sparse row is the dense one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from openwork.core.now import Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Rule
from openwork.core.shards import summed_over
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.stats import InputMoments
from openwork.stats.inputs import Moments
from openwork.structure.pieces import Piece
from openwork.structure.tiles import Tiles

FLOOR = 1e-8
"""Variances below this share of the largest one are raised to it: a dead input must not be divided by zero."""
FINE = 2**20
"""Row errors are added up in steps of 1 / FINE, so that the sum does not depend on who adds them."""


@dataclass(frozen=True)
class MeanSwap(Rule):
    """Let ``host`` choose, then swap: the row error is ``e_r = sum over pruned j of w_rj mu_j``.

    Up to ``cycles`` times every row with ``|e_r| > threshold`` grows the pruned weight whose ``c_rj = w_rj mu_j`` over
    ``var_j^power`` is the largest on the side of ``e_r``, and drops the kept one of the lowest ``|w| ||x||`` whose
    contribution moves ``e_r`` towards zero (N:M: the lowest of the same run). No index is used twice. With
    ``same_sign`` a swap that would turn the sign of ``e_r`` is not made and the row is finished. ``unit="sequence"``
    takes mu per sequence (the mean over tokens times the tokens of a sequence), as the published code does, ``"token"``
    per token. Weights keep their values.
    """

    host: Rule
    moments: InputMoments = field(default_factory=InputMoments)
    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0
    same_sign: bool = True
    unit: Literal["sequence", "token"] = "sequence"

    def __post_init__(self) -> None:
        if self.cycles < 0 or self.threshold < 0:
            raise RecipeError(
                f"MeanSwap: cycles and threshold must not be negative, got {self.cycles} and {self.threshold}"
            )
        if self.unit not in ("sequence", "token"):
            raise RecipeError(f"MeanSwap: unit must be 'sequence' or 'token', got {self.unit!r}")

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return self.host.sharded

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return self.host.needs | {self.moments}

    def init(self, now: Now) -> Any:
        for name, part in now.parts.items():
            tiles = _tiles(part)
            if tiles is None or tiles.block != (1, 1) or tiles.flipped:
                raise RecipeError(f"{name}: MeanSwap exchanges single weights; use Element or N:M along the inputs")
        return self.host.init(now)

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        start = self.host.update(now, phase, state)
        units: dict[str, Tensor] = {}
        swaps: dict[str, int] = {}
        rows: dict[str, int] = {}
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for name, whole in now.parts.items():
            part = _tiles(whole)
            assert part is not None
            moments: Moments = now[self.moments][name]
            weight = part.view.open(now.weights[name])
            shape, groups = weight.shape, len(moments.tokens)
            if part is not whole and groups > 1:
                raise RecipeError(
                    f"{name}: MeanSwap cannot tell which of its {groups} groups lie on this rank; prune before "
                    f"fully_shard, or leave it out with Select(exclude=({name!r},))"
                )
            weight = weight.reshape(groups, -1, shape[-1]).float()
            kept = part.view.open(part.spread(start.units[name])[name]).reshape(weight.shape)
            new = torch.empty_like(kept)
            run = part.quota[1] if part.quota is not None else None
            per = float(moments.tokens.sum()) / max(1, moments.samples) if self.unit == "sequence" else 1.0
            swaps[name] = before[name] = after[name] = 0
            rows[name] = part.cost.numel() // max(1, part.view.folded[2])
            for g in range(groups):
                mean, variance = moments.mean[g].float() * per, moments.variance[g].float()
                new[g], e0, e1 = self.swapped(
                    weight[g], kept[g], mean, variance, moments.squares[g].float().sqrt(), run
                )
                before[name] += int((e0.abs().double() * FINE).round().sum())
                after[name] += int((e1.abs().double() * FINE).round().sum())
                swaps[name] += int((new[g] & ~kept[g]).sum())
            units[name] = part.pool({name: part.view.close(new.reshape(shape)).to(torch.uint8)}).bool()
        told = [sum(summed_over(now.parts, found).values()) for found in (swaps, rows, before, after)]
        errors = [total / FINE / max(1, told[1]) for total in told[2:]]
        log = {**start.log, "swaps": told[0], "row_error": errors}
        return Update(units, {}, start.state, log=log)

    def swapped(
        self, weight: Tensor, kept: Tensor, mean: Tensor, variance: Tensor, norm: Tensor, run: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One matrix: the new mask, and the row errors before and after.

        Args:
            weight: ``[rows, in]``.
            kept: ``[rows, in]`` bool.
            mean: ``[in]`` expected inputs.
            variance: ``[in]``.
            norm: ``[in]`` ||x_j||.
            run: length of the runs of N:M, or None.
        """
        share = weight * mean
        floor = float(variance.max()) * FLOOR or 1.0
        worth = share / variance.clamp(min=floor).pow(self.power)
        score = weight.abs() * norm
        can_grow, can_drop = ~kept & (share != 0), kept.clone()
        alive, rows = kept.clone(), torch.arange(len(weight), device=weight.device)
        error = (share * ~kept).sum(1)
        first = error.clone()
        active = error.abs() > self.threshold
        inf = float("inf")
        for _ in range(self.cycles):
            if not bool(active.any()):
                break
            sign = torch.where(error > 0, 1.0, -1.0)[:, None]
            gain = (worth * sign).masked_fill(~can_grow | (share * sign <= 0), -inf)
            best, grow = gain.max(1)
            if run is None:
                cost = score.masked_fill(~can_drop | (share * sign >= 0), inf)
            else:
                same = (torch.arange(weight.shape[1], device=weight.device) // run)[None] == (grow // run)[:, None]
                cost = score.masked_fill(~can_drop | ~same, inf)
            least, drop = cost.min(1)
            moved = error + share[rows, drop] - share[rows, grow]
            active &= (best > -inf) & (least < inf)
            if self.same_sign or run is not None:
                active &= (moved * first >= 0) & (moved.abs() < error.abs())
            who = active.nonzero().flatten()
            alive[who, grow[who]], alive[who, drop[who]] = True, False
            can_grow[who, grow[who]], can_drop[who, drop[who]] = False, False
            error = torch.where(active, moved, error)
            active &= error.abs() > self.threshold
        return alive, first, error


def _tiles(part: Partition) -> Tiles | None:
    """The tiling of this rank; None for other partitions."""
    tiles = part.tiles if isinstance(part, Piece) else part
    return tiles if isinstance(tiles, Tiles) else None
