"""Weights that a kernel trusts: whether they are still what they were when its order was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import is_

import torch
from torch import Tensor


class Watch:
    """Tensors as they are now.

    Args:
        buffers: of a layer, by name; those of ``packed`` are replaced by tensors of the same storage that count their
            changes together, so that one look tells of a change in any of them.
        packed: names of those that must not change.
        stored: names of those that may be exchanged from outside.
    """

    __slots__ = ("_buffers", "_kept", "_lead", "_stored", "_version")

    def __init__(self, buffers: dict[str, Tensor | None], packed: Iterable[str], stored: Iterable[str]) -> None:
        with torch.inference_mode(False):
            self._lead = torch.empty(0)
            for name in packed:
                tensor = buffers[name]
                if tensor is not None and not tensor.is_inference():  # torch does not count the changes of those
                    buffers[name] = together = self._lead.detach()
                    together.data = tensor
        self._version = self._lead._version
        self._buffers: Mapping[str, Tensor | None] = buffers
        self._stored = tuple(stored)
        self._kept = tuple(map(buffers.get, self._stored))

    def changed(self) -> bool:
        """Whether a tensor was changed in place or exchanged since."""
        if self._lead._version != self._version:
            return True
        return not all(map(is_, map(self._buffers.get, self._stored), self._kept))
