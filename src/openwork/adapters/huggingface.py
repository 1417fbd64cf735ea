"""Sparse training inside ``transformers.Trainer``, with its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openwork.adapters.late import LateRun, unwrapped
from openwork.core.batches import Loss
from openwork.core.recipe import Recipe
from openwork.errors import OpenworkError
from openwork.lab.checkpoint import load_state, save_state

FILE = "openwork-run.safetensors"


class TrainerRun(LateRun):
    """A recipe in a Trainer. Made by ``join_trainer``; ``result`` is there after ``trainer.train()``."""

    def save(self, folder: Path) -> None:
        """Write the run beside a checkpoint, atomically."""
        save_state(folder / FILE, self.run.state_dict())


def join_trainer(
    trainer: Any, recipe: Recipe, *, data: Iterable[Any] | None = None, loss: Loss | None = None, seed: int = 0
) -> TrainerRun:
    """Let a recipe act while ``trainer.train()`` runs; ``resume_from_checkpoint=`` goes on bit for bit.

    The recipe is attached the moment the Trainer has made its optimiser, before the model is wrapped for several
    processes, and finished when the training ends. Its state is written beside every checkpoint. The clock is the
    optimiser's step, so gradient accumulation and skipped steps of a gradient scaler are counted rightly. While a
    soft method (SequentialAttention++) has gates on its weights, checkpoints hold gated weights and
    are for resuming only.

    Args:
        trainer: a ``transformers.Trainer`` that has not trained yet.
        recipe: a recipe for ``ow.attach``; its ``steps`` are optimiser steps of this training.
        data: batches for recipes that measure something.
        loss: likewise.
        seed: for everything random.

    Raises:
        OpenworkError: transformers is missing (extra ``hf``), the Trainer would load other weights at the end
            (``load_best_model_at_end``), its optimiser shards the weights (FSDP, DeepSpeed), or it has no
            checkpoint of this run where it is told to resume.
        RecipeError: the recipe works in rounds or in one shot.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise OpenworkError("join_trainer needs transformers; pip install 'openwork[hf]'") from None
    if trainer.args.load_best_model_at_end:
        raise OpenworkError(
            "join_trainer: load_best_model_at_end puts back weights from before the last masks; turn it off"
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise OpenworkError(
            "join_trainer: works on whole weights, but this Trainer shards them; use DDP or one process"
        )
    ours = TrainerRun("join_trainer", recipe, data, loss, seed)

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ours.add_penalty()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                ours.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ours.end()

    create, load = trainer.create_optimizer, trainer._load_optimizer_and_scheduler
    load_weights = trainer._load_from_checkpoint

    def create_optimizer(model: Any = None) -> Any:
        made = create(model) if model is not None else create()
        ours.begin(trainer.model, unwrapped(trainer.optimizer))
        return made

    def load_after_attaching(checkpoint: str, model: Any = None) -> None:
        """Trainer loads weights before it makes an optimiser; they would be masked, and fit no model without gates."""

    def load_optimizer_and_scheduler(checkpoint: str | None) -> None:
        if checkpoint is None:
            load(checkpoint)
            return
        saved = load_state(Path(checkpoint) / FILE)
        ours.restore(saved)  # refuses a checkpoint of another run before anything else is loaded
        load_weights(checkpoint)
        load(checkpoint)
        ours.restore(saved)  # what a relaxation settles follows from the weights

    trainer._load_from_checkpoint = load_after_attaching
    trainer.create_optimizer = create_optimizer
    trainer._load_optimizer_and_scheduler = load_optimizer_and_scheduler
    trainer.add_callback(Callback())
    return ours
