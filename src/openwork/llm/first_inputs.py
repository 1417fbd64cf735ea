"""What reaches the first block, and with which further arguments each block is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import DataError, StructureError

HIDDEN = "hidden_states"


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Calls:
    """The arguments of every block besides the hidden states: once for all batches of a shape, unless they differ.

    Position tables and causal masks are the same for every batch and are kept once; what an encoder hands to the
    cross-attention of a decoder is kept batch by batch.
    """

    by_block: list[dict[tuple[int, ...], Arguments]] = field(default_factory=list)
    own: dict[tuple[int, int], Arguments] = field(default_factory=dict)

    def put(self, block: int, at: int, hidden: Tensor, arguments: Arguments) -> None:
        """What batch number ``at`` hands to a block."""
        if not _equal(self.by_block[block].setdefault(tuple(hidden.shape), arguments), arguments):
            self.own[block, at] = arguments

    def of(self, block: int, at: int, hidden: Tensor) -> Arguments:
        """The arguments of batch number ``at``."""
        return self.own.get((block, at)) or self.by_block[block][tuple(hidden.shape)]


def _equal(a: Any, b: Any) -> bool:
    """Tensors by their values, containers by what they hold; other objects (caches) are equal when of one class."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return not isinstance(a, bool | int | float | str) or a == b


class _Stop(Exception):
    pass


def record(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Iterable[Tensor], keep: Callable[[Tensor], None]
) -> Calls:
    """Run token batches through everything before the first block; ``keep`` gets the hidden states of each batch.

    The blocks themselves pass their input on and compute nothing.

    Raises:
        StructureError: the model does something else between its blocks.
        DataError: hidden states that are not finite.
    """
    calls = Calls([{} for _ in blocks])
    for as_tuple in (False, True):
        recorder = _Recorder(blocks, calls, as_tuple)
        with torch.no_grad(), recorder.installed():
            whole = True
            for at, tokens in enumerate(batches):
                hidden = recorder.run(model, tokens, at)
                if hidden is None:
                    whole = False
                    break
                if not bool(torch.isfinite(hidden).all()):
                    raise DataError("the calibration activations before the first block hold NaN or infinity")
                keep(hidden)
            if whole:
                return calls
    raise StructureError(
        f"{type(model).__name__}: its blocks do not hand their hidden states straight to the next one; "
        "name the list of blocks with blocks=... (--blocks)"
    )


class _Recorder:
    def __init__(self, blocks: Sequence[nn.Module], calls: Calls, as_tuple: bool):
        self.blocks, self.calls, self.as_tuple = blocks, calls, as_tuple
        self.passed: Tensor | None = None
        self.straight = True
        self.at = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        for i, block in enumerate(self.blocks):
            block.forward = self._forward(i)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def _forward(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = kwargs.pop(HIDDEN) if HIDDEN in kwargs else args[0]
            rest = args[1:] if args and hidden is args[0] else args
            if index == 0:
                self.passed = hidden
            elif hidden is not self.passed:
                self.straight = False
                raise _Stop
            self.calls.put(index, self.at, hidden, (rest, kwargs))
            if index == len(self.blocks) - 1:
                raise _Stop
            return (hidden,) if self.as_tuple else hidden

        return forward

    def run(self, model: nn.Module, tokens: Tensor, at: int) -> Tensor | None:
        """The hidden states of batch ``at`` before the first block; None when they did not pass straight through."""
        self.straight, self.at = True, at
        try:
            model(tokens, use_cache=False)
        except _Stop:
            return self.passed if self.straight else None
        except (IndexError, ValueError, TypeError, AttributeError):
            if self.passed is None or self.as_tuple:
                raise
        return None


def call_block(block: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states behind a block."""
    out = block(hidden, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out
