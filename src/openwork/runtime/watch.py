"""Weights that a kernel trusts: whether they are still what they were when its order was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter, is_

from torch import Tensor

_version = attrgetter("_version")


class Watch:
    """Tensors as they are now.

    Args:
        buffers: of a layer, by name; looked at again by ``changed``.
        packed: names of those that count their changes.
        stored: names of those that may be exchanged from outside.
    """

    __slots__ = ("_buffers", "_kept", "_packed", "_stored", "_versions")

    def __init__(self, buffers: Mapping[str, Tensor | None], packed: Iterable[str], stored: Iterable[str]) -> None:
        found = [t for t in map(buffers.get, packed) if t is not None and not t.is_inference()]
        self._buffers, self._stored = buffers, tuple(stored)
        self._kept = tuple(map(buffers.get, self._stored))
        self._packed = tuple(found)
        self._versions = list(map(_version, found))

    def changed(self) -> bool:
        """Whether a tensor was changed in place or exchanged since."""
        if list(map(_version, self._packed)) != self._versions:
            return True
        return not all(map(is_, map(self._buffers.get, self._stored), self._kept))
