"""One job on several processes: the process group of ``torchrun``, who speaks, and gradients that are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module

import torch
from torch import distributed, nn

from openwork.core.distributed import rank, world
from openwork.errors import RecipeError


def device_of_rank(name: str = "auto") -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` or ``auto``; under torchrun every process takes the GPU of its local rank.

    Raises:
        RecipeError: a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device must be 'auto', 'cpu' or 'cuda[:N]', got {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError(f"device {name!r}: torch sees no GPU here; use device 'cpu'")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def ranks(device: torch.device) -> Iterator[None]:
    """Inside the block the processes that ``torchrun`` started know each other; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DistributedDataParallel imports this module; imported behind the group it holds it for ever, in defaults of its
    # functions, and threads of the group that outlive Python now and then end the process with an error.
    import_module("torch.distributed.nn")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def together(model: nn.Module, gates: bool) -> nn.Module:
    """The model whose backward averages gradients over the ranks; itself when there is one.

    ``gates`` says that some parameters may have no gradient in some steps (masks that became final).
    """
    if world() == 1:
        return model
    where = [next(model.parameters()).device.index] if next(model.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(model, device_ids=where, find_unused_parameters=gates)


def apart(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes add up on every rank; the next one outside averages the sums. Alone, nothing happens."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


def share_buffers(model: nn.Module) -> None:
    """Every rank takes the running statistics of rank 0, which is the one that is saved."""
    if world() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def wait() -> None:
    """Until every rank has come here."""
    if world() > 1:
        distributed.barrier()


def speaks() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0
