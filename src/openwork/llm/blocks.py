"""One block: measured, decided and written as a small model of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed, to_device
from openwork.core.masks import masks_of
from openwork.core.measured import measure
from openwork.core.measuring import Measuring
from openwork.core.now import Now
from openwork.core.partition import Partition
from openwork.core.recipe import Recipe
from openwork.engine.result import check_promise
from openwork.engine.session import refuse_bad_weights
from openwork.engine.write import write_edits, write_masks
from openwork.errors import DivergedError, OpenworkError
from openwork.llm.first_inputs import call_block
from openwork.llm.reconstruction import Reconstruction, Targeted

Batches = Iterable[Mapping[str, Any]]


class Rooted(nn.Module):
    """A block under the name it has in its model, so that parameter names are those of the whole model."""

    def __init__(self, name: str, block: nn.Module):
        super().__init__()
        at: nn.Module = self
        *parents, leaf = name.split(".")
        for parent in parents:
            child = nn.Module()
            at.add_module(parent, child)
            at = child
        at.add_module(leaf, block)
        self._inner = [block]  # in a list: registered once

    def forward(
        self, hidden: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Tensor | None = None
    ) -> Tensor:
        """The hidden states behind the block; ``target`` only travels with the batch, for a loss."""
        return call_block(self._inner[0], hidden, args, kwargs)

    def train(self, mode: bool = True) -> Rooted:
        """A block is pruned as it will be used: without dropout, whatever a statistic asks for."""
        return super().train(False)


class Recovery(Protocol):
    """Repairs a pruned block in place, zeros kept; returns plain numbers for the report."""

    def __call__(
        self, block: Rooted, masks: Mapping[str, Tensor], data: Batches, targets: list[Tensor]
    ) -> dict[str, Any]: ...


class BlockPruner:
    """A recipe applied to one block after the other; tensors of equal share are decided together."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Mapping[str, Partition],
        shares: Mapping[str, float],
        recovery: Recovery | None,
        seed: int,
        reconstruction: Reconstruction | None = None,
    ):
        self.recipe, self.parts, self.shares, self.recovery, self.seed = recipe, parts, dict(shares), recovery, seed
        self.reconstruction = reconstruction

    def prune(
        self, name: str, block: Rooted, data: Batches | None, device: torch.device
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """The row of the report, the masks and the units of one block; its weights are then pruned.

        Raises:
            OpenworkError: whatever a rule or statistic raises, with the name of the block in front.
        """
        began = time.perf_counter()
        parts = {n: p for n, p in self.parts.items() if n.startswith(f"{name}.")}
        named = dict(block.named_parameters())
        params = {n: named[n] for n in parts}
        try:
            refuse_bad_weights(params, parts)
            dense = self._outputs(block, data, device)
            units, told = self._decide(block, parts, params, data, dense, device)
            masks = masks_of(parts, units)
            repaired = {}
            if self.recovery is not None and data is not None:
                repaired = self.recovery(block, masks, data, dense)
            self._check(params, masks)
            error = self._error(block, data, dense, device)
        except OpenworkError as problem:
            raise type(problem)(f"{name}: {problem}" if not str(problem).startswith(name) else str(problem)) from None
        kept = {n: int(m.sum()) for n, m in masks.items()}
        total = sum(m.numel() for m in masks.values())
        row = {
            "name": name,
            "density": sum(kept.values()) / total if total else 1.0,
            "error": error,
            "kept": kept,
            "units": {n: int(u.sum()) for n, u in units.items()},
            "tensors": told.pop("layers", {}),
            "log": {**told, **repaired},
            "seconds": time.perf_counter() - began,
        }
        return row, {n: m.cpu() for n, m in masks.items()}, {n: u.cpu() for n, u in units.items()}

    def _decide(
        self,
        block: Rooted,
        parts: Mapping[str, Partition],
        params: Mapping[str, nn.Parameter],
        data: Batches | None,
        dense: list[Tensor],
        device: torch.device,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        loss = None
        if self.reconstruction is not None and data is not None:
            data, loss = Targeted(data, dense), self.reconstruction.loss
            if self.recipe.drive == "attach":
                with torch.enable_grad():
                    result, log = self.reconstruction.train(block, self.recipe, parts, data, self.seed)
                return result.units, log
        units: dict[str, Tensor] = {n: torch.ones(p.n_units, dtype=torch.bool, device=device) for n, p in parts.items()}
        told: dict[str, Any] = {}
        groups: dict[float, list[str]] = {}
        for n in parts:
            groups.setdefault(self.shares[n], []).append(n)
        stats: dict[Any, Any] = {}
        if any(share < 1 for share in groups):
            stats = measure(self.recipe.rule, Measuring(block, parts, Feed(data, device), loss, self.seed))
        rng = torch.Generator().manual_seed(self.seed)
        for share, names in groups.items():
            if share >= 1:
                continue
            recipe = replace(self.recipe, schedule=replace(self.recipe.schedule, density=share))  # type: ignore[type-var]
            mine = {n: parts[n] for n in names}
            weights = {n: params[n].detach() for n in names}
            now = Now(mine, {n: units[n] for n in names}, weights, stats, rng=rng)
            state = recipe.rule.init(now)
            with torch.set_grad_enabled(loss is not None):
                update = recipe.rule.update(now, recipe.schedule(0), state)
            check_promise(recipe, mine, update.units)
            write_edits(params, update.edits)
            write_masks(params, masks_of(mine, update.units))
            units |= {n: update.units[n] for n in names}
            for key, value in update.log.items():
                told[key] = {**told.get(key, {}), **value} if isinstance(value, Mapping) else value
        return units, told

    def _outputs(self, block: Rooted, data: Batches | None, device: torch.device) -> list[Tensor]:
        """Outputs of the dense block: of the first batch, for the report, or of all when they are to be recovered."""
        found: list[Tensor] = []
        for batch in data or ():
            found.append(block(**to_device(batch, device)).detach())
            if not bool(torch.isfinite(found[-1]).all()):
                raise DivergedError("the calibration activations behind this block hold NaN or infinity")
            if self.recovery is None and self.reconstruction is None:
                break
        return found

    @staticmethod
    def _error(block: Rooted, data: Batches | None, dense: list[Tensor], device: torch.device) -> float | None:
        """Squared change of the block's output on the first batch, relative to what the block adds to its input."""
        for batch in data or ():
            moved = to_device(batch, device)
            change = (block(**moved) - dense[0]).double().square().sum()
            added = (dense[0] - moved["hidden"]).double().square().sum()
            return float(change / added) if float(added) > 0 else 0.0
        return None

    @staticmethod
    def _check(params: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            alive = int((params[name].detach()[~mask] != 0).sum())
            if alive:
                raise OpenworkError(f"{name}: {alive} pruned entries are not zero after the block was written")
            if not bool(torch.isfinite(params[name]).all()):
                raise DivergedError(f"{name}: the pruned weights hold NaN or infinity")
