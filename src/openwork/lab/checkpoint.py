"""Nested state (tensors and plain data) in one safetensors file, replaced atomically. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from openwork.errors import FileError
from openwork.ship.atomic import write_file

FORMAT = "openwork-checkpoint-1"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists, tuples, tensors, numbers, strings, booleans and None.

    Raises:
        FileError: a value of another kind, or the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    plan = taken_apart(state, tensors)
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_file(path, tensors_to_bytes(plain, metadata={"format": FORMAT, "state": json.dumps(plan)}))


def load_state(path: Path) -> dict[str, Any]:
    """Inverse of ``save_state``.

    Raises:
        FileError: missing, truncated, corrupt or foreign file.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise FileError(f"{path}: not a checkpoint of openwork (format {meta.get('format')!r})")
            plan = json.loads(meta["state"])
            return put_together(plan, {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, OSError) as problem:
        if isinstance(problem, FileError):
            raise
        raise FileError(f"{path}: corrupt or truncated checkpoint ({problem})") from None


def taken_apart(value: Any, tensors: dict[str, Tensor], at: str = "") -> Any:
    """Plain data that stands for nested state; its tensors go into ``tensors``, named by the path to them.

    Raises:
        FileError: a value that is neither.
    """
    if isinstance(value, Tensor):
        key = at if at not in tensors else f"{at}~{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, dict):
        under = f"{at}/" if at else ""
        return {"dict": [[taken_apart(k, tensors), taken_apart(v, tensors, f"{under}{k}")] for k, v in value.items()]}
    if isinstance(value, list):
        return [taken_apart(v, tensors, f"{at}/{i}") for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [taken_apart(v, tensors, f"{at}/{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise FileError(f"a checkpoint holds tensors and plain data, got {type(value).__name__}")


def put_together(plan: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of ``taken_apart``."""
    if isinstance(plan, list):
        return [put_together(v, tensors) for v in plan]
    if isinstance(plan, dict):
        ((kind, inner),) = plan.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "tuple":
            return tuple(put_together(v, tensors) for v in inner)
        return {put_together(k, tensors): put_together(v, tensors) for k, v in inner}
    return plan


def load_dense(model: nn.Module, path: Path) -> None:
    """Fill a model with the weights of a safetensors file.

    Raises:
        FileError: missing, corrupt, or of another model.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such checkpoint")
    try:
        state = load_file(path)
    except (SafetensorError, ValueError, OSError) as problem:
        raise FileError(f"{path}: not a readable safetensors file ({problem})") from None
    own = model.state_dict()
    state |= {k: v for k, v in own.items() if k not in state and k.endswith("num_batches_tracked")}  # a mere counter
    wrong = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise FileError(
            f"{path}: does not fit {type(model).__name__}: {wrong[0]} is missing, unknown or of another shape "
            f"({len(wrong)} tensors)"
        )
    model.load_state_dict(state)
