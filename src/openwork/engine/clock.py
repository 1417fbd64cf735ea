"""Optimiser steps counted once, also when a subclass calls the step of its parent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer


class Clock:
    """Calls ``before`` and ``after`` around each outermost ``optimizer.step()``.

    torch runs the hooks of an optimiser around every decorated ``step`` of its class *and* of its base classes, so a
    subclass whose ``step`` calls ``super().step()`` would count twice. A step is inner while the frame of the outer
    one is still on the stack; a step that raised leaves none there, so the next one counts again.

    A step that is given a closure computes its gradients inside; then ``before`` is called after each closure.
    """

    def __init__(self, optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None]):
        self._before, self._after = before, after
        self._outer: FrameType | None = None
        self._depth = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, _: Optimizer, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        caller = sys._getframe(1)
        if self._outer is not None and _under(caller.f_back, self._outer):
            self._depth += 1
            return None
        self._outer, self._depth = caller, 1
        # torch hands over the arguments of step() with or without the optimiser itself, depending on its version
        at = next((i for i, a in enumerate(args) if callable(a) and not isinstance(a, Optimizer)), None)
        if at is not None:
            return (*args[:at], self._then_before(args[at]), *args[at + 1 :]), kwargs
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._then_before(kwargs["closure"])}
        self._before()
        return None

    def _then_before(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def both() -> Any:
            value = closure()
            self._before()
            return value

        return both

    def _leave(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._outer = None
            self._after()


def _under(frame: FrameType | None, outer: FrameType) -> bool:
    while frame is not None:
        if frame is outer:
            return True
        frame = frame.f_back
    return False
