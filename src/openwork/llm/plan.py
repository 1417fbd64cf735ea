"""What a block-wise run will need, counted before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openwork.core.machine import free_memory
from openwork.core.partition import Partition
from openwork.errors import FileError

GB = 1e9
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """Bytes, all upper bounds: weights of the largest block, its statistics, working copies, activations, output.

    ``cached`` says where the activations go: ``"memory"``, ``"disk"``, or ``"none"`` for methods without data;
    ``computed`` in what kind of number blocks compute, and whether this processor is slow at it.
    """

    blocks: int
    targets: int
    targeted: int
    parameters: int
    front: int
    block: int
    statistics: int
    working: int
    activations: int
    cached: str
    output: int
    computed: str

    @property
    def peak(self) -> int:
        """Resident bytes at the worst moment."""
        held = self.activations if self.cached == "memory" else 0
        return max(self.front, self.block + self.statistics + self.working) + held

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak}

    def text(self) -> str:
        """The plan as lines for people."""
        rows = [
            (
                "targets",
                f"{self.targets} tensors in {self.blocks} blocks, {self.targeted:,} of {self.parameters:,} weights",
            ),
            ("largest block", _size(self.block)),
            ("statistics", f"at most {_size(self.statistics)}"),
            ("working copies", _size(self.working)),
            ("embeddings", f"{_size(self.front)} (not at the same time as a block)"),
            ("activations", f"{_size(self.activations)} ({self.cached})"),
            ("peak", f"at most {_size(self.peak)} beside Python and torch"),
            ("output", _size(self.output)),
            ("computing", self.computed),
        ]
        return "\n".join(f"  {name:<16} {text}" for name, text in rows)


def make_plan(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    parts: Mapping[str, Partition],
    windows: tuple[int, int] | None,
    width: int,
    dtype: torch.dtype,
    statistics: str,
    memory: int | None,
    output: int,
    device: torch.device = CPU,
) -> Plan:
    """Count.

    Args:
        model: with or without values.
        blocks: name -> block.
        parts: name of a targeted tensor -> partition.
        windows: (number, length) of the calibration; None without data.
        width: of the hidden states.
        dtype: of a number in computing.
        statistics: ``"gram"``, ``"vector"`` or ``"none"``, what the method measures.
        memory: bytes that activations may take; None: a quarter of what is free now.
        output: bytes to be written.
        device: where blocks are computed.
    """
    itemsize = dtype.itemsize
    largest = stats = working = 0
    for name, block in blocks.items():
        largest = max(largest, sum(p.numel() for p in block.parameters()) * itemsize)
        here = [part for n, part in parts.items() if n.startswith(f"{name}.")]
        sizes = [getattr(part, "view", None) for part in here]
        columns = [(v.folded[0], v.folded[2], v.folded[1] * v.folded[2]) for v in sizes if v is not None]
        if statistics == "gram":
            stats = max(stats, sum(stack * c * c * 4 for stack, c, _ in columns))
            working = max(working, *(5 * size * 4 + 2 * c * c * 4 for _, c, size in columns), 0)
        elif columns:
            stats = max(stats, sum(stack * c * 4 for stack, c, _ in columns) if statistics == "vector" else 0)
            working = max(working, *(4 * size * 4 for _, _, size in columns), 0)
    inside = sum(p.numel() for block in blocks.values() for p in block.parameters())
    everything = sum(p.numel() for p in model.parameters())
    activations = 2 * windows[0] * windows[1] * width * itemsize if windows else 0
    limit = memory if memory is not None else free_memory() // 4
    cached = "none" if not windows else "memory" if activations <= limit else "disk"
    return Plan(
        len(blocks), len(parts), sum(int(p.cost.sum()) for p in parts.values()), everything,
        (everything - inside) * itemsize if windows else 0, largest, stats, working, activations, cached, output,
        _computed(dtype, device, windows is not None),
    )  # fmt: skip


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Say before the work that its result will not fit.

    Raises:
        FileError: less space than needed.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise FileError(f"{folder}: needs {_size(needed)} of disk, but only {_size(free)} are free")


def _computed(dtype: torch.dtype, device: torch.device, forwards: bool) -> str:
    """The kind of number, and what to do where the processor has no products of it."""
    word = str(dtype).removeprefix("torch.")
    has = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or not forwards or dtype not in has or getattr(torch.ops.mkldnn, has[dtype])():
        return word
    return f"{word}, which this processor emulates; in float32 (--dtype float32) blocks run several times faster"


def _size(count: int) -> str:
    return f"{count / GB:.2f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"
