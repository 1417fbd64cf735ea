"""The hidden states between two blocks for all calibration windows: in memory, or in a file when they are large."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from openwork.errors import FileError


class Activations:
    """``[windows, length, width]``, written and read in batches of windows.

    With a ``folder`` the values live in a memory-mapped file there, so that only the pages in use are in memory.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, batch: int, folder: Path | None, name: str):
        self.shape, self.batch = shape, batch
        self.path = folder / f"activations-{name}.bin" if folder is not None else None
        count = shape[0] * shape[1] * shape[2]
        if self.path is None:
            self.values = torch.empty(shape, dtype=dtype)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = count * dtype.itemsize
            with self.path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so now, not in the middle of a write
            self.values = torch.from_file(str(self.path), shared=True, size=count, dtype=dtype).view(shape)
        except (OSError, RuntimeError) as problem:
            raise FileError(f"{self.path}: the activations could not be put on disk ({problem})") from None

    def put(self, at: int, hidden: Tensor) -> None:
        """Batch number ``at``."""
        self.values[at * self.batch : at * self.batch + len(hidden)] = hidden

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.values.split(self.batch))

    def close(self) -> None:
        """Forget the values, and delete the file."""
        del self.values
        if self.path is not None:
            self.path.unlink(missing_ok=True)
