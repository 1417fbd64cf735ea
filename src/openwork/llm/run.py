"""The way through the blocks: inputs in, statistics and masks, outputs on to the next block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import to_device
from openwork.core.distributed import rank, world
from openwork.llm.activations import Activations
from openwork.llm.blocks import BlockPruner, Rooted
from openwork.llm.first_inputs import Calls, call_block, record
from openwork.llm.heap import give_back, resident
from openwork.llm.homes import Home
from openwork.llm.plan import Plan

Watch = Callable[[str, int, int, float], None]


class Run:
    """The way through the blocks."""

    def __init__(
        self,
        model: nn.Module,
        home: Home,
        names: list[str],
        blocks: list[nn.Module],
        pruner: BlockPruner,
        device: torch.device,
        batch: int,
        watch: Watch | None,
    ):
        self.model, self.home, self.names, self.blocks, self.pruner = model, home, names, blocks, pruner
        self.device, self.batch, self.watch = device, batch, watch
        self.masks: dict[str, Tensor] = {}
        self.units: dict[str, Tensor] = {}

    def everything(self, windows: Tensor | None, plan: Plan, folder: Path | None) -> None:
        """All blocks, from the first that is not done."""
        if windows is None:
            for i in range(len(self.home.done), len(self.blocks)):
                self._block(i, None, None, None)
            return
        self.home.open_front()
        width = int(getattr(self.model.config, "hidden_size", 0))  # of the first hidden states, once they are seen
        caches = Caches((len(windows), windows.shape[1], width), self.batch, folder if plan.cached == "disk" else None)
        try:
            calls = record(self.model, self.blocks, windows.split(self.batch), caches.append)
            self.home.close_front()
            for i in range(len(self.blocks)):
                self._block(i, caches.now, calls, caches.next if i + 1 < len(self.blocks) else None)
                caches.swap()
        finally:
            caches.close()

    def _block(self, i: int, inputs: Activations | None, calls: Calls | None, outputs: Activations | None) -> None:
        name, block = self.names[i], self.blocks[i]
        fresh = i >= len(self.home.done)
        self.home.enter(i)
        home_device = next((p.device for p in block.parameters()), self.device)
        block.to(self.device)
        row = None
        if fresh:
            rooted = Rooted(name, block)
            data = None if inputs is None or calls is None else WindowBatches(inputs, calls, i)
            row, masks, units = self.pruner.prune(name, rooted, data, self.device)
            if self.home.keeps_masks:
                self.masks |= masks
                self.units |= units
            self.home.settle(i)
        if outputs is not None and inputs is not None and calls is not None:
            for at, hidden in enumerate(inputs):
                args, kwargs = to_device(calls.of(i, at, hidden), self.device)
                outputs.put(at, call_block(block, hidden.to(self.device), args, kwargs).cpu())
        block.to(home_device)
        if row is not None:
            row["resident"] = resident()
        self.home.leave(i, row)
        give_back()
        if self.watch is not None:
            error = self.home.done[i]["error"] if i < len(self.home.done) else None
            self.watch("blocks", i + 1, len(self.blocks), float("nan") if error is None else error)


class Caches:
    """Inputs of this block and of the next; the dtype is that of the first hidden states."""

    def __init__(self, shape: tuple[int, int, int], batch: int, folder: Path | None):
        self.shape, self.batch, self.folder = shape, batch, folder
        self.filled = 0
        self.both: list[Activations] = []

    def append(self, hidden: Tensor) -> None:
        if not self.both:
            shape = (*self.shape[:2], hidden.shape[-1])
            own = str(rank()) if world() > 1 else ""
            names = (f"a{own}", f"b{own}")
            self.both = [Activations(shape, hidden.dtype, self.batch, self.folder, n) for n in names]
        self.now.put(self.filled, hidden)
        self.filled += 1

    @property
    def now(self) -> Activations:
        return self.both[0]

    @property
    def next(self) -> Activations:
        return self.both[1]

    def swap(self) -> None:
        self.both.reverse()

    def close(self) -> None:
        for cache in self.both:
            cache.close()


class WindowBatches:
    """The calibration as batches of keyword arguments of ``Rooted``; can be read again and again."""

    def __init__(self, inputs: Activations, calls: Calls, block: int):
        self.inputs, self.calls, self.block = inputs, calls, block

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for at, hidden in enumerate(self.inputs):
            args, kwargs = self.calls.of(self.block, at, hidden)
            yield {"hidden": hidden, "args": args, "kwargs": kwargs}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode behind."""
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


@contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """Fused experts multiply expert by expert inside the block, so that the inputs of each one can be told apart."""
    key = "_experts_implementation"
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None and hasattr(c, key)}
    was = [(c, getattr(c, key)) for c in configs.values()]
    try:
        for config, _ in was:
            setattr(config, key, "eager")
        yield
    finally:
        for config, value in was:
            setattr(config, key, value)
