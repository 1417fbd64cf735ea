"""What a statistic may use while it is measured, and the guard that leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openwork.core.batches import Feed, Loss
from openwork.core.partition import Partition
from openwork.core.shards import across_of, local
from openwork.core.whole_batch import whole_batch

Mode = Literal["train", "eval", "keep"]


@dataclass(frozen=True)
class Measuring:
    """The model, where its prunable entries are, and a source of batches."""

    model: nn.Module
    parts: Mapping[str, Partition]
    feed: Feed
    loss: Loss | None
    seed: int = 0

    @property
    def sharded(self) -> bool:
        """Whether the weights lie in pieces on several ranks."""
        return across_of(self.parts) is not None

    @property
    def members(self) -> tuple[str, ...]:
        """Every parameter that some partition covers, once, in order."""
        return tuple(dict.fromkeys(m for part in self.parts.values() for m in part.members))

    @contextmanager
    def calling(self, mode: Mode) -> Iterator[Any]:
        """A function ``call(tensors, *args, **kwargs)`` that runs the model with some tensors replaced.

        Running statistics and the train/eval mode are left untouched, whatever the model does. Batch statistics are
        those of all ranks together, see ``whole_batch``.
        """
        was = [(m, m.training) for m in self.model.modules()]
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        try:
            if mode != "keep":
                self.model.train(mode == "train")
            with whole_batch(self.model):
                yield lambda tensors, *args, **kwargs: functional_call(self.model, {**buffers, **tensors}, args, kwargs)
        finally:
            for module, training in was:
                module.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under a fixed torch seed and give the global generators back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield


def weights_of(ctx: Measuring) -> dict[str, Tensor]:
    """The current weights of every member, detached."""
    params = dict(ctx.model.named_parameters())
    return {name: local(params[name].detach()) for name in ctx.members}
