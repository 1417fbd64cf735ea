"""SparseGPT as a rule: masks and corrected weights of every layer from the Gram matrix of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openwork.core import views
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.core.select import count_kept, keep_top
from openwork.core.stat import Stat
from openwork.errors import RecipeError
from openwork.rules.columns import Factor, Solved, factorise, solve_columns
from openwork.stats import Grams, InputGram
from openwork.structure.tiles import Tiles


@dataclass(frozen=True)
class LayerSurgeon(Rule):
    """Remove what costs the layer's output least, and let the columns to the right make up for it.

    Every matrix (every expert, every group of a convolution) is treated alone. The score of an entry is
    ``w^2 / U_jj^2``, of a unit the sum over its entries, on weights that are already corrected; scores are compared
    over all rows of ``block`` consecutive columns (inside each row, or run of N:M, where the structure has such
    regions). The number kept in the first k column blocks is the rounded share of their units, so the tensor's count
    is exact. ``keep_masks=True`` takes the units alive now as they are and only corrects the weights.

    A matrix whose inputs were never seen (an expert without tokens) falls back to the largest weights, and the log
    says so.
    """

    gram: InputGram = field(default_factory=InputGram)
    block: int = 128
    damp: float = 0.01
    keep_masks: bool = False

    def __post_init__(self) -> None:
        if self.block < 1:
            raise RecipeError(f"LayerSurgeon: block must be at least 1 column, got {self.block}")
        if not self.damp >= 0:
            raise RecipeError(f"LayerSurgeon: damp must not be negative, got {self.damp}")

    @property
    def needs(self) -> frozenset[Stat]:  # type: ignore[override]
        return frozenset({self.gram})

    def init(self, now: Now) -> Any:
        for name, part in now.parts.items():
            if not isinstance(part, Tiles):
                raise RecipeError(
                    f"{name}: LayerSurgeon works on tiles of one matrix, got {type(part).__name__}; obspa is the same "
                    "for coupled units"
                )

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        grams: dict[str, Grams] = now[self.gram]
        units: dict[str, Tensor] = {}
        edits: dict[str, Tensor] = {}
        layers: dict[str, Any] = {}
        for name, part in now.parts.items():
            assert isinstance(part, Tiles)
            mask, weight, layers[name] = self._tensor(part, now, phase.share, grams[name])
            units[name] = part.pool({name: mask.to(torch.uint8)}, "max").bool()
            edits[name] = weight.to(now.weights[name].dtype)
            del mask, weight  # what is not returned need not be in memory beside the next layer's
        return Update(units, edits, state, log={"layers": layers})

    def _tensor(self, part: Tiles, now: Now, share: float, grams: Grams) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """The mask and the new values of one tensor, shaped like it."""
        name = part.member
        matrices = part.view.open(now.weights[name])
        stack, rows, columns = matrices.shape
        groups = len(grams.matrices)
        if groups > stack and (stack * rows // groups) % part.block[0]:
            raise RecipeError(
                f"{name}: units of {part.block[0]} rows cross the {groups} groups of the convolution; choose a height "
                f"that divides {rows // groups} or leave the layer out with Select(exclude=({name!r},))"
            )
        matrices = matrices.reshape(groups, -1, columns)
        alive = part.view.open(now.masks[name]).reshape(matrices.shape) if self.keep_masks else None
        order = _columns_of(part)
        new, kept = torch.empty_like(matrices, dtype=grams.matrices.dtype), torch.ones_like(matrices, dtype=torch.bool)
        factored: list[tuple[int, Any]] = []
        loss, energy, unseen = 0.0, 0.0, []
        damp = self.damp
        budget = _Budget(part, share)
        for group in range(groups):
            budget.start(None if alive is None else alive[group])
            if int(grams.tokens[group]) == 0:
                unseen.append(group)
                values = matrices[group].to(new.dtype)
                mask = budget.choose(0, columns, values, torch.ones(columns, dtype=new.dtype, device=new.device))
                new[group], kept[group] = values * mask, mask
                continue
            gram = grams.matrices[group]
            gram = gram if order is None else gram[order][:, order]
            factor = factorise(gram, self.damp, name)
            solved = self._solve(matrices[group], factor, budget, part)
            new[group], kept[group] = solved.weight, solved.mask
            damp = max(damp, factor.damp)
            found, whole = _errors(matrices[group].to(new.dtype), solved, factor, gram)
            loss, energy = loss + found, energy + whole
            factored.append((group, int(factor.dead.sum())))
        told: dict[str, Any] = {"error": loss / energy if energy > 0 else 0.0, "damp": damp}
        told |= {"tokens": int(grams.tokens.sum()), "dead_inputs": sum(dead for _, dead in factored)}
        if unseen:
            told["by_magnitude"] = unseen
        shape = (stack, rows, columns)
        return part.view.close(kept.reshape(shape)), part.view.close(new.reshape(shape)), told

    def _solve(self, weight: Tensor, factor: Factor, budget: _Budget, part: Tiles) -> Solved:
        across = part.block[1]
        if part.quota is not None and not part.flipped:
            width, step = -(-self.block // part.quota[1]) * part.quota[1], part.quota[1]
            return solve_columns(weight, factor, budget.choose, width, 0 if self.keep_masks else step)
        return solve_columns(weight, factor, budget.choose, -(-self.block // across) * across)


class _Budget:
    """How many units stay in the next columns of one matrix, and which."""

    def __init__(self, part: Tiles, share: float):
        self.part, self.share = part, share
        self.alive: Tensor | None = None
        self.by_row = part.run is not None and part.quota is None  # Element(per="row"): every row has its own quota
        self.seen = self.kept = 0

    def start(self, alive: Tensor | None) -> None:
        """Begin the next matrix of the tensor; the quota of the tensor runs on, that of its rows begins anew."""
        self.alive = alive
        if self.by_row:
            self.seen = self.kept = 0

    def choose(self, first: int, last: int, weight: Tensor, diagonal: Tensor) -> Tensor:
        """The mask [rows, width] of the columns ``first`` to ``last``."""
        if self.alive is not None:
            return self.alive[:, first:last]
        scores = (weight / diagonal).square()
        if self.part.quota is not None:
            return self._runs(scores)
        tiles = Tiles("w", views.linear_view(tuple(scores.shape)), self.part.block)
        pooled = tiles.pool({"w": scores})
        down, across = tiles.grid[1:]
        self.seen += across if self.by_row else down * across
        total = count_kept(self.share, self.seen)
        keep, self.kept = total - self.kept, total
        return tiles.spread(keep_top(pooled, keep, across if self.by_row else None))["w"]

    def _runs(self, scores: Tensor) -> Tensor:
        assert self.part.quota is not None
        keep, of = self.part.quota
        keep = max(keep, count_kept(self.share, of))
        along = scores.T if self.part.flipped else scores
        alive = keep_top(along.reshape(-1), keep, of).reshape(along.shape)
        return alive.T if self.part.flipped else alive


def _columns_of(part: Tiles) -> Tensor | None:
    """Where the columns of the partition's view lie among those of the default view; None when they are the same."""
    view = part.view
    if len(view.shape) == 2 or view.folded[0] > 1:
        return None
    default = views.conv_view(view.shape)
    numbered = torch.arange(default.folded[2]).expand(default.folded)
    return view.open(default.close(numbered))[0, 0] if view.order != default.order else None


def _errors(weight: Tensor, solved: Solved, factor: Factor, gram: Tensor, width: int = 512) -> tuple[float, float]:
    """Squared change of the layer's output, and its squared size, on the calibration inputs.

    The change is what the columns' errors sum to, ``tr(dW (H + added I) dW^T)``, less what the damping added. The size
    ``tr(W H W^T)`` comes from the blocks of H on and above its diagonal.
    """
    moved = energy = 0.0
    for first in range(0, len(gram), width):
        part = slice(first, first + width)
        here, column = weight[:, part], gram[:, part]
        product = (weight[:, :first] @ column[:first]).mul_(2).addmm_(here, column[part])
        energy += float(product.mul_(here).double().sum())
        change = (here - solved.weight[:, part]).masked_fill_(factor.dead[part], 0)
        moved += float(change.double().square().sum())
    return max(0.0, float(solved.loss.double().sum()) - factor.added * moved), energy
