"""Checkpoints of sharded training (FSDP2) that any number of ranks can go on from, and results put together again.

A checkpoint is a folder of safetensors files that ``torch.distributed.checkpoint`` writes, one per rank, and an
``openwork.json`` with everything that is no tensor and the names and sizes of the files. No pickle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from openwork.core.batches import device_of
from openwork.core.distributed import rank, world
from openwork.core.masks import Masks
from openwork.core.shards import is_sharded, reshard
from openwork.engine.attach import Attached
from openwork.engine.result import Result
from openwork.errors import FileError, OpenworkError
from openwork.lab.checkpoint import put_together, taken_apart
from openwork.ship.atomic import new_folder

FORMAT = "openwork-sharded-1"
INDEX = "openwork.json"


def save_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, run: Attached) -> Path:
    """Write model, optimiser and run; every rank its own part, and the folder appears whole or not at all.

    All ranks call it, on a file system that they share. A folder that holds an earlier checkpoint is replaced.

    Raises:
        FileError: on every rank, when one of them cannot write; an earlier checkpoint is then untouched.
        OpenworkError: torch is too old.
    """
    path, device = Path(folder), device_of(model)
    tensors: dict[str, Tensor] = {}
    plan = taken_apart(_state(model, optimizer, run), tensors)
    problem = ""
    try:
        with ExitStack() as stack:
            work = ""
            if rank() == 0:
                try:
                    work = stack.enter_context(new_folder(path, overwrite=True)).name
                except FileError as found:
                    problem = str(found)
            work = _told(work, device)
            if not work:
                raise FileError(problem or f"{path}: could not be created by rank 0")
            place = path.with_name(work)
            _checkpoint(
                f"{path}: could not be written",
                lambda dcp, alone: dcp.save(
                    tensors,
                    storage_writer=dcp.HuggingFaceStorageWriter(str(place), save_distributed=True),
                    no_dist=alone,
                ),
            )
            if rank() == 0:
                files = {f.name: f.stat().st_size for f in place.glob("*.safetensors")}
                index = {"format": FORMAT, "ranks": world(), "files": files, "state": plan}
                (place / INDEX).write_text(json.dumps(index))
    except FileError as found:
        problem = str(found)
    if not _told("" if problem else "written", device):
        raise FileError(problem or f"{path}: could not be written by rank 0")
    return path


def load_sharded(folder: str | Path, model: nn.Module, optimizer: Optimizer, run: Attached) -> None:
    """Go on from ``save_sharded``, on as many ranks as there are now; all of them call it.

    Everything is read beside the present values first, so a rank needs memory for its part twice for a while.

    Raises:
        FileError: missing, damaged or foreign checkpoint, or one of another model; nothing is then changed.
        RecipeError: the checkpoint belongs to another recipe; likewise.
        OpenworkError: torch is too old.
    """
    path = Path(folder)
    plan = _index(path)
    here: dict[str, Tensor] = {}
    taken_apart(_state(model, optimizer, run), here)
    room: dict[str, Tensor] = {}

    def read(dcp: Any, alone: bool) -> None:
        reader = dcp.HuggingFaceStorageReader(str(path))
        found = reader.read_metadata().state_dict_metadata
        room.update(_room(path, found, here, dict(model.named_parameters())))
        dcp.load(room, storage_reader=reader, no_dist=alone)

    _checkpoint(f"{path}: could not be read", read)
    for name, value in room.items():  # units lie in rows where they are sharded, in one piece where they are not
        if name in here and not is_sharded(here[name]) and here[name].numel() == value.numel():
            room[name] = value.reshape(here[name].shape)
    try:
        state = put_together(plan, room)
        groups, moments = state["groups"], state["optimizer"]
        numbers = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        moments = {numbers[name]: values for name, values in moments.items()}
        weights, progress = state["model"], state["run"]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise FileError(f"{path / INDEX}: damaged ({type(problem).__name__}: {problem})") from None
    _refuse_other_groups(path, groups, optimizer)
    run.load_state_dict(progress)
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def gathered(result: Result) -> Result:
    """The result of a sharded model with whole masks and units, on every rank; all ranks call it.

    ``ow.save`` takes it together with an ordinary model that holds the whole weights
    (``torch.distributed.checkpoint.state_dict.get_model_state_dict`` with ``full_state_dict=True``).
    """
    masks = {n: _whole(m) for n, m in result.masks.items()}
    return replace(result, masks=Masks(masks), units={n: _whole(u).flatten() for n, u in result.units.items()})


def _whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return found


def _state(model: nn.Module, optimizer: Optimizer, run: Attached) -> dict[str, Any]:
    """Everything under names that do not depend on the number of ranks."""
    reshard(model)
    known = {id(p): n for n, p in model.named_parameters()}
    order = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): known.get(id(p), f"parameter {i}") for i, p in enumerate(order)}
    return {
        "model": dict(model.state_dict()),
        "optimizer": {names[id(p)]: dict(optimizer.state[p]) for p in order if p in optimizer.state},
        "groups": [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups],
        "run": run.state_dict(),
    }


def _room(
    path: Path, found: Mapping[str, Any], here: Mapping[str, Tensor], params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An empty tensor, cut as it will be used, for every tensor of the checkpoint."""
    must = {n for n in (*here, *found) if n.startswith(("model/", "run/units/"))}
    for name in sorted(must):
        fits = name in here and name in found and here[name].numel() == found[name].size.numel()
        if not fits or (name.startswith("model/") and here[name].shape != found[name].size):
            raise FileError(f"{path}: is of another model, {name} is missing in one of them or has another shape")
    room = {}
    for name, meta in found.items():
        kind, _, rest = name.partition("/")
        pattern = here.get(name, params.get(rest.split("/")[0]) if kind == "optimizer" else None)
        if pattern is not None and pattern.shape == meta.size:
            room[name] = torch.empty_like(pattern.detach(), dtype=meta.properties.dtype)
        else:
            room[name] = torch.empty(meta.size, dtype=meta.properties.dtype)
    return room


def _index(path: Path) -> Any:
    """The plan of a checkpoint whose files are all there."""
    try:
        data = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise FileError(f"{path}: no checkpoint of save_sharded, {INDEX} cannot be read ({problem})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("files"), dict):
        raise FileError(f"{path}: is no checkpoint of save_sharded ({INDEX} has another format)")
    for name, size in data["files"].items():
        file = path / Path(name).name
        there = file.stat().st_size if file.is_file() else 0
        if there != size:
            raise FileError(f"{file}: has {there} bytes instead of {size}; the checkpoint is damaged")
    return data.get("state")


def _refuse_other_groups(path: Path, groups: Iterable[Mapping[str, Any]], optimizer: Optimizer) -> None:
    saved, own = [len(g["params"]) for g in groups], [len(g["params"]) for g in optimizer.param_groups]
    if saved != own:
        raise FileError(f"{path}: its optimiser has groups of {saved} parameters, this one of {own}; build it alike")


def _checkpoint(failed: str, act: Callable[[Any, bool], None]) -> None:
    """Read or write by ``torch.distributed.checkpoint``, with one kind of error on every rank."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    if not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise OpenworkError(f"sharded checkpoints need torch 2.8 or later, got {torch.__version__}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is a fine number of ranks
            act(checkpoint, world() == 1)
    except CheckpointException as problem:
        cause = next(iter(problem.failures.values()))[0]
        raise FileError(f"{failed} ({type(cause).__name__}: {cause}); nothing was changed") from None
    except (OSError, SafetensorError, KeyError) as problem:
        raise FileError(f"{failed} ({type(problem).__name__}: {problem}); nothing was changed") from None


def _told(text: str, device: torch.device, room: int = 512) -> str:
    """What rank 0 says, on every rank."""
    if world() == 1:
        return text
    raw = text.encode()[:room]
    said = torch.zeros(room, dtype=torch.uint8)
    said[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else 0
    said = said.to(device)
    distributed.broadcast(said, 0)
    return bytes(said.cpu().tolist()).rstrip(b"\0").decode()
