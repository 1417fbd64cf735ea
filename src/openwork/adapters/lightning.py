"""Sparse training inside Lightning, as a callback that travels in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from openwork.adapters.late import LateRun, unwrapped
from openwork.core.batches import Loss
from openwork.core.recipe import Recipe
from openwork.errors import OpenworkError


def lightning_callback(
    recipe: Recipe, *, data: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0
) -> Any:
    """A Lightning callback that lets a recipe act while a module trains.

    The recipe is attached when the optimiser exists (``on_fit_start``) and finished at ``on_train_end``; then
    ``callback.result`` is there. Its state travels in Lightning's checkpoints, so ``fit(ckpt_path=...)`` goes on bit
    for bit. The clock is the optimiser's step; the module must have one optimiser.

    Args:
        recipe: a recipe for ``ow.attach``; its ``steps`` are optimiser steps of this training.
        data: batches for recipes that measure something.
        loss: likewise.
        seed: for everything random.

    Raises:
        OpenworkError: Lightning is missing (extra ``lightning``); or, when the fit begins, the module has several
            optimisers or a strategy that shards weights.
        RecipeError: the recipe works in rounds or in one shot.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        raise OpenworkError("lightning_callback needs lightning; pip install 'openwork[lightning]'") from None

    class Sparsity(LateRun, Callback):  # type: ignore[misc]
        """The recipe of one fit."""

        _load: Callable[[], None] | None = None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise OpenworkError(
                    f"lightning_callback: works with one optimiser, but the module has {len(trainer.optimizers)}; "
                    "use ow.attach in a manual loop"
                )
            strategy = type(trainer.strategy).__name__.lower()
            if "fsdp" in strategy or "deepspeed" in strategy:
                raise OpenworkError(
                    "lightning_callback: works on whole weights, but this strategy shards them; use ddp or one process"
                )
            if trainer.world_size > 1 and self.recipe.relaxation is not None:
                raise OpenworkError(
                    f"lightning_callback: {self.recipe.name} adds gates after Lightning has wrapped the module, so "
                    "several processes would not share them; use one process, or ow.attach before the wrapping"
                )
            self.begin(pl_module, unwrapped(trainer.optimizers[0]))
            if self._load is not None:
                self._load()
                self._load = None

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.add_penalty()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.interrupted:
                self.end()

        def state_dict(self) -> dict[str, Any]:
            return {} if self._run is None else self._run.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if state_dict:
                self.restore(state_dict)

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            """Weights are loaded after attaching: before, they would be masked, and fit no module without gates."""
            load = trainer.strategy.load_model_state_dict

            def later(checkpoint: Any, *args: Any, **kwargs: Any) -> None:
                self._load = lambda: load(checkpoint, *args, **kwargs)

            if stage == "fit":
                trainer.strategy.load_model_state_dict = later

    return Sparsity("lightning_callback", recipe, data, loss, seed)
