"""What flows through a graph while it is read: the axes of a tensor, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openwork.graph.axes import Axis, cut, freeze, is_frozen, prod, same


@dataclass(frozen=True)
class Value:
    """One tensor of the graph.

    ``given`` is True for the token ids that the model is called with; ``weight`` for parameters and what is made of
    them by moving axes only; ``filler`` for constants made in the forward pass, as long as the code says.
    """

    axes: tuple[Axis, ...]
    weight: bool = False
    filler: bool = False
    given: bool = False

    @property
    def ndim(self) -> int:
        return len(self.axes)

    def at(self, dim: int) -> Axis:
        """The axis of a dimension; negative dimensions count from the end."""
        return self.axes[dim]

    def moved(self, axes: Sequence[Axis]) -> Value:
        """The same entries under other axes."""
        return Value(tuple(axes), self.weight, self.filler, self.given)


@dataclass
class Notes:
    """What rules leave behind for later: weight axes that are summed over (by identity), and experts.

    ``routed`` are axes that data picks from (a router's scores), ``banks`` the expert axes of stacked weights,
    ``groups`` the groups of grouped convolutions and norms, ``normed`` the axes of layer norms; each with the module
    that runs the operation.
    ``macs`` holds one product of axes per multiplication of tensors: its multiply-accumulates. ``bounds`` are axes with
    the fewest entries that an operation takes, and of which number their length must be a multiple.
    """

    consumed: set[int] = field(default_factory=set)
    routed: list[tuple[str, Axis]] = field(default_factory=list)
    banks: list[tuple[str, Axis]] = field(default_factory=list)
    groups: list[tuple[str, Axis]] = field(default_factory=list)
    normed: list[tuple[str, tuple[Axis, ...]]] = field(default_factory=list)
    macs: list[tuple[Axis, ...]] = field(default_factory=list)
    bounds: list[tuple[Axis, int, int]] = field(default_factory=list)


@dataclass
class Op:
    """One operation of the graph, as its rule sees it: the shapes of its outputs and the module that runs it.

    ``numbers`` are the sizes that this module and those around it hold as attributes, ``itemsize`` the bytes of one
    entry of the first output.
    """

    name: str
    shapes: list[tuple[int, ...]]
    module: str
    notes: Notes = field(default_factory=Notes)
    numbers: frozenset[int] = frozenset()
    itemsize: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    @property
    def where(self) -> str:
        """For reasons: the operation and its module."""
        return f"{self.name} in {self.module}" if self.module else self.name

    def fixed(self, size: int, reason: str = "position") -> Axis:
        """An axis that nothing can be removed from."""
        return Axis(size, reason)

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Consecutive pieces of an axis, where the code says how long they are.

        Equal pieces may follow from the length of the axis, others from attributes of modules, which are rewritten.
        What is neither stands as a number in the code, so the axis stays.
        """
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        long = {n for n in sizes if n}
        for end in ends if len(long) > 1 else ():
            words = {end, axis.size - end, *long}
            if 0 < end < axis.size and not any(w % n == 0 for w in words for n in self.numbers):
                freeze(axis, f"cut at an entry that is written in the code ({self.where})")
        return cut(axis, list(sizes))

    def multiplies(self, *axes: Axis) -> None:
        """The operation takes one multiply-accumulate for every combination of entries of these axes."""
        self.notes.macs.append(axes)

    def consumes(self, weight: Value, dim: int, other: Axis) -> None:
        """A weight sums over ``other``: its axis ``dim`` is the reading side of that axis."""
        same(weight.at(dim), other)
        if weight.weight:
            self.notes.consumed.add(id(weight.at(dim)))


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""Name of an operation (``aten.linear``) -> its rule ``(op, *args, **kwargs) -> Value``, a tuple, or NotImplemented."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how an operation relates the axes of its inputs and outputs.

    Examples:
        A custom operation ``mylib::scale(x, w)`` that multiplies the last axis:

        >>> @rule("mylib.scale")
        ... def scale(op, x, w):
        ...     same(x.at(-1), w.at(0))
        ...     return x.moved(x.axes)
        >>> RULES.pop("mylib.scale") is scale
        True
    """

    def add(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, made))
        return made

    return add


def broadcast(values: Sequence[Value]) -> tuple[Axis, ...]:
    """The axes of an elementwise operation; axes of length one stretch."""
    rank = max(v.ndim for v in values)
    axes = []
    for back in range(rank, 0, -1):
        here = [v.at(-back) for v in values if v.ndim >= back]
        wide = [a for a in here if a.size != 1] or here
        for other in wide[1:]:
            same(wide[0], other)
        axes.append(wide[0])
    return tuple(axes)


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """The axes after a reshape; None for empty tensors. Runs of equal length on both sides are settled one by one."""
    if any(a.size == 0 for a in axes):
        return None
    old = [a for a in axes if a.size != 1]
    for lost in axes:
        if lost.size == 1:
            freeze(lost, "one entry of a reshaped axis")
    made: list[Axis] = []
    at = 0
    todo: list[int] = []
    left: list[Axis] = []
    have = want = 1
    for size in sizes:
        if size == 1:
            todo.append(1)
            continue
        todo.append(size)
        want *= size
        while have < want and at < len(old):
            left.append(old[at])
            have *= old[at].size
            at += 1
        if have == want:
            made += _run(left, todo)
            todo, left, have, want = [], [], 1, 1
    return made + [Axis(1, "length one") for _ in todo]


def _run(left: list[Axis], sizes: list[int]) -> list[Axis]:
    long = [n for n in sizes if n != 1]
    if len(long) == 1:
        new = [left[0] if len(left) == 1 else prod(*left)]
    elif all(map(is_frozen, left)):
        new = [Axis(n, "reshaped from axes that stay") for n in long]
    else:
        new = [Axis(n) for n in long]
        same(left[0] if len(left) == 1 else prod(*left), prod(*new))
    rest = iter(new)
    return [Axis(1, "length one") if n == 1 else next(rest) for n in sizes]
