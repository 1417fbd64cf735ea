"""Statistics that are the same on every rank, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from openwork.errors import RecipeError


def world() -> int:
    """Number of processes; 1 without ``torch.distributed``."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; 0 is the one that writes files."""
    return distributed.get_rank() if world() > 1 else 0


def wait_for_all() -> None:
    """Until every rank has come here."""
    if world() > 1:
        distributed.barrier()


def summed(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in place; bit-identical on all of them."""
    if world() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def averaged(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place: equal shards give the value of the whole batch."""
    if world() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor.div_(world())


def mean_of(value: float, device: torch.device) -> float:
    """The mean of one number over the ranks, exchanged on a device that their backend knows."""
    if world() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    averaged([tensor])
    return float(tensor)


def rows_of_all(rows: Tensor) -> Tensor:
    """``[n, ...]`` rows of every rank, one below the other, in the order of the ranks; ``n`` must be equal on all."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def is_compiled(model: nn.Module) -> bool:
    """Whether a model came out of ``torch.compile`` or ``torch.jit``: its parameters have other names, or no code."""
    return isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod")


def refuse_wrapped(model: nn.Module) -> None:
    """Wrappers rename parameters and do not see gates that are added later; FSDP1 flattens them, too."""
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise RecipeError(
            "the model is wrapped in FullyShardedDataParallel (FSDP1), which flattens its weights; use FSDP2, "
            "torch.distributed.fsdp.fully_shard, which keeps them as they are"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise RecipeError(
            "the model is wrapped in DistributedDataParallel; give openwork the module inside, before wrapping it: "
            "run = ow.attach(net, ...); net_ddp = DDP(net)"
        )
    for wrapper, inside in (("torch.compile", "_orig_mod"), ("DataParallel", "module")):
        if hasattr(model, inside) and (inside == "_orig_mod" or isinstance(model, nn.DataParallel)):
            raise RecipeError(
                f"the model is wrapped in {wrapper}, which renames its parameters; give openwork the module inside "
                f"(model.{inside}) and wrap what comes out"
            )
