"""A loss for a single block: give what the dense block gave. With it, recipes that need a loss or training work too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed, forward
from openwork.core.partition import Partition
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria.learned import EqualGates
from openwork.engine.attach import attach
from openwork.engine.result import Result
from openwork.errors import DivergedError, RecipeError
from openwork.stats.mask_loss import LossAtMasks, MaskLoss

TARGET = "target"
AWAY = (MaskLoss, LossAtMasks)
"""Statistics that look at the loss of pruned weights. At the dense ones this loss is zero, and so is its slope."""


@dataclass(frozen=True)
class Reconstruction:
    """The relative squared change of a block's output as its loss; ``lr`` is Adam's, for recipes that train.

    The inputs are those that the pruned blocks before it produce, the targets are the dense block's outputs on them.
    Recipes that train (SequentialAttention++, gradual magnitude, ...) train all parameters of the block for as many
    steps as their schedule has, and so recover what they prune; SpODE and ``random_search`` leave the weights alone.
    """

    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise RecipeError(f"Reconstruction: lr must be positive, got {self.lr}")

    @staticmethod
    def refuse(recipe: Recipe) -> None:
        """Say which recipes cannot work on one block.

        Raises:
            RecipeError: rounds of training, or scores from slopes at the dense weights.
        """
        if recipe.drive == "cycle":
            raise RecipeError(f"{recipe.name} works in rounds of training; use ow.cycle on the whole model")
        flat = [s for s in recipe.rule.needs if s.needs_loss and not isinstance(s, AWAY)]
        if flat:
            raise RecipeError(
                f"{recipe.name} asks for {type(flat[0]).__name__}, but a dense block reconstructs itself exactly, so "
                "its loss has no slope there; use ow.prune with the loss of the whole model"
            )

    @staticmethod
    def loss(output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Squared change of the output over the square of what the dense block adds to its input; a scalar."""
        target = batch[TARGET].float()
        added = (target - batch["hidden"].float()).square().sum()
        return (output.float() - target).square().sum() / added.clamp_min(torch.finfo(torch.float32).tiny)

    def train(
        self, block: nn.Module, recipe: Recipe, parts: Mapping[str, Partition], data: Targeted, seed: int
    ) -> tuple[Result, dict[str, Any]]:
        """Run a recipe's whole schedule on one block.

        Raises:
            DivergedError: the loss is not finite.
        """
        device = next(block.parameters()).device
        feed, losses = Feed(data, device), list[float]()
        was = {n: p.requires_grad for n, p in block.named_parameters()}
        optimizer = torch.optim.Adam(block.requires_grad_(True).parameters(), lr=self.lr)
        own = replace(recipe, where=Select(include=tuple(parts)))
        run = attach(block, own, optimizer, seed=seed)
        steps = max(recipe.schedule.last, getattr(recipe.schedule, "steps", 0))  # phases train on behind the last cut
        try:
            while run.step < steps:
                batch = feed.next()
                optimizer.zero_grad()
                loss = run.averaged(lambda batch=batch: self.loss(forward(block, batch), batch))  # type: ignore[misc]
                losses.append(float(loss.detach()))
                if not bool(torch.isfinite(loss)):
                    raise DivergedError(f"Reconstruction: the loss is {losses[-1]} at step {run.step}; lower the rate")
                (loss + run.penalty()).backward()
                with warnings.catch_warnings():  # before its first cut a block is its own target, so gates stay level
                    warnings.simplefilter("ignore", EqualGates)
                    optimizer.step()
            result = run.finish()
        except BaseException:
            run.detach()
            raise
        for name, param in block.named_parameters():
            param.grad = None
            param.requires_grad_(was[name])
        return result, {"reconstruction": {"steps": len(losses), "loss": [losses[0], losses[-1]]} if losses else {}}


class Targeted:
    """Batches of a block with the outputs that are wanted; can be read again and again."""

    def __init__(self, data: Iterable[Mapping[str, Any]], targets: list[Tensor]):
        self.data, self.targets = data, targets

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch, target in zip(self.data, self.targets, strict=True):
            yield {**batch, TARGET: target}
