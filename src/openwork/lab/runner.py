"""Run a job in stages, saving its whole state as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.distributed import rank, world
from openwork.core.masks import Masks
from openwork.core.measuring import seeded
from openwork.data import Batches, DataSet, load_data
from openwork.engine import Cycle, attach, hold, prune, recalibrate
from openwork.engine.attach import Attached
from openwork.engine.result import Result
from openwork.errors import DivergedError, FileError, RecipeError
from openwork.graph.example import Example, Tensorlike
from openwork.lab.accumulation import add_gradients, micro_size, refuse_single_samples
from openwork.lab.checkpoint import load_dense, load_state, save_state
from openwork.lab.cost import connected
from openwork.lab.evaluate import cross_entropy, evaluate_source
from openwork.lab.job import Job
from openwork.lab.meter import Meter
from openwork.lab.precision import computing_in
from openwork.lab.ranks import device_of_rank, share_buffers, speaks, together, wait
from openwork.lab.shrinking import recut, shrunk
from openwork.lab.state import result_from_state, result_to_state
from openwork.structure import partition
from openwork.zoo import build_model
from openwork.zoo.registry import table_options

Watch = Callable[[str, int, int, float], None]
"""Called as (stage, step, steps, loss)."""


@dataclass
class _State:
    """Where a job stands; everything in it goes to the checkpoint."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    result: Result | None = None
    shrunk: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=lambda: {"training": 0, "scoring": 0})


class Runner:
    """Runs one job; with a ``work`` folder it can be killed at any moment and resumed.

    Args:
        job: what to do.
        work: folder for the checkpoint; None keeps nothing.
        data: the loaded data set, when the caller has it already.
        watch: called after every training step.
        save_every: seconds between checkpoints.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``. Inside ``ranks`` every process trains on its share of each
            batch, rank 0 keeps the checkpoint, and all end with the same masks.

    Raises:
        OpenworkError: from ``run``, anything that the job cannot do as asked.
    """

    def __init__(
        self,
        job: Job,
        work: Path | None = None,
        data: DataSet | None = None,
        watch: Watch | None = None,
        save_every: float = 20.0,
        device: str = "cpu",
    ):
        self.job, self.work, self.watch, self.save_every = job, work, watch, save_every
        self.data = data or load_data(job.data, root=job.root, **job.data_options)
        options = {**table_options(job.model, self.data.sizes), **job.model_options}
        with seeded(job.seed):
            self.model = build_model(job.model, self.data.input_shape, self.data.classes, **options)
        self.device = device_of_rank(device)
        self.model.to(self.device)
        refuse_single_samples(self.model, job.budget.batch_size, job.budget.accumulate)
        budget, left = job.budget, len(self.data.train) % job.budget.batch_size
        self.batches = Batches.over(
            self.data.train, budget.batch_size, job.seed, drop_last=0 < left < world(), part=(rank(), world())
        )
        per_epoch = self.batches.steps_per_epoch
        self.dense_steps = max(1, round(budget.epochs * per_epoch))
        self.finetune_steps = round(budget.finetune_epochs * per_epoch)
        example = Example((Tensorlike((1, *self.data.input_shape)),))
        self.recipe = job.build_recipe(self.dense_steps + self.finetune_steps, example)
        partition(self.model, self.recipe.structure, self.recipe.where)  # refuses now what it would after the training
        self._stages()  # so do these
        self._state = _State()
        self._cycle: Cycle | None = None
        self._saved_at = self._started = time.monotonic()
        if job.checkpoint is not None:
            load_dense(self.model, Path(job.checkpoint))
        self._meter = Meter(self.model, self.data.input_shape, self._state.spent)

    # the stages --------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> tuple[nn.Module, Result]:
        """Run to the end; returns the pruned model and the result with its metrics, curve and manifest."""
        saved = self._restore() if resume else None
        wait()  # rank 0 must not write the next checkpoint before all have read this one
        stages = self._stages()
        for index, (name, stage) in enumerate(stages):
            if index < self._state.stage:
                continue
            stage(name, saved if saved and saved["stage"] == index else None)
            self._state.stage, self._state.step = index + 1, 0
            saved = None
            if index + 1 < len(stages):
                self._save({})
        return self.model, self._concluded()

    def _stages(self) -> list[tuple[str, Callable[[str, Any], None]]]:
        drive = self.recipe.drive
        cut = [("compact", self._compact)] if self.job.compact and hasattr(self.recipe.structure, "cost") else []
        if drive == "attach":
            return [("train", self._train_sparse), *cut]
        if drive == "cycle":
            rounds = self.job.budget.rounds(self.finetune_steps, self.recipe.schedule.rounds)  # type: ignore[attr-defined]
            return [("dense", self._train_dense), *((f"round {i + 1}", self._round) for i in range(len(rounds))), *cut]
        if self.job.at == "init":
            return [("prune", self._prune), *cut, ("train", self._train_masked)]
        return [("dense", self._train_dense), ("prune", self._prune), *cut, ("finetune", self._finetune)]

    def _compact(self, name: str, saved: Any) -> None:
        batch = self._score_batches().batch(0)[0][:64]
        self.model, self._state.shrunk = shrunk(self.model, self._result, batch)
        if self._state.shrunk:
            self._meter.begin(self.model)
            self._measure("compacted")

    def _held(self) -> AbstractContextManager[None]:
        """Masks in force; a compacted model has nothing left to mask."""
        if self._state.shrunk:
            return nullcontext()
        self._meter.under(self._result.masks)
        return hold(self.model, self._result.masks)

    def _train_dense(self, name: str, saved: Any) -> None:
        if self.job.checkpoint is None:
            peak = self.job.budget.lr
            self._train(name, self.dense_steps, 0, lambda s: self.job.budget.rate(s, self.dense_steps, peak), saved)
        elif self.recipe.drive == "cycle" and self._rewinds():
            raise RecipeError(f"{self.recipe.name}: rewinding needs its own dense training; leave the checkpoint out")
        self._measure("dense")

    def _prune(self, name: str, saved: Any) -> None:
        score = self._score_batches()
        target = self.job.target
        with self._meter.scoring(self.model):
            self._state.result = prune(self.model, self.recipe, score, cross_entropy, seed=self.job.seed, target=target)
        self._measure("pruned")
        if self.job.at == "pretrained" and recalibrate(self.model, score):
            self._measure("recalibrated")

    def _finetune(self, name: str, saved: Any) -> None:
        peak, steps = self.job.budget.finetune_lr, self.finetune_steps
        with self._held():
            self._train(name, steps, self.dense_steps, lambda s: self.job.budget.rate(s, steps, peak), saved)
        self._measure("finetuned")

    def _train_masked(self, name: str, saved: Any) -> None:
        peak, steps = self.job.budget.lr, self.dense_steps + self.finetune_steps
        with self._held():
            self._train(name, steps, 0, lambda s: self.job.budget.rate(s, steps, peak), saved)
        self._measure("finetuned")

    def _train_sparse(self, name: str, saved: Any) -> None:
        steps, budget = self.dense_steps + self.finetune_steps, self.job.budget
        optimizer = self._optimizer()
        score = self._score_batches()
        needs = {"data": score, "loss": cross_entropy} if self.recipe.rule.needs else {}
        run = attach(self.model, self.recipe, optimizer, seed=self.job.seed, target=self.job.target, **needs)  # type: ignore[arg-type]
        self._train(name, steps, 0, lambda s: budget.rate(s, steps, budget.lr), saved, optimizer, run)
        self._state.result = run.finish()
        self._measure("finetuned")

    def _round(self, name: str, saved: Any) -> None:
        budget, cycle = self.job.budget, self._rounds()
        if saved is not None:
            cycle.load_state_dict(saved["cycle"])
        else:
            with self._meter.scoring(self.model):
                cycle.prune_round()
        self._meter.under(cycle.masks)
        begin = round(budget.rewind * self.dense_steps) if self._rewinds() else 0
        rounds = budget.rounds(self.finetune_steps, cycle.schedule.rounds)
        last = cycle.done == len(rounds)
        steps, peak = rounds[cycle.done - 1]
        steps = self.dense_steps - begin if self._rewinds() else steps
        if saved is None:
            self._measure("pruned" if last else f"round {cycle.done} pruned")

        def rate(step: int) -> float:
            if self._rewinds():
                return budget.rate(begin + step, self.dense_steps, budget.lr)
            return budget.rate(step, steps, peak)

        offset = begin if self._rewinds() else self.dense_steps + sum(n for n, _ in rounds[: cycle.done - 1])
        with hold(self.model, cycle.masks):
            self._train(name, steps, offset, rate, saved)
        if last:
            self._state.result = cycle.finish()
        self._measure("finetuned" if last else f"round {cycle.done}")

    # training ----------------------------------------------------------------------------------------

    def _train(
        self,
        name: str,
        steps: int,
        offset: int,
        rate: Callable[[int], float],
        saved: Any,
        optimizer: torch.optim.Optimizer | None = None,
        run: Attached | None = None,
    ) -> None:
        """``steps`` optimiser steps on the batches from ``offset`` on; continues from ``saved`` when it is given."""
        optimizer = optimizer or self._optimizer()
        budget, trained = self.job.budget, together(self.model, gates=run is not None)
        forward, size = computing_in(budget.precision, trained), micro_size(budget.batch_size, budget.accumulate)
        keep_rewind = name == "dense" and self.recipe.drive == "cycle" and self._rewinds()
        start, averaged = 0, run.averaged if run is not None else (lambda loss: loss())
        shares = [group["lr"] / budget.lr for group in optimizer.param_groups]  # gates may have a rate of their own
        if saved is not None and saved["step"] > 0:
            start = saved["step"]
            self.model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["torch_rng"])
            if self.device.type == "cuda" and saved.get("cuda_rng") is not None:
                torch.cuda.set_rng_state(saved["cuda_rng"], self.device)
            if run is not None:
                run.load_state_dict(saved["run"])
        else:
            torch.manual_seed(self.job.seed + 1000 * (self._state.stage + 1))
        penalty = run.penalty if run is not None else (lambda: 0.0)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return averaged(lambda: cross_entropy(forward(x), y))

        self.model.train()
        for step in range(start, steps):
            if keep_rewind and step == round(self.job.budget.rewind * self.dense_steps):
                self._keep_rewind()
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = share * rate(step)
            optimizer.zero_grad()
            batch, whole = self.batches.batch(offset + step), self.batches.size(offset + step)
            value = add_gradients(trained, loss, penalty, batch, whole, size)
            if not math.isfinite(value):
                raise DivergedError(f"{name}: the loss is {value} at step {step}; lower the learning rate")
            self._meter.step(whole, run)
            optimizer.step()
            if step % max(1, steps // 50) == 0 or step == steps - 1:
                self._state.curve.append({"stage": name, "step": step, "loss": value})
            if self.watch is not None:
                self.watch(name, step + 1, steps, value)
            if time.monotonic() - self._saved_at >= self.save_every and step + 1 < steps:
                self._state.step = step + 1
                self._save({"optimizer": optimizer.state_dict(), "run": run.state_dict() if run else None})

    def _optimizer(self) -> torch.optim.Optimizer:
        b = self.job.budget
        if b.optimizer == "adamw":
            return torch.optim.AdamW(self.model.parameters(), lr=b.lr, weight_decay=b.weight_decay)
        return torch.optim.SGD(
            self.model.parameters(), lr=b.lr, momentum=b.momentum, weight_decay=b.weight_decay, nesterov=b.momentum > 0
        )

    def _score_batches(self) -> Batches:
        size = min(512, self.data.train.chunk, len(self.data.train)) // world() * world()
        return Batches.over(
            self.data.train, size, self.job.seed + 1, augment=False, drop_last=world() > 1, part=(rank(), world())
        )

    def _measure(self, stage: str) -> None:
        share_buffers(self.model)
        self._state.metrics[stage] = evaluate_source(self.model, self.data.test, precision=self.job.budget.precision)

    # rewinding ---------------------------------------------------------------------------------------

    def _rewinds(self) -> bool:
        return getattr(self.recipe.schedule, "rewind", "none") != "none"

    def _keep_rewind(self) -> None:
        self._rewind_point: Mapping[str, Tensor] = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if self.work is not None and speaks():
            save_state(self.work / "rewind.safetensors", dict(self._rewind_point))

    def _rounds(self) -> Cycle:
        if self._cycle is None:
            point = None
            if self._rewinds():
                point = getattr(self, "_rewind_point", None)
                if point is None and self.work is not None:
                    point = load_state(self.work / "rewind.safetensors")
            self._cycle = Cycle(
                self.model,
                self.recipe,
                rewind_to=point,
                data=self._score_batches(),
                loss=cross_entropy,
                seed=self.job.seed,
                target=self.job.target,
            )
        return self._cycle

    # state -------------------------------------------------------------------------------------------

    @property
    def _result(self) -> Result:
        assert self._state.result is not None
        return self._state.result

    def _save(self, extra: dict[str, Any]) -> None:
        self._saved_at = time.monotonic()
        if self.work is None or not speaks():
            return
        s = self._state
        s.seconds += self._saved_at - self._started
        self._started = self._saved_at
        state = {
            "job": self.job.describe(),
            "stage": s.stage,
            "step": s.step,
            "seconds": s.seconds,
            "metrics": s.metrics,
            "curve": s.curve,
            "result": result_to_state(s.result) if s.result is not None else None,
            "cycle": self._cycle.state_dict() if self._cycle is not None else None,
            "plan": getattr(self.model, "openwork_compaction", None),
            "shrunk": s.shrunk,
            "spent": s.spent,
            "model": self.model.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            **extra,
        }
        save_state(self.work / "checkpoint.safetensors", state)

    def _restore(self) -> dict[str, Any] | None:
        if self.work is None or not (self.work / "checkpoint.safetensors").is_file():
            return None
        saved = load_state(self.work / "checkpoint.safetensors")
        if not self.job.described_by(saved.get("job")):
            raise FileError(
                f"{self.work}: the stopped run was another job (other model, data, method, budget or seed); "
                "resume with the same arguments, or start anew with --overwrite"
            )
        s = self._state
        s.stage, s.step, s.seconds = saved["stage"], saved["step"], saved["seconds"]
        s.metrics, s.curve = saved["metrics"], saved["curve"]
        s.result = result_from_state(saved["result"]) if saved["result"] is not None else None
        s.shrunk = saved["shrunk"]
        s.spent.update(saved.get("spent", {}))
        if saved["plan"] is not None:
            self.model = recut(self.model, saved["plan"])
            self._meter.begin(self.model)
        if saved["step"] == 0 or self.recipe.drive != "attach":
            self.model.load_state_dict(saved["model"])
        if saved["cycle"] is not None and saved["step"] == 0:
            self._rounds().load_state_dict(saved["cycle"])
        return saved if saved["step"] > 0 else None

    def _concluded(self) -> Result:
        result = self._result
        s = self._state
        result.metrics, result.curve = s.metrics, s.curve
        job = {k: v for k, v in self.job.describe().items() if k not in ("recipe", "where", "structure")}
        seconds = s.seconds + time.monotonic() - self._started
        met = {"target_met": result.manifest["budget"]} if self.job.target is not None else {}
        result.manifest = {
            **result.manifest,
            **job,
            **met,
            "data_fingerprint": self.data.fingerprint(),
            "threads": torch.get_num_threads(),
            "processes": world(),
            "device": str(self.device),
            **self._meter.told(),
            "connected": None if s.shrunk else connected(self.model, result, self.data.input_shape),
            **({"compaction": s.shrunk} if s.shrunk else {}),
            "seconds": round(seconds, 2),
        }
        result.masks = Masks({n: m.cpu() for n, m in result.masks.items()})
        result.units = {n: u.cpu() for n, u in result.units.items()}
        return result
