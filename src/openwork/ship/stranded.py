"""Sparse checkpoints of the compressed-tensors format, whose readers are gone, as dense weights.

Two layouts of a Hugging Face folder are read, both only where the weights are not quantised as well:

* ``sparse-bitmask``: ``NAME.compressed`` ``[nnz]`` holds the non-zero values in row-major order, ``NAME.bitmask`` uint8
  ``[..., ceil(cols / 8)]`` their places (lowest bit first, every row begins a byte), ``NAME.row_offsets`` int64 where
  each row begins, ``NAME.shape`` the dense shape.
* ``sparse-24-bitmask``: the same for 2:4, ``NAME.compressed`` is ``[rows, cols / 2]``, there are no row offsets, and
  ``NAME.shape`` is a column.

``NAME`` is the parameter in older checkpoints and its module in newer ones; the parameter is then ``NAME.weight``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openwork.errors import FileError
from openwork.formats.bits import count_rows, unpack_rows

BITMASK, BITMASK_24 = "sparse-bitmask", "sparse-24-bitmask"
PARTS = {
    BITMASK: ("compressed", "bitmask", "shape", "row_offsets"),
    BITMASK_24: ("compressed", "bitmask", "shape"),
}
INDEX = "model.safetensors.index.json"


def read_stranded(folder: str | Path) -> dict[str, Tensor]:
    """The dense weights of a stranded sparse checkpoint, one file or sharded, on the CPU, in the dtype of its values.

    ``transformers`` takes them: ``Model.from_pretrained(None, config=config, state_dict=read_stranded(folder))`` with
    ``config = AutoConfig.from_pretrained(folder)`` after ``del config.quantization_config``.

    Args:
        folder: with ``config.json`` and ``*.safetensors``.

    Raises:
        FileError: no such folder, another or a quantised format, missing or damaged files or tensors.
    """
    folder = Path(folder)
    parts = PARTS[_format(folder)]
    with ExitStack() as stack:
        where = dict(_tensors(folder, stack))
        packed = sorted({name.rpartition(".")[0] for name in where if name.rpartition(".")[2] == "compressed"})
        owned = {f"{prefix}.{part}" for prefix in packed for part in parts}
        loose = {n for n in where if n.rpartition(".")[2] in ("compressed", "bitmask", "row_offsets")} - owned
        lost = min(owned - set(where), default=None)
        if lost is not None:
            raise FileError(f"{folder}: {lost}: the tensor is missing; download the checkpoint again")
        if loose:
            raise FileError(
                f"{folder}: {min(loose)}: belongs to no compressed tensor; is the format in config.json right?"
            )
        old = any(prefix.rpartition(".")[2] in ("weight", "bias") for prefix in packed)
        state: dict[str, Tensor] = {}
        for name in sorted(set(where) - owned):
            state[name] = _read(folder, where, name).clone()
        for prefix in packed:
            name = prefix if old else f"{prefix}.weight"
            if name in state:
                raise FileError(f"{folder}: {name}: is there twice, dense and compressed; the checkpoint is damaged")
            state[name] = _dense(f"{folder}: {prefix}", {p: _read(folder, where, f"{prefix}.{p}") for p in parts})
    return state


def _format(folder: Path) -> str:
    """The sparse format that ``config.json`` names."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise FileError(f"{path}: cannot be read ({problem.strerror}); a Hugging Face folder is needed") from None
    except (ValueError, RecursionError) as problem:
        raise FileError(f"{path}: not readable as JSON ({problem})") from None
    outer = _mapping(config)
    nested = _mapping(outer.get("quantization_config")) or _mapping(outer.get("compression_config"))
    sparsity = _mapping(nested.get("sparsity_config")) or _mapping(outer.get("sparsity_config"))
    found = sparsity.get("format")
    if not isinstance(found, str) or found not in PARTS:
        known = ", ".join(PARTS)
        raise FileError(
            f"{path}: sparsity_config.format must be one of {known}, got {found!r:.60}; dense "
            "checkpoints need no reader"
        )
    if nested.get("config_groups") or nested.get("format") not in (None, "dense", found):
        kind = f"{nested.get('format')!r:.60}"
        raise FileError(
            f"{path}: the weights are quantised too ({kind}); only checkpoints that are sparse alone are read"
        )
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _tensors(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Name of every tensor of every shard, and the open file that holds it."""
    index = folder / INDEX
    promised: dict[str, str] | None = None
    if index.is_file():
        try:
            promised = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, OSError, KeyError, TypeError, RecursionError) as problem:
            raise FileError(f"{index}: must hold a weight_map ({type(problem).__name__}: {problem})") from None
        strange = [f for f in promised.values() if not isinstance(f, str) or Path(f).name != f]
        if strange:
            raise FileError(f"{index}: shards must be files of this folder, got {strange[0]!r:.60}")
    names = (
        sorted(set(promised.values())) if promised is not None else sorted(p.name for p in folder.glob("*.safetensors"))
    )
    if not names:
        raise FileError(f"{folder}: holds no *.safetensors; other kinds of checkpoints are not read")
    seen: dict[str, str] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileError(f"{path}: the shard is missing; download the checkpoint again")
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as problem:
            raise FileError(f"{path}: not a whole safetensors file ({problem}); download it again") from None
        for key in file.keys():  # noqa: SIM118
            if key in seen:
                raise FileError(f"{path}: {key}: is in {seen[key]} too; the folder mixes two checkpoints")
            seen[key] = name
            yield key, file
    lost = sorted(set(promised or ()) - set(seen))
    if lost:
        raise FileError(f"{index}: promises {lost[0]}, which no shard holds; download the checkpoint again")


def _read(folder: Path, where: Mapping[str, Any], name: str) -> Tensor:
    try:
        return where[name].get_tensor(name)
    except (SafetensorError, OSError, RuntimeError, ValueError) as problem:
        raise FileError(f"{folder}: {name}: cannot be read ({problem})") from None


def _dense(who: str, parts: Mapping[str, Tensor]) -> Tensor:
    """One dense tensor from its parts.

    Raises:
        FileError: they contradict each other.
    """
    values, bits, size = parts["compressed"], parts["bitmask"], parts["shape"]
    if size.is_floating_point() or size.is_complex() or size.dtype == torch.bool or not 1 <= size.numel() <= 8:
        raise FileError(f"{who}: shape must hold 1 to 8 whole numbers, got {tuple(size.shape)} {size.dtype}")
    shape = tuple(int(n) for n in size.flatten().tolist())
    if min(shape) < 0:
        raise FileError(f"{who}: shape must not be negative, got {shape}")
    if values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise FileError(f"{who}: compressed must be float32, float16 or bfloat16, got {values.dtype}")
    wanted = (*shape[:-1], -(-shape[-1] // 8))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != wanted:
        raise FileError(f"{who}: bitmask must be uint8 {wanted} for {shape}, got {bits.dtype} {tuple(bits.shape)}")
    rows = bits.reshape(prod(shape[:-1]), wanted[-1])
    if shape[-1] % 8 and bool((rows[:, -1] >> (shape[-1] % 8)).any()):
        raise FileError(f"{who}: bitmask has bits beyond the last column; the file is damaged")
    counts = count_rows(rows)
    total = int(counts.sum())
    if total != values.numel():
        raise FileError(f"{who}: bitmask marks {total} places, compressed holds {values.numel()} values")
    mask = unpack_rows(rows)[:, : shape[-1]].reshape(shape)
    if "row_offsets" in parts:
        offsets, per_row = parts["row_offsets"], counts.view(shape[:-1])
        if offsets.dtype != torch.int64 or not torch.equal(offsets, torch.cumsum(per_row, 0) - per_row):
            raise FileError(f"{who}: row_offsets do not agree with bitmask; the file is damaged")
    elif mask.numel() % 4 or bool((mask.reshape(mask.numel() // 4, 4).sum(1) != 2).any()):
        raise FileError(f"{who}: bitmask must mark 2 of every 4 entries; the file is damaged")
    dense = torch.zeros(shape, dtype=values.dtype)
    dense[mask] = values.flatten()
    return dense
