"""A process of one thread that runs cells: tasks come in on standard input, short lines of JSON go back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save

from openwork.core.machine import processor
from openwork.data import DataSet, load_data
from openwork.engine.result import Result
from openwork.errors import DivergedError, FileError
from openwork.lab.cells import Cell, mask_file, weights_file, with_rate
from openwork.lab.chance import chance_of
from openwork.lab.cost import cost_of
from openwork.lab.evaluate import MANY, TOP
from openwork.lab.facts import with_validation
from openwork.lab.job import Job
from openwork.lab.origin import commit
from openwork.lab.runner import Runner
from openwork.lab.search import LR
from openwork.lab.store import write_record
from openwork.rules.given import units_to_bytes
from openwork.ship.atomic import write_file
from openwork.version import __version__

COLLAPSED_WITHIN = 0.01  # of chance
STAGES = ("dense", "pruned", "recalibrated", "finetuned")
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """A cell whose needs are done: its dense weights and its learning rate are known."""

    cell: Cell
    folder: Path
    weights: Path | None = None
    lr: float | None = None
    save_every: float = 20.0
    mask: Path | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """What tuning found, or what a trial tries: name -> value, the learning rate among them."""

    @property
    def job(self) -> Job:
        """The job to run."""
        job = self.cell.job
        if self.weights is not None:
            job = replace(job, checkpoint=str(self.weights))
        if self.mask is not None:
            job = replace(job, mask=str(self.mask))
        more = {name: value for name, value in self.values.items() if name != LR}
        return job if self.lr is None else with_rate(job, self.cell.peak, self.lr, more)


def execute(task: Task, data: DataSet, tell: Tell | None = None) -> dict[str, Any]:
    """Run one cell and leave its record in the folder; whatever goes wrong becomes part of the record.

    A cell that was stopped goes on from its own checkpoint.
    """
    cell, began = task.cell, time.monotonic()
    chance = 0.0
    record = blank(cell, task.lr)
    if len(task.values) > 1 or cell.search is not None:
        record["tried"] = dict(task.values)
    record |= {"openwork": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    record |= {"cpu": processor(), "commit": commit()}
    work = task.folder / "work" / cell.file
    try:
        if cell.held_out:
            data = with_validation(data, cell.held_out)
        chance = chance_of(data) if cell.chance is None else cell.chance
        record |= {"chance": chance, "data_fingerprint": data.fingerprint()}
        model, result, seconds = _run(task, data, work, tell)
        record |= _measured(cell, result)
        record["seconds"] = seconds
        record["parameters"] = _nonzero(model)
        batch = data.test.read(slice(0, cell.timed))[0] if cell.timed else None
        record |= cost_of(model, result, data.input_shape, batch)
        if cell.kind == "dense":
            _leave(weights_file(task.folder, cell), save({k: v.contiguous() for k, v in model.state_dict().items()}))
        if cell.keeps_mask:
            _leave(mask_file(task.folder, cell), units_to_bytes(result.units))
        accuracy = record["metrics"]["finetuned"]["accuracy"]
        record["status"] = "collapsed" if accuracy <= chance + COLLAPSED_WITHIN else "done"
    except DivergedError as problem:
        # counted with the accuracy of guessing: leaving it out would flatter the method
        guessed = {"top5": min(1.0, TOP * chance)} if data.classes > MANY else {}
        metrics = {"finetuned": {"accuracy": chance, "loss": None, **guessed}}
        record |= {"status": "collapsed", "error": str(problem), "metrics": metrics}
    except Exception as problem:
        record |= {"status": "failed", "error": f"{type(problem).__name__}: {problem}"}
    record.setdefault("seconds", round(time.monotonic() - began, 2))
    write_record(task.folder, cell, record)
    shutil.rmtree(work, ignore_errors=True)
    return record


def _leave(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, content)


def blank(cell: Cell, lr: float | None) -> dict[str, Any]:
    """The record of a cell before anything is known about its outcome."""
    return {
        "key": cell.key,
        "file": cell.file,
        "kind": cell.kind,
        "setting": cell.setting,
        "method": cell.method,
        "role": cell.role,
        "structure": cell.structure,
        "density": cell.density,
        "seed": cell.seed,
        "lr": lr if lr is not None else cell.lr,
        "pretrained": cell.start is not None or cell.job.checkpoint is not None,
        "status": "",
        "error": None,
        "metrics": {},
    }


def _run(task: Task, data: DataSet, work: Path, tell: Tell | None) -> tuple[torch.nn.Module, Result, float]:
    work.mkdir(parents=True, exist_ok=True)
    last = [0.0]

    def watch(stage: str, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if tell is not None and now - last[0] > 0.3:
            last[0] = now
            tell({"stage": stage, "step": step, "steps": steps})

    def runner() -> Runner:
        return Runner(task.job, work, data=data, watch=watch, save_every=task.save_every)

    made = runner()
    try:
        model, result = made.run(resume=True)
    except FileError:  # the checkpoint is of an older attempt under other circumstances: begin anew
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        made = runner()
        model, result = made.run()
    return model, result, float(result.manifest["seconds"])


def _measured(cell: Cell, result: Result) -> dict[str, Any]:
    metrics = {s: dict(result.metrics[s]) for s in STAGES if s in result.metrics}
    if cell.job.at == "init":
        for stage in ("dense", "pruned", "recalibrated"):
            metrics.pop(stage, None)  # of an untrained network
    if cell.kind == "dense" and cell.job.checkpoint is not None:
        metrics = {"finetuned": metrics["dense"]}
    layers = [{k: t[k] for k in ("name", "numel", "kept")} for t in result.tensors if t["units"]]
    spent = {k: result.manifest.get(k) for k in ("training_macs", "scoring_macs", "connected")}
    told = {"metrics": metrics, "counts": result.counts.to_dict(), "layers": layers, **spent}
    ever = [entry["ever_active"] for entry in result.log if "ever_active" in entry]
    return {**told, "ever_active": ever[-1]} if ever else told


def _nonzero(model: torch.nn.Module) -> int:
    return sum(int((p.detach() != 0).sum()) for p in model.parameters())


# the process -----------------------------------------------------------------------------------------


def send(stream: Any, task: Task) -> None:
    """Write one task; the other end is a worker."""
    body = pickle.dumps(task)
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


class Sets:
    """The data set of the last job, so that the next one need not load it again."""

    def __init__(self) -> None:
        self._name = ""
        self._data: DataSet | None = None

    def of(self, job: Job) -> DataSet:
        """The data of a job."""
        name = repr((job.data, job.root, sorted(job.data_options.items())))
        if name != self._name or self._data is None:
            self._data = load_data(job.data, root=job.root, **job.data_options)
            self._name = name
        return self._data


def serve(source: BinaryIO, tell: Tell, leave: Callable[[], None]) -> None:
    """Run tasks one after another. When the other end is gone, leave at once: nobody would count the result."""
    torch.set_num_threads(1)
    tasks: list[Task] = []
    arrived = threading.Condition()

    def read() -> None:
        while len(head := source.read(8)) == 8:
            body = source.read(struct.unpack("<Q", head)[0])
            with arrived:
                tasks.append(pickle.loads(body))
                arrived.notify()
        leave()

    threading.Thread(target=read, daemon=True).start()
    sets = Sets()
    while True:
        with arrived:
            while not tasks:
                arrived.wait()
            task = tasks.pop(0)
        record = execute(task, sets.of(task.cell.job), tell)
        tell({"done": task.cell.key, "status": record["status"]})


def _main() -> None:
    lines = os.fdopen(os.dup(1), "w", buffering=1)  # whatever else prints goes to standard error
    os.dup2(2, 1)
    serve(sys.stdin.buffer, lambda message: print(json.dumps(message), file=lines), lambda: os._exit(0))


if __name__ == "__main__":
    _main()
